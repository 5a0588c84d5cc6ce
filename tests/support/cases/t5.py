"""Tiny whole pipelines whose text encoder is a T5: CogVideoX, ConsisID, Mochi, Allegro, Latte."""

from __future__ import annotations

from typing import Any

import torch
from diffusers import (
    AllegroPipeline,
    AllegroTransformer3DModel,
    AutoencoderKL,
    AutoencoderKLAllegro,
    AutoencoderKLCogVideoX,
    AutoencoderKLMochi,
    CogVideoXDDIMScheduler,
    CogVideoXFunControlPipeline,
    CogVideoXImageToVideoPipeline,
    CogVideoXPipeline,
    CogVideoXTransformer3DModel,
    CogVideoXVideoToVideoPipeline,
    ConsisIDTransformer3DModel,
    DDIMScheduler,
    FlowMatchEulerDiscreteScheduler,
    LattePipeline,
    LatteTransformer3DModel,
    MochiPipeline,
    MochiTransformer3DModel,
)
from diffusers.pipelines.consisid.pipeline_consisid import ConsisIDPipeline  # diffusers exports it only beside OpenCV
from tiny import tiny_tokenizer
from tiny_denoisers import ALLEGRO, COG, FACE, LATTE, MOCHI
from tiny_encoders import WIDTH, made, t5_encoder

from whole import Whole, picture

TOKENS = 16
COG_BLOCKS = {"down_block_types": ("CogVideoXDownBlock3D",) * 4, "up_block_types": ("CogVideoXUpBlock3D",) * 4}
ALLEGRO_BLOCKS = {"down_block_types": ("AllegroDownBlock3D",) * 4, "up_block_types": ("AllegroUpBlock3D",) * 4}
VAE = {
    "block_out_channels": (8, 8, 8, 8), "latent_channels": 4, "layers_per_block": 1, "norm_num_groups": 2,
    "temporal_compression_ratio": 4,
}  # fmt: skip


def text_parts() -> dict[str, Any]:
    """A tokenizer with one token per word, and a T5 encoder."""
    tokenizer = tiny_tokenizer()
    return {"tokenizer": tokenizer, "text_encoder": t5_encoder(tokenizer)}


def cog_parts(model: type = CogVideoXTransformer3DModel, **changes: Any) -> dict[str, Any]:
    config = {
        **COG, "text_embed_dim": WIDTH, "sample_width": 2, "sample_height": 2, "max_text_seq_length": TOKENS,
        **changes,
    }  # fmt: skip
    return {
        **text_parts(),
        "transformer": model(**config),
        "vae": AutoencoderKLCogVideoX(**VAE, **COG_BLOCKS),
        "scheduler": CogVideoXDDIMScheduler(),
    }


@made
def make_cogvideox() -> CogVideoXPipeline:
    return CogVideoXPipeline(**cog_parts())


@made
def make_cogvideox_image() -> CogVideoXImageToVideoPipeline:
    return CogVideoXImageToVideoPipeline(**cog_parts(in_channels=8))


@made
def make_cogvideox_video() -> CogVideoXVideoToVideoPipeline:
    return CogVideoXVideoToVideoPipeline(**cog_parts())


@made
def make_cogvideox_control() -> CogVideoXFunControlPipeline:
    return CogVideoXFunControlPipeline(**cog_parts(in_channels=8))


@made
def make_consisid() -> ConsisIDPipeline:
    config = {
        **FACE, "LFE_output_dim": 21, "in_channels": 8, "attention_head_dim": 16, "sample_frames": 9,
        "use_rotary_positional_embeddings": True, "use_learned_positional_embeddings": True,
    }  # fmt: skip
    return ConsisIDPipeline(**cog_parts(ConsisIDTransformer3DModel, **config))


@made
def make_mochi() -> MochiPipeline:
    vae = AutoencoderKLMochi(
        latent_channels=4, encoder_block_out_channels=(32,) * 4, decoder_block_out_channels=(32,) * 4,
        layers_per_block=(1,) * 5,
    )  # fmt: skip
    return MochiPipeline(
        **text_parts(),
        transformer=MochiTransformer3DModel(
            **{
                **MOCHI,
                "num_attention_heads": 16,
                "pooled_projection_dim": 64,
                "text_embed_dim": WIDTH,
                "max_sequence_length": TOKENS,
            }
        ),
        vae=vae,
        scheduler=FlowMatchEulerDiscreteScheduler(),
    )


@made
def make_allegro() -> AllegroPipeline:
    vae = AutoencoderKLAllegro(**VAE, **ALLEGRO_BLOCKS)
    vae.enable_tiling()  # it cannot decode without
    return AllegroPipeline(
        **text_parts(),
        transformer=AllegroTransformer3DModel(
            **{
                **ALLEGRO,
                "num_attention_heads": 6,
                "attention_head_dim": 12,
                "cross_attention_dim": 72,
                "caption_channels": WIDTH,
            }
        ),
        vae=vae,
        scheduler=DDIMScheduler(),
    )


@made
def make_latte() -> LattePipeline:
    vae = AutoencoderKL(block_out_channels=(8,), norm_num_groups=2)
    return LattePipeline(
        **text_parts(),
        transformer=LatteTransformer3DModel(
            **{**LATTE, "num_attention_heads": 8, "cross_attention_dim": 64, "caption_channels": WIDTH}
        ),
        vae=vae,
        scheduler=DDIMScheduler(),
    )


SIZE = {"height": 16, "width": 16, "num_inference_steps": 2, "max_sequence_length": TOKENS}
COG_CALL = {**SIZE, "num_frames": 5}
FACE_CALL = {**SIZE, "num_frames": 9, "id_vit_hidden": [torch.ones(1, 2, 2)], "id_cond": torch.ones(1, 2)}
VIDEO = [picture(number) for number in range(5)]

PADDING = "with guidance a neutral prompt may change: only the negative prompt shows its padding, so none protects it"

CASES = (
    Whole("CogVideoXPipeline", "CogVideoX", make_cogvideox, COG_CALL),
    Whole("CogVideoXImageToVideoPipeline", "CogVideoX", make_cogvideox_image, COG_CALL, takes="image", pictures=True),
    Whole("CogVideoXVideoToVideoPipeline", "CogVideoX", make_cogvideox_video, {**SIZE, "video": VIDEO}, takes="video"),
    Whole("CogVideoXFunControlPipeline", "CogVideoX", make_cogvideox_control, {**SIZE, "control_video": VIDEO},
          takes="control video"),
    Whole("ConsisIDPipeline", "ConsisID", make_consisid, FACE_CALL, takes="image and face embeddings", pictures=True),
    Whole("MochiPipeline", "Mochi", make_mochi, {**SIZE, "num_frames": 7},
          left=0.9),  # the pooled text is a door
    Whole("AllegroPipeline", "Allegro", make_allegro, {**SIZE, "num_frames": 8}),
    Whole("LattePipeline", "Latte", make_latte,
          {"height": 16, "width": 16, "num_inference_steps": 2, "video_length": 2, "clean_caption": False},
          run={"guidance_scale": 1.0}, remarks=PADDING),
)  # fmt: skip
