"""Tiny random-weight models of every video denoiser of diffusers, made in memory from configs, with their inputs.

The same table is the support table of docs/pipelines.md, so that the page cannot say more than the tests do.
"""

from __future__ import annotations

import importlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import denoiser_inputs as given
import torch
from denoiser_inputs import TEXT, TOKENS, Inputs, Noise, Words
from torch import Tensor, nn

PROMPT = "a red cat walks on grass"
OTHER_PROMPT = "two old men sit by water"
# Layers that prepare the text, by the first parts of their paths.
FRONT = (
    r"^(condition_embedder|(audio_)?caption_projection|y_embedder|text_embedding|text_proj|crossattn_proj"
    r"|context_embedder(_2)?|token_refiner|(video_|audio_)?text_embeddings|(video_|audio_)?text_transformer_blocks)\b"
)


@dataclass(frozen=True)
class Tiny:
    """A denoiser class in one configuration.

    Args:
        model: Class name.
        sites: Paths of its text sites, N for every index, `a.{b,c}` for a.b and a.c; "" if it reads no text.
        config: Arguments that make it tiny.
        inputs: Its inputs for a prompt, a noise and pictures.
        variant: What the configuration shows, beside the class.
        attention: How text meets video.
        mixed: Regular expression of the sites whose input has seen the video; None if all read the prompt alone.
        front: Regular expression of the layers that prepare the text for the sites, and are no sites.
        doors: How else the prompt reaches the video, around all sites; "" if it does not (measured).
        component: Name of the component.
        path: Module of the class, if diffusers does not export it.
    """

    model: str
    sites: str
    config: Mapping[str, Any]
    inputs: Inputs
    variant: str = ""
    attention: str = "cross-attention"
    mixed: str | None = None
    front: str = FRONT
    doors: str = ""
    component: str = "transformer"
    path: str = "diffusers"

    @property
    def name(self) -> str:
        return f"{self.model} ({self.variant})" if self.variant else self.model

    def make(self, seed: int = 0) -> nn.Module:
        """The model, with random numbers where a fresh one has zeros that switch parts of it off."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            model = getattr(importlib.import_module(self.path), self.model)(**self.config).eval().requires_grad_(False)
            for parameter in model.parameters():
                if not parameter.any():
                    parameter.normal_(std=0.2)
        return model

    def pipe(self, seed: int = 0) -> TinyPipeline:
        """A pipeline of just this model."""
        return TinyPipeline(self, seed)

    def run(self, model: nn.Module, prompt: str = PROMPT, noise: int = 0) -> Tensor:
        """All that the model predicts for a prompt and the noise of a seed, as one vector."""
        inputs = self.inputs(Words(prompt), Noise(noise), Noise(3000))
        with torch.no_grad():
            return torch.cat([part.flatten() for part in _tensors(model(**inputs, return_dict=False))])


class TinyPipeline:
    """As much of a pipeline as this package needs: components, and a call that runs them on a prompt."""

    def __init__(self, tiny: Tiny, seed: int = 0) -> None:
        self.tiny = tiny
        self.components = {tiny.component: tiny.make(seed)}

    @property
    def model(self) -> nn.Module:
        return self.components[self.tiny.component]

    def __call__(self, prompt: str = PROMPT, generator: torch.Generator | None = None) -> Tensor:
        return self.tiny.run(self.model, prompt, generator.initial_seed() if generator else 0)


def _tensors(value: Any) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, (list, tuple)):
        for item in value:
            yield from _tensors(item)


WAN = {
    "patch_size": (1, 2, 2), "num_attention_heads": 2, "attention_head_dim": 12, "in_channels": 4, "out_channels": 4,
    "text_dim": TEXT, "freq_dim": 32, "ffn_dim": 32, "num_layers": 2, "cross_attn_norm": True, "rope_max_seq_len": 32,
}  # fmt: skip
PICTURES = {"image_dim": TEXT, "added_kv_proj_dim": 24}
ANIMATE = {
    **WAN, "in_channels": 12, "latent_channels": 4, "image_dim": TEXT,
    "motion_encoder_channel_sizes": {"4": 16, "8": 16, "16": 16}, "motion_encoder_size": 16, "motion_style_dim": 8,
    "motion_dim": 4, "motion_encoder_dim": 16, "face_encoder_hidden_dim": 16, "face_encoder_num_heads": 2,
    "inject_face_latents_blocks": 2,
}  # fmt: skip
ANIMATE_2 = {
    "text_len": 8, "in_dim": 36, "dim": 32, "ffn_dim": 32, "freq_dim": 32, "text_dim": TEXT, "out_dim": 16,
    "num_heads": 2, "num_layers": 2, "use_img_emb": False,
}  # fmt: skip
LTX = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "cross_attention_dim": 16,
    "num_layers": 2, "caption_channels": TEXT,
}  # fmt: skip
LTX_2 = {
    **LTX, "audio_in_channels": 4, "audio_out_channels": 4, "audio_num_attention_heads": 2,
    "audio_attention_head_dim": 4, "audio_cross_attention_dim": 8, "rope_double_precision": False,
}  # fmt: skip
COG = {
    "num_attention_heads": 2, "attention_head_dim": 8, "in_channels": 4, "out_channels": 4, "time_embed_dim": 2,
    "text_embed_dim": TEXT, "num_layers": 2, "sample_width": 8, "sample_height": 8, "sample_frames": 5,
    "temporal_compression_ratio": 4, "max_text_seq_length": TOKENS,
}  # fmt: skip
FACE = {
    "is_train_face": True, "cross_attn_interval": 1, "cross_attn_dim_head": 1, "cross_attn_num_heads": 1,
    "LFE_id_dim": 2, "LFE_vit_dim": 2, "LFE_depth": 5, "LFE_dim_head": 8, "LFE_num_heads": 2, "LFE_num_id_token": 1,
    "LFE_num_querie": 1, "LFE_output_dim": 10, "LFE_ff_mult": 1, "LFE_num_scale": 1,
}  # fmt: skip
HUNYUAN = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 10, "num_layers": 2,
    "num_single_layers": 1, "num_refiner_layers": 1, "text_embed_dim": TEXT, "pooled_projection_dim": 8,
    "rope_axes_dim": (2, 4, 4),
}  # fmt: skip
HUNYUAN_15 = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2,
    "num_refiner_layers": 1, "mlp_ratio": 2.0, "text_embed_dim": TEXT, "text_embed_2_dim": 8, "image_embed_dim": 12,
    "rope_axes_dim": (2, 2, 4), "target_size": 16, "task_type": "t2v",
}  # fmt: skip
MOCHI = {
    "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "pooled_projection_dim": 16, "in_channels": 4,
    "text_embed_dim": TEXT, "time_embed_dim": 4, "max_sequence_length": TOKENS,
}  # fmt: skip
ALLEGRO = {
    "num_attention_heads": 2, "attention_head_dim": 8, "num_layers": 2, "cross_attention_dim": 16, "sample_width": 8,
    "sample_height": 8, "sample_frames": 2, "caption_channels": TEXT,
}  # fmt: skip
LATTE = {
    "sample_size": 8, "num_layers": 2, "patch_size": 2, "attention_head_dim": 8, "num_attention_heads": 3,
    "caption_channels": TEXT, "in_channels": 4, "cross_attention_dim": 24, "out_channels": 8, "video_length": 2,
    "norm_type": "ada_norm_single", "num_embeds_ada_norm": 1000, "norm_elementwise_affine": False,
}  # fmt: skip
COSMOS = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 16, "num_layers": 2,
    "mlp_ratio": 2.0, "text_embed_dim": TEXT, "adaln_lora_dim": 4, "max_size": (4, 16, 16),
    "concat_padding_mask": False,
}  # fmt: skip
COSMOS_3 = {
    "head_dim": 6, "hidden_size": 12, "intermediate_size": 24, "latent_channel": 2, "latent_patch_size": 1,
    "num_attention_heads": 2, "num_hidden_layers": 2, "num_key_value_heads": 1, "patch_latent_dim": 2,
    "rope_axes_dim": [1, 1, 1], "vocab_size": 32,
}  # fmt: skip
SANA = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
    "num_cross_attention_heads": 2, "cross_attention_head_dim": 12, "cross_attention_dim": 24, "sample_size": 8,
    "caption_channels": TEXT, "rope_max_seq_len": 32,
}  # fmt: skip
SANA_WM = {
    "in_channels": 4, "num_layers": 2, "hidden_size": 32, "num_attention_heads": 2, "softmax_every_n": 2,
    "linear_head_dim": 16, "caption_channels": TEXT, "mlp_ratio": 2.0, "chunk_plucker_channels": 8,
    "chunk_plucker_post_attn_blocks": 2,
}  # fmt: skip
KANDINSKY = {
    "in_visual_dim": 4, "out_visual_dim": 4, "in_text_dim": TEXT, "in_text_dim2": 8, "time_dim": 16, "model_dim": 16,
    "ff_dim": 32, "num_text_blocks": 1, "num_visual_blocks": 2, "axes_dims": (4, 2, 2),
}  # fmt: skip
EASY_ANIMATE = {
    "num_attention_heads": 2, "attention_head_dim": 16, "text_embed_dim": TEXT, "in_channels": 4, "out_channels": 4,
    "time_embed_dim": 2, "patch_size": 2, "num_layers": 2,
}  # fmt: skip
MOTIF = {
    "in_channels": 4, "out_channels": 4, "num_attention_heads": 2, "attention_head_dim": 12, "num_layers": 2,
    "num_single_layers": 1, "text_embed_dim": TEXT, "rope_axes_dim": (4, 4, 4),
}  # fmt: skip
ANY_FLOW = {name: value for name, value in WAN.items() if name != "cross_attn_norm"}
HELIOS = {**{name: value for name, value in WAN.items() if name != "rope_max_seq_len"}, "rope_dim": (4, 4, 4)}
UNET = {
    "block_out_channels": (8, 8), "layers_per_block": 1, "norm_num_groups": 2, "cross_attention_dim": TEXT,
}  # fmt: skip
MINIMAX = {
    "num_attention_heads": 2, "attention_head_dim": 16, "hidden_size": 24, "num_layers": 2, "num_refiner_layers": 1,
    "ffn_dim": 32, "in_channels": 4, "audio_in_channels": 6, "text_dim": TEXT, "freq_dim": 8,
    "time_embed_hidden_dim": 24, "time_embed_dim": 16, "rope_freq_dim": 2,
}  # fmt: skip
HEADS = {"num_attention_heads": 2, "motion_num_attention_heads": 2}
SDXL = {
    "addition_embed_type": "text_time", "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 56,
}  # fmt: skip


def two_levels(kind: str, **changes: Any) -> dict[str, Any]:
    """The blocks of a UNet with one level of cross-attention and one without."""
    levels = {
        "down_block_types": (f"CrossAttnDownBlock{kind}", f"DownBlock{kind}"),
        "up_block_types": (f"UpBlock{kind}", f"CrossAttnUpBlock{kind}"),
    }
    return {**UNET, **levels, **changes}


SVD = {
    **two_levels("SpatioTemporal", block_out_channels=(32, 64), num_attention_heads=(2, 4)),
    "addition_time_embed_dim": 8, "projection_class_embeddings_input_dim": 24,
}  # fmt: skip
del SVD["norm_num_groups"]
BLOCKS = "blocks.N.attn2.{to_k,to_v}"
ATTN2 = "transformer_blocks.N.attn2.{to_k,to_v}"
AUDIO = "transformer_blocks.N.audio_attn2.{to_k,to_v}"
TWO_STREAMS = "transformer_blocks.N.attn.{add_q_proj,add_k_proj,add_v_proj}"
TWO_STREAMS_1 = TWO_STREAMS.replace("attn.", "attn1.")
KANDINSKY_6 = "visual_transformer_blocks.N.{video,audio}_dec_block.cross_attention.{to_key,to_value}"
IN_UNET = (
    "down_blocks.N.attentions.N.transformer_blocks.N.attn2.{to_k,to_v} "
    "up_blocks.N.attentions.N.transformer_blocks.N.attn2.{to_k,to_v} "
    "mid_block.attentions.N.transformer_blocks.N.attn2.{to_k,to_v}"
)
MOTIF_CROSS = "transformer_blocks.N.cross_attn.{to_k,to_v} single_transformer_blocks.N.cross_attn.{to_k,to_v}"
ONE, TWO, BOTH = "one stream", "two streams", "two streams, then one"
LATER = r"_blocks\.[1-9]|^single_"
POOLED = "pooled text, in the modulation of all blocks"
REFINED = f"{POOLED}; mean of the prompt, in the modulation of the text refiner"

TINY = (
    Tiny("WanTransformer3DModel", BLOCKS, WAN, given.wan_like),
    Tiny("WanTransformer3DModel", BLOCKS, {**WAN, **PICTURES}, given.with_pictures, "image keys"),
    Tiny("WanVACETransformer3DModel", "{vace_,}" + BLOCKS,
         {**WAN, "vace_layers": [0], "vace_in_channels": 12}, given.vace),
    Tiny("WanAnimateTransformer3DModel", BLOCKS, ANIMATE, given.wan_animate),
    Tiny("SkyReelsV2Transformer3DModel", BLOCKS, WAN, given.wan_like),
    Tiny("SkyReelsV2Transformer3DModel", BLOCKS, {**WAN, **PICTURES}, given.with_pictures, "image keys"),
    Tiny("ChronoEditTransformer3DModel", BLOCKS, {**WAN, "rope_temporal_skip_len": 2}, given.wan_like),
    Tiny("ChronoEditTransformer3DModel", BLOCKS, {**WAN, **PICTURES, "rope_temporal_skip_len": 2},
         given.with_pictures, "image keys"),
    Tiny("LTXVideoTransformer3DModel", ATTN2, LTX, given.ltx),
    Tiny("LTX2VideoTransformer3DModel", f"{ATTN2} {AUDIO}", LTX_2, given.ltx2),
    Tiny("LTX2VideoTransformer3DModel", f"{ATTN2} {AUDIO}",
         {**LTX_2, "cross_attn_mod": True, "audio_cross_attn_mod": True, "gated_attn": True, "audio_gated_attn": True},
         given.ltx2, "as LTX-2.3"),
    Tiny("CogVideoXTransformer3DModel", "patch_embed.text_proj", COG, given.frames_first, attention=ONE),
    Tiny("ConsisIDTransformer3DModel", "patch_embed.text_proj", {**COG, **FACE}, given.consisid, attention=ONE),
    Tiny("HunyuanVideoTransformer3DModel", f"context_embedder.proj_in {TWO_STREAMS}", HUNYUAN, given.hunyuan,
         attention=BOTH, mixed=LATER, doors=REFINED),
    Tiny("HunyuanVideoTransformer3DModel", f"context_embedder.proj_in {TWO_STREAMS}",
         {**HUNYUAN, "image_condition_type": "token_replace"}, given.hunyuan, "first frame given",
         attention=BOTH, mixed=LATER, doors=REFINED),
    Tiny("HunyuanVideoFramepackTransformer3DModel", f"context_embedder.proj_in {TWO_STREAMS}",
         {**HUNYUAN, "has_image_proj": True, "image_proj_dim": TEXT, "has_clean_x_embedder": True}, given.framepack,
         attention=BOTH, mixed=LATER, doors=REFINED),
    Tiny("HunyuanVideo15Transformer3DModel", TWO_STREAMS, HUNYUAN_15, given.hunyuan_15, attention=TWO, mixed=LATER),
    Tiny("MochiTransformer3DModel", TWO_STREAMS_1, MOCHI, given.masked, attention=TWO, mixed=LATER, doors=POOLED),
    Tiny("AllegroTransformer3DModel", ATTN2, ALLEGRO, given.wan_like),
    Tiny("LatteTransformer3DModel", ATTN2, LATTE, given.wan_like),
    Tiny("CosmosTransformer3DModel", ATTN2, COSMOS, given.wan_like),
    Tiny("CosmosTransformer3DModel", ATTN2,
         {**COSMOS, "img_context_dim_in": 8, "img_context_num_tokens": 4, "img_context_dim_out": 32},
         given.cosmos_pictures, "image keys"),
    Tiny("CosmosTransformer3DModel", ATTN2,
         {**COSMOS, "use_crossattn_projection": True, "crossattn_proj_in_channels": 2 * TEXT,
          "encoder_hidden_states_channels": TEXT},
         given.cosmos_projected, "text projection"),
    Tiny("Cosmos3OmniTransformer", "layers.N.self_attn.{to_q,to_k,to_v}", COSMOS_3, given.cosmos_3,
         attention="two towers", front=r"^layers\.\d+\.(mlp\.|self_attn\.to_out$)"),
    Tiny("SanaVideoTransformer3DModel", ATTN2, SANA, given.wan_like),
    Tiny("SanaWMTransformer3DModel", "blocks.N.cross_attn.kv_linear", SANA_WM, given.sana_wm),
    Tiny("SanaWMLTX2RefinerTransformer3DModel", ATTN2, LTX_2, given.refiner,
         path="diffusers.models.transformers.transformer_sana_wm_refiner"),
    Tiny("Kandinsky5Transformer3DModel", "visual_transformer_blocks.N.cross_attention.{to_key,to_value}", KANDINSKY,
         given.kandinsky_5, doors=POOLED),
    Tiny("Kandinsky6Transformer3DModel", KANDINSKY_6, {**KANDINSKY, "in_audio_dim": 4, "out_audio_dim": 4},
         given.kandinsky_6, doors=POOLED),
    Tiny("EasyAnimateTransformer3DModel", TWO_STREAMS_1, EASY_ANIMATE, given.wan_like, attention=TWO, mixed=LATER),
    Tiny("EasyAnimateTransformer3DModel", "text_proj.N text_proj_t5.N " + TWO_STREAMS_1,
         {**EASY_ANIMATE, "mmdit_layers": 1, "text_embed_dim_t5": TEXT, "add_norm_text_encoder": True},
         given.easy_animate, "two encoders, shared blocks", attention=BOTH, mixed=LATER),
    Tiny("MotifVideoTransformer3DModel", f"context_embedder.linear_1 {TWO_STREAMS}", MOTIF, given.wan_like,
         attention=BOTH, mixed=LATER),
    Tiny("MotifVideoTransformer3DModel", f"context_embedder.linear_1 {TWO_STREAMS} {MOTIF_CROSS}",
         {**MOTIF, "enable_text_cross_attention_dual": True, "enable_text_cross_attention_single": True,
          "image_embed_dim": 12},
         given.motif_pictures, "text cross-attention, pictures", attention=BOTH, mixed=LATER),
    Tiny("AnyFlowTransformer3DModel", BLOCKS, ANY_FLOW, given.any_flow),
    Tiny("AnyFlowFARTransformer3DModel", BLOCKS, {**ANY_FLOW, "chunk_partition": (1, 1)}, given.any_flow_far),
    Tiny("HeliosTransformer3DModel", BLOCKS, HELIOS, given.helios),
    Tiny("UNet3DConditionModel", IN_UNET, two_levels("3D", attention_head_dim=4), given.unet, component="unet"),
    Tiny("UNetMotionModel", IN_UNET, two_levels("Motion", **HEADS), given.motion,
         component="unet"),
    Tiny("UNetMotionModel", IN_UNET, two_levels("Motion", **HEADS, **SDXL),
         given.pooled(given.motion), "SDXL", doors="pooled text, in the time embedding", component="unet"),
    Tiny("UNet2DConditionModel", IN_UNET, two_levels("2D", attention_head_dim=4), given.unet_2d, component="unet"),
    Tiny("UNet2DConditionModel", IN_UNET, two_levels("2D", attention_head_dim=4, **SDXL),
         given.pooled(given.unet_2d), "SDXL",
         doors="pooled text, in the time embedding", component="unet"),
    Tiny("I2VGenXLUNet", IN_UNET, two_levels("3D", attention_head_dim=2), given.i2vgen, component="unet"),
    Tiny("UNetSpatioTemporalConditionModel", "", SVD, given.svd, attention="cross-attention to an image",
         component="unet"),
    Tiny("WanAnimate2Transformer3DModel", "blocks.N.cross_attn.{to_k,to_v}", ANIMATE_2, given.wan_animate_2),
    Tiny("MiniMaxH3Transformer3DModel", "context_embedder", MINIMAX, given.minimax, attention=ONE),
)  # fmt: skip
