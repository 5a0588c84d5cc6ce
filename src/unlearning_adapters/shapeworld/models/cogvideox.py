"""ShapeWorld with joint attention over text and video: a small CogVideoX."""

from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKLCogVideoX, CogVideoXDDIMScheduler, CogVideoXTransformer3DModel
from torch import Tensor
from transformers import T5Config, T5EncoderModel

from unlearning_adapters.shapeworld.world.scenes import FRAMES

from .family import ModelFamily
from .generate import OTHERS, call_defaults
from .wan import T5_CONFIG, TEXT_WIDTH

NAME = "shapeworld-cogvideox"
SIZE = 32
TEXT_TOKENS = 24
LATENT_CHANNELS = 8
VAE_CHANNELS = (16, 32, 64)  # 4 times fewer pixels in each direction, 4 times fewer frames


@call_defaults(**OTHERS["CogVideoXPipeline"])
class CogVideoXPipeline(diffusers.CogVideoXPipeline):  # type: ignore[misc]
    """diffusers' pipeline, whose call has the arguments of this model as defaults."""


def build_vae() -> AutoencoderKLCogVideoX:
    """Return a fresh causal VAE."""
    return AutoencoderKLCogVideoX(
        down_block_types=("CogVideoXDownBlock3D",) * len(VAE_CHANNELS),
        up_block_types=("CogVideoXUpBlock3D",) * len(VAE_CHANNELS),
        block_out_channels=VAE_CHANNELS,
        latent_channels=LATENT_CHANNELS,
        layers_per_block=1,
        norm_num_groups=8,
        sample_height=SIZE,
        sample_width=SIZE,
        scaling_factor=1.0,
    )


def build_text_encoder(vocabulary_size: int) -> T5EncoderModel:
    """Return a fresh text encoder of CogVideoX's own class."""
    return T5EncoderModel(T5Config(vocab_size=vocabulary_size, **T5_CONFIG))


def build_denoiser() -> CogVideoXTransformer3DModel:
    """Return a fresh denoiser that starts as the zero function."""
    transformer = CogVideoXTransformer3DModel(
        num_attention_heads=6,
        attention_head_dim=32,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        time_embed_dim=128,
        text_embed_dim=TEXT_WIDTH,
        num_layers=6,
        sample_width=8,
        sample_height=8,
        sample_frames=FRAMES,
        patch_size=2,
        temporal_compression_ratio=4,
        max_text_seq_length=TEXT_TOKENS,
        spatial_interpolation_scale=1.0,
    )
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)
    return transformer


def build_scheduler() -> CogVideoXDDIMScheduler:
    """Return CogVideoX's scheduler without its shift, which is for large clips."""
    return CogVideoXDDIMScheduler(
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        snr_shift_scale=1.0,
        clip_sample=False,
        set_alpha_to_one=True,
    )


def encode(vae: Any, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and deviations (batch, latent frames, channels, height, width) of the latents of clips."""
    posterior = vae.encode(clips).latent_dist
    return posterior.mean.transpose(1, 2), posterior.std.transpose(1, 2)


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Return the clips of latents."""
    pixels: Tensor = vae.decode(latents.transpose(1, 2)).sample
    return pixels


COGVIDEOX = ModelFamily(
    NAME, FRAMES, SIZE, TEXT_TOKENS, build_vae, build_text_encoder, build_denoiser, build_scheduler, encode, decode,
    pipeline=CogVideoXPipeline, component="transformer", clip_vae=True,
)  # fmt: skip
