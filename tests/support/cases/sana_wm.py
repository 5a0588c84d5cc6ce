"""Tiny whole pipelines of SANA-WM, a world model that is steered by a camera, and of its refiner."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AutoencoderKLLTX2Video,
    FlowMatchEulerDiscreteScheduler,
    SanaWMPipeline,
    SanaWMTransformer3DModel,
)
from diffusers.models.transformers.transformer_sana_wm_refiner import SanaWMLTX2RefinerTransformer3DModel
from diffusers.pipelines.ltx2.connectors import LTX2TextConnectors
from diffusers.pipelines.sana_wm.refiner import SanaWMLTX2Refiner
from tiny_denoisers import LTX_2, SANA_WM
from tiny_encoders import VOCABULARY, WIDTH, gemma_encoder, made, word_tokenizer
from transformers import Gemma3Config, Gemma3ForConditionalGeneration

from whole import Whole


@made
def make_sana_wm() -> Any:
    vae = AutoencoderKLLTX2Video(
        latent_channels=4, block_out_channels=(8,), decoder_block_out_channels=(8,), layers_per_block=(1,),
        decoder_layers_per_block=(1, 1), spatio_temporal_scaling=(True,), decoder_spatio_temporal_scaling=(True,),
        decoder_inject_noise=(False, False), downsample_type=("spatial",), upsample_residual=(False,),
        upsample_factor=(1,), patch_size=1, patch_size_t=1,
    )  # fmt: skip
    config = {
        **SANA_WM, "hidden_size": 64, "num_attention_heads": 4, "caption_channels": WIDTH,
        "chunk_plucker_channels": 6 * vae.temporal_compression_ratio,
    }  # fmt: skip
    return SanaWMPipeline(
        tokenizer=word_tokenizer(),
        text_encoder=gemma_encoder(),
        vae=vae,
        transformer=SanaWMTransformer3DModel(**config),
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


def gemma_3() -> Gemma3ForConditionalGeneration:
    text = {
        "hidden_size": WIDTH, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4,
        "num_key_value_heads": 2, "head_dim": 16, "vocab_size": VOCABULARY, "max_position_embeddings": 64,
        "initializer_range": 0.5,
    }  # fmt: skip
    vision = {
        "hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
        "patch_size": 4,
    }  # fmt: skip
    return Gemma3ForConditionalGeneration(Gemma3Config(text_config=text, vision_config=vision))


@made
def make_refiner() -> SanaWMLTX2Refiner:
    sides = {
        f"{side}_connector_{name}": value
        for side in ("video", "audio")
        for name, value in {"num_attention_heads": 8, "attention_head_dim": 8, "num_layers": 1,
                            "num_learnable_registers": None}.items()
    }  # fmt: skip
    connectors = LTX2TextConnectors(
        caption_channels=WIDTH, text_proj_in_factor=3, connector_rope_base_seq_len=32, rope_double_precision=False,
        causal_temporal_positioning=False, **sides,
    )  # fmt: skip
    config = {**LTX_2, "num_attention_heads": 8, "cross_attention_dim": 64, "caption_channels": WIDTH}
    return SanaWMLTX2Refiner(
        transformer=SanaWMLTX2RefinerTransformer3DModel(**config),
        connectors=connectors,
        tokenizer=word_tokenizer(padding_side="left"),
        text_encoder=gemma_3(),
        scheduler=FlowMatchEulerDiscreteScheduler(),
        text_max_sequence_length=16,
    )


LATENT = {"sana_latent": torch.randn(1, 4, 4, 4, 4, generator=torch.Generator().manual_seed(0)), "fps": 16.0}
CALL = {
    "height": 16, "width": 16, "num_frames": 9, "num_inference_steps": 2, "max_sequence_length": 16, "action": "w-8",
    "intrinsics": [16.0, 16.0, 8.0, 8.0],
}  # fmt: skip

CASES = (
    Whole("SanaWMPipeline", "SANA-WM", make_sana_wm, CALL, takes="image and camera", pictures=True),
    Whole("SanaWMLTX2Refiner", "SANA-WM", make_refiner, LATENT, takes="latents of SANA-WM",
          remarks="the `connectors` before the denoiser are not edited; what they pass on is"),
)  # fmt: skip
