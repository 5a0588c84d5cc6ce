"""Tiny whole pipelines of LTX-Video and LTX-2, whose sound has cross-attention to the prompt of its own."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Audio,
    AutoencoderKLLTX2Video,
    AutoencoderKLLTXVideo,
    FlowMatchEulerDiscreteScheduler,
    LTX2ConditionPipeline,
    LTX2DFRPipeline,
    LTX2DFRTemporalRefinePipeline,
    LTX2HDRPipeline,
    LTX2ImageToVideoPipeline,
    LTX2InContextPipeline,
    LTX2Pipeline,
    LTX2VideoTransformer3DModel,
    LTXConditionPipeline,
    LTXEulerAncestralRFScheduler,
    LTXI2VLongMultiPromptPipeline,
    LTXImageToVideoPipeline,
    LTXPipeline,
    LTXVideoTransformer3DModel,
)
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.ltx2.latent_upsampler import LTX2LatentUpsamplerModel
from diffusers.pipelines.ltx2.pipeline_ltx2_condition import LTX2VideoCondition
from diffusers.pipelines.ltx2.pipeline_ltx2_hdr_lora import LTX2HDRReferenceCondition
from diffusers.pipelines.ltx2.vocoder import LTX2Vocoder
from tiny import TEXT_DIM, tiny_tokenizer
from tiny_parts import made, quiet, wan_parts
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from whole import Whole, picture

ONE_LEVEL = {
    "layers_per_block": (1,), "block_out_channels": (8,), "decoder_block_out_channels": (8,),
    "spatio_temporal_scaling": (True,), "decoder_layers_per_block": (1, 1), "decoder_spatio_temporal_scaling": (True,),
    "decoder_inject_noise": (False, False), "upsample_residual": (False,), "upsample_factor": (1,),
    "timestep_conditioning": False, "patch_size": 1, "patch_size_t": 1, "encoder_causal": True, "decoder_causal": False,
}  # fmt: skip
TWO_LEVELS = {
    **ONE_LEVEL, "layers_per_block": (1, 1, 1), "block_out_channels": (8, 8), "decoder_block_out_channels": (8, 8),
    "spatio_temporal_scaling": (True, True), "decoder_layers_per_block": (1, 1, 1),
    "decoder_spatio_temporal_scaling": (True, True), "decoder_inject_noise": (False, False, False),
    "upsample_residual": (False, False), "upsample_factor": (1, 1),
}  # fmt: skip
LTX = {
    "in_channels": 8, "out_channels": 8, "num_attention_heads": 4, "attention_head_dim": 8, "cross_attention_dim": 32,
    "num_layers": 2, "caption_channels": TEXT_DIM,
}  # fmt: skip
LTX_2 = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 4, "attention_head_dim": 8, "cross_attention_dim": 32,
    "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 4, "audio_attention_head_dim": 8,
    "audio_cross_attention_dim": 32, "num_layers": 2, "caption_channels": TEXT_DIM, "rope_double_precision": False,
    "rope_type": "split",
}  # fmt: skip
CALL = {"height": 32, "width": 32, "num_frames": 9, "num_inference_steps": 2, "max_sequence_length": 16}
LTX_2_CALL = {**CALL, "num_frames": 5, "frame_rate": 25.0}
# The block of its skipped layer is number 28, which a tiny model has not.
GUIDED = {**LTX_2_CALL, "spatio_temporal_guidance_blocks": [1]}


def ltx(maker: Any = LTXPipeline, **parts: Any) -> Any:
    vae = made(AutoencoderKLLTXVideo, latent_channels=8, **TWO_LEVELS)
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    shared = {"vae": vae, "transformer": made(LTXVideoTransformer3DModel, **LTX)}
    return quiet(maker(**wan_parts(**{"scheduler": FlowMatchEulerDiscreteScheduler(), **shared, **parts})))


def gemma(words: int) -> Gemma3ForConditionalGeneration:
    text = {
        "hidden_size": TEXT_DIM, "intermediate_size": 32, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 8, "vocab_size": words, "max_position_embeddings": 64,
    }  # fmt: skip
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4,
    }  # fmt: skip
    return made(Gemma3ForConditionalGeneration, Gemma3Config(text_config=text, vision_config=vision))


def connectors(per_token: bool) -> LTX2TextConnectors:
    """Norms over the whole prompt, as LTX-2, so that a word changes its neighbours, or per token, as LTX-2.3."""
    new = {"per_modality_projections": True, "video_hidden_dim": 32, "audio_hidden_dim": 32} if per_token else {}
    sides = {
        f"{side}_connector_{name}": value
        for side in ("video", "audio")
        for name, value in {"num_attention_heads": 4, "attention_head_dim": 8, "num_layers": 1,
                            "num_learnable_registers": None}.items()
    }  # fmt: skip
    return made(
        LTX2TextConnectors, caption_channels=TEXT_DIM, text_proj_in_factor=3, connector_rope_base_seq_len=32,
        rope_theta=10000.0, rope_double_precision=False, causal_temporal_positioning=False, rope_type="split", **sides,
        **new,
    )  # fmt: skip


def ltx2_parts(per_token: bool = False, **changes: Any) -> dict[str, Any]:
    """All parts of LTX-2: Gemma, connectors for the texts of video and sound, both autoencoders, the vocoder."""
    tokenizer = tiny_tokenizer()
    tokenizer.padding_side = "left"  # as Gemma's; the connectors count on it
    down = ("spatiotemporal", "spatiotemporal")
    vae = made(AutoencoderKLLTX2Video, latent_channels=4, downsample_type=down, **TWO_LEVELS)
    vae.use_framewise_encoding = vae.use_framewise_decoding = False
    audio_vae = made(
        AutoencoderKLLTX2Audio, base_channels=4, output_channels=2, ch_mult=(1,), num_res_blocks=1,
        attn_resolutions=None, in_channels=2, resolution=32, latent_channels=2, norm_type="pixel",
        causality_axis="height", dropout=0.0, mid_block_add_attention=False, sample_rate=16000, mel_hop_length=160,
        is_causal=True, mel_bins=8,
    )  # fmt: skip
    vocoder = made(
        LTX2Vocoder, in_channels=16, hidden_channels=32, out_channels=2, upsample_kernel_sizes=[4, 4],
        upsample_factors=[2, 2], resnet_kernel_sizes=[3], resnet_dilations=[[1, 3, 5]],
        leaky_relu_negative_slope=0.1, output_sampling_rate=16000,
    )  # fmt: skip
    return {
        "tokenizer": tokenizer, "text_encoder": gemma(len(tokenizer)), "connectors": connectors(per_token), "vae": vae,
        "audio_vae": audio_vae, "vocoder": vocoder, "scheduler": FlowMatchEulerDiscreteScheduler(),
        "transformer": made(LTX2VideoTransformer3DModel, **{**LTX_2, **changes}),
    }  # fmt: skip


def ltx2(maker: Any = LTX2Pipeline, **changes: Any) -> Any:
    return quiet(maker(**ltx2_parts(**changes)))


def frames() -> torch.Tensor:
    return torch.rand((1, 3, 32, 32), generator=torch.Generator().manual_seed(0))


def temporal_refine() -> LTX2DFRTemporalRefinePipeline:
    parts = ltx2_parts(per_token=True, use_keyframes_abs_pos_embedding=True)
    parts["scheduler"] = LTXEulerAncestralRFScheduler(eta=1.0)
    upsampler = made(
        LTX2LatentUpsamplerModel, in_channels=4, mid_channels=32, num_blocks_per_stage=1, spatial_upsample=False,
        temporal_upsample=True,
    )  # fmt: skip
    return quiet(LTX2DFRTemporalRefinePipeline(**parts, temporal_latent_upsampler=upsampler))


def first_pass() -> dict[str, Any]:
    """What `LTX2DFRPipeline` returns for 9 frames: a canvas of 13, its last frame as a keyframe, and sound."""
    shapes = {"latents": (1, 4, 4, 8, 8), "keyframes_latents": (1, 4, 1, 8, 8), "audio_latents": (1, 2, 14, 2)}
    maker = torch.Generator().manual_seed(0)
    given = {name: torch.randn(shape, generator=maker) for name, shape in shapes.items()}
    return {**given, "keyframe_positions": [12], "num_frames": 13}


CONDITION = LTX2VideoCondition(frames=frames(), index=0, strength=1.0, crf=0)  # no compression, which needs PyAV
AS_2_3 = {
    "per_token": True,
    "cross_attn_mod": True,
    "audio_cross_attn_mod": True,
    "gated_attn": True,
    "audio_gated_attn": True,
}
MODULATED = "as LTX-2.3, the timestep modulates what text sites read: they are recorded in three steps"
CASES = (
    Whole("LTXPipeline", "LTX", ltx, CALL),
    Whole("LTXImageToVideoPipeline", "LTX", lambda: ltx(LTXImageToVideoPipeline), CALL, takes="image", pictures=True),
    Whole("LTXConditionPipeline", "LTX", lambda: ltx(LTXConditionPipeline), CALL, takes="image", pictures=True),
    Whole("LTXI2VLongMultiPromptPipeline", "LTX",
          lambda: ltx(LTXI2VLongMultiPromptPipeline, scheduler=LTXEulerAncestralRFScheduler()),
          {**CALL, "cond_image": picture(0)}, takes="image", batch_size=1),
    Whole("LTX2Pipeline", "LTX-2", ltx2, GUIDED),
    Whole("LTX2Pipeline", "LTX-2", lambda: ltx2(**AS_2_3), {**GUIDED, "num_inference_steps": 1},
          variant="as LTX-2.3", remarks=MODULATED),
    Whole("LTX2ImageToVideoPipeline", "LTX-2", lambda: ltx2(LTX2ImageToVideoPipeline), {**GUIDED, "image_crf": 0},
          takes="image", pictures=True),
    Whole("LTX2ConditionPipeline", "LTX-2", lambda: ltx2(LTX2ConditionPipeline), {**GUIDED, "conditions": CONDITION},
          takes="conditions", batch_size=1),
    Whole("LTX2InContextPipeline", "LTX-2", lambda: ltx2(LTX2InContextPipeline), {**GUIDED, "conditions": CONDITION},
          takes="conditions", batch_size=1),
    Whole("LTX2HDRPipeline", "LTX-2", lambda: ltx2(LTX2HDRPipeline, per_token=True),
          {**LTX_2_CALL, "reference_conditions": LTX2HDRReferenceCondition(frames=frames(), strength=1.0)},
          takes="reference video", batch_size=1),
    Whole("LTX2DFRPipeline", "LTX-2",
          lambda: ltx2(LTX2DFRPipeline, per_token=True, use_keyframes_abs_pos_embedding=True),
          {"height": 32, "width": 32, "num_frames": 5, "max_sequence_length": 16, "sigmas": [1.0, 0.5]}),
    Whole("LTX2DFRTemporalRefinePipeline", "LTX-2", temporal_refine,
          {**first_pass(), "height": 32, "width": 32, "max_sequence_length": 16, "sigmas": [0.8]},
          takes="the result of LTX2DFRPipeline", batch_size=1),
)  # fmt: skip
