"""ShapeWorld as the paper's own kind of model: a 3D UNet in `TextToVideoSDPipeline`, the class of ZeroScope."""

from typing import Any

import diffusers
import torch
from diffusers import AutoencoderKL, DDIMScheduler, UNet3DConditionModel
from diffusers.models.resnet import TemporalConvLayer
from torch import Tensor
from transformers import CLIPTextConfig, CLIPTextModel

from .family import ModelFamily
from .generate import OTHERS, call_defaults

NAME = "shapeworld-unet"
FRAMES = 5  # every second one of the world's 9: a UNet has no temporal compression, and pays for each
SIZE = 32
TEXT_TOKENS = 24
TEXT_WIDTH = 128
WORD_SIZE = 0.3  # 15 times CLIP's: words must differ before an encoder can learn to keep those of motion
LATENT_CHANNELS = 16
VAE_CHANNELS = (16, 48, 96, 96)  # 8 times fewer pixels in each direction


@call_defaults(**OTHERS["TextToVideoSDPipeline"])
class TextToVideoSDPipeline(diffusers.TextToVideoSDPipeline):  # type: ignore[misc]
    """diffusers' pipeline, whose call has the arguments of this model as defaults."""


def build_vae() -> AutoencoderKL:
    """Return a fresh VAE, which encodes frame by frame."""
    return AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * len(VAE_CHANNELS),
        up_block_types=("UpDecoderBlock2D",) * len(VAE_CHANNELS),
        block_out_channels=VAE_CHANNELS,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS,
        norm_num_groups=8,
        sample_size=SIZE,
        scaling_factor=1.0,
    )


def build_text_encoder(vocabulary_size: int) -> CLIPTextModel:
    """Return a fresh text encoder of the class that Stable Diffusion's descendants have."""
    config = CLIPTextConfig(
        vocab_size=vocabulary_size,
        hidden_size=TEXT_WIDTH,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TEXT_TOKENS,
        projection_dim=TEXT_WIDTH,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=1,
    )
    encoder = CLIPTextModel(config)
    torch.nn.init.normal_(encoder.get_input_embeddings().weight, std=WORD_SIZE)
    return encoder


def build_denoiser() -> UNet3DConditionModel:
    """Return a fresh denoiser that starts as the zero function."""
    unet = UNet3DConditionModel(
        sample_size=4,
        in_channels=LATENT_CHANNELS,
        out_channels=LATENT_CHANNELS,
        down_block_types=("CrossAttnDownBlock3D", "CrossAttnDownBlock3D"),
        up_block_types=("CrossAttnUpBlock3D", "CrossAttnUpBlock3D"),
        block_out_channels=(96, 128),
        layers_per_block=1,
        norm_num_groups=16,
        cross_attention_dim=TEXT_WIDTH,
        attention_head_dim=4,
    )
    torch.nn.init.zeros_(unet.conv_out.weight)
    torch.nn.init.zeros_(unet.conv_out.bias)
    mark_frames(unet)
    return unet


def mark_frames(unet: UNet3DConditionModel) -> None:
    """Start the convolutions over time so that their zero padding tells the frames apart.

    A 3D UNet has no positions in time. Its convolutions over time start as the identity, behind norms without a
    constant part, so that padding leaves no mark: in 1,500 steps it learned what moves, and nothing of where to.
    A random constant behind each norm ends at the first and the last frame, and so numbers them all.
    """
    for module in unet.modules():
        if isinstance(module, TemporalConvLayer):
            for part in (module.conv1, module.conv2, module.conv3, module.conv4):
                torch.nn.init.normal_(part[0].bias)
            module.conv4[-1].reset_parameters()


def build_scheduler() -> DDIMScheduler:
    """Return ZeroScope's scheduler, with the end of the schedule at pure noise."""
    return DDIMScheduler(
        beta_start=0.00085,
        beta_end=0.012,
        beta_schedule="scaled_linear",
        prediction_type="v_prediction",
        rescale_betas_zero_snr=True,
        timestep_spacing="trailing",
        clip_sample=False,
        set_alpha_to_one=True,
    )


def encode(vae: Any, clips: Tensor) -> tuple[Tensor, Tensor]:
    """Return means and deviations (batch, channels, frames, height, width) of the latents of clips."""
    batch, _, frames = clips.shape[:3]
    posterior = vae.encode(clips.transpose(1, 2).flatten(0, 1)).latent_dist
    mean, deviation = (x.unflatten(0, (batch, frames)).transpose(1, 2) for x in (posterior.mean, posterior.std))
    return mean, deviation


def decode(vae: Any, latents: Tensor) -> Tensor:
    """Return the clips of latents."""
    batch, _, frames = latents.shape[:3]
    pixels: Tensor = vae.decode(latents.transpose(1, 2).flatten(0, 1)).sample.unflatten(0, (batch, frames))
    return pixels.transpose(1, 2)


UNET = ModelFamily(
    NAME, FRAMES, SIZE, TEXT_TOKENS, build_vae, build_text_encoder, build_denoiser, build_scheduler, encode, decode,
    pipeline=TextToVideoSDPipeline, component="unet", clip_vae=False,
)  # fmt: skip
