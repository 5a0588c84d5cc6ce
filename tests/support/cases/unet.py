"""Tiny whole pipelines around a UNet: AnimateDiff, PIA, ZeroScope, I2VGen-XL, SVD, Text2Video-Zero."""

from __future__ import annotations

from math import inf
from typing import Any

import diffusers
from diffusers import (
    AutoencoderKL,
    AutoencoderKLTemporalDecoder,
    ControlNetModel,
    DDIMScheduler,
    EulerDiscreteScheduler,
    I2VGenXLUNet,
    MotionAdapter,
    SparseControlNetModel,
    UNet2DConditionModel,
    UNet3DConditionModel,
    UNetSpatioTemporalConditionModel,
)
from tiny_denoisers import SDXL, SVD, two_levels
from tiny_encoders import WIDTH, clip_encoder, clip_tokenizer, clip_vision, made

from whole import Whole, picture

TEXT = {"cross_attention_dim": WIDTH}
TWO_D = two_levels("2D", attention_head_dim=4, **TEXT)
LEVELS = TWO_D["block_out_channels"]
CONTROL = {
    **TEXT, "block_out_channels": LEVELS, "layers_per_block": 1, "norm_num_groups": 2,
    "conditioning_embedding_out_channels": (8, 8),
}  # fmt: skip


def parts(**changes: Any) -> dict[str, Any]:
    """The components of Stable Diffusion, with a VAE that halves each side."""
    vae = AutoencoderKL(
        block_out_channels=(8, 8), down_block_types=("DownEncoderBlock2D",) * 2,
        up_block_types=("UpDecoderBlock2D",) * 2, norm_num_groups=2, sample_size=16,
    )  # fmt: skip
    return {
        "vae": vae,
        "text_encoder": clip_encoder(WIDTH),
        "tokenizer": clip_tokenizer(),
        "scheduler": DDIMScheduler(clip_sample=False),
        **changes,
    }


def with_motion(**changes: Any) -> dict[str, Any]:
    motion = MotionAdapter(
        block_out_channels=LEVELS, motion_layers_per_block=1, motion_norm_num_groups=2, motion_num_attention_heads=2,
        conv_in_channels=changes.pop("conv_in_channels", None),
    )  # fmt: skip
    return parts(**{"unet": UNet2DConditionModel(sample_size=8, **TWO_D), "motion_adapter": motion, **changes})


def control_net() -> ControlNetModel:
    blocks = ("CrossAttnDownBlock2D", "DownBlock2D")
    return ControlNetModel(down_block_types=blocks, attention_head_dim=4, **CONTROL)


@made
def make_animate_diff() -> Any:
    return diffusers.AnimateDiffPipeline(**with_motion())


@made
def make_animate_diff_pag() -> Any:
    return diffusers.AnimateDiffPAGPipeline(**with_motion(), pag_applied_layers=["mid"])


@made
def make_animate_diff_video() -> Any:
    return diffusers.AnimateDiffVideoToVideoPipeline(**with_motion())


@made
def make_animate_diff_control() -> Any:
    return diffusers.AnimateDiffControlNetPipeline(**with_motion(controlnet=control_net()))


@made
def make_animate_diff_video_control() -> Any:
    return diffusers.AnimateDiffVideoToVideoControlNetPipeline(**with_motion(controlnet=control_net()))


@made
def make_animate_diff_sparse() -> Any:
    blocks = ("CrossAttnDownBlockMotion", "DownBlockMotion")
    net = SparseControlNetModel(
        down_block_types=blocks, conditioning_channels=3, use_simplified_condition_embedding=False,
        num_attention_heads=2, motion_num_attention_heads=2, **CONTROL,
    )  # fmt: skip
    return diffusers.AnimateDiffSparseControlNetPipeline(**with_motion(controlnet=net))


@made
def make_pia() -> Any:
    return diffusers.PIAPipeline(**with_motion(conv_in_channels=9))


def xl_parts(**changes: Any) -> dict[str, Any]:
    """Two text encoders, whose streams stand side by side, and the pooled text of the second."""
    return {
        "text_encoder": clip_encoder(WIDTH // 2),
        "text_encoder_2": clip_encoder(WIDTH // 2, projection=WIDTH // 2),
        "tokenizer_2": clip_tokenizer(),
        **changes,
    }


def xl_unet() -> UNet2DConditionModel:
    time_ids = 6 * SDXL["addition_time_embed_dim"]
    config = {**TWO_D, **SDXL, "projection_class_embeddings_input_dim": time_ids + WIDTH // 2}
    return UNet2DConditionModel(sample_size=8, **config)


@made
def make_animate_diff_xl() -> Any:
    return diffusers.AnimateDiffSDXLPipeline(**with_motion(**xl_parts(unet=xl_unet())))


def unet_3d() -> UNet3DConditionModel:
    return UNet3DConditionModel(sample_size=8, **two_levels("3D", attention_head_dim=4, **TEXT))


@made
def make_zeroscope() -> Any:
    return diffusers.TextToVideoSDPipeline(**parts(unet=unet_3d()))


@made
def make_zeroscope_video() -> Any:
    return diffusers.VideoToVideoSDPipeline(**parts(unet=unet_3d()))


@made
def make_i2vgen() -> Any:
    unet = I2VGenXLUNet(sample_size=8, **two_levels("3D", attention_head_dim=4, **TEXT))
    made_of = parts(unet=unet)
    # The picture's latents stand beside the prompt: without noise of their own the sites read the prompt alone.
    for parameter, value in zip(made_of["vae"].quant_conv.parameters(), (0.0, -30.0), strict=True):
        parameter.data[4:] = value
    return diffusers.I2VGenXLPipeline(**made_of, **clip_vision(WIDTH))


@made
def make_svd() -> Any:
    vae = AutoencoderKLTemporalDecoder(block_out_channels=(32, 32), down_block_types=("DownEncoderBlock2D",) * 2)
    unet = UNetSpatioTemporalConditionModel(**{**SVD, "cross_attention_dim": 16, "in_channels": 8})
    scheduler = EulerDiscreteScheduler(
        prediction_type="v_prediction", sigma_max=700.0, sigma_min=0.002, steps_offset=1, timestep_spacing="leading",
        timestep_type="continuous", use_karras_sigmas=True,
    )  # fmt: skip
    return diffusers.StableVideoDiffusionPipeline(vae=vae, unet=unet, scheduler=scheduler, **clip_vision(16))


@made
def make_zero() -> Any:
    unet = UNet2DConditionModel(sample_size=8, **TWO_D)
    return diffusers.TextToVideoZeroPipeline(
        **parts(unet=unet), safety_checker=None, feature_extractor=None, requires_safety_checker=False
    )


@made
def make_zero_xl() -> Any:
    return diffusers.TextToVideoZeroSDXLPipeline(**parts(**xl_parts(unet=xl_unet())))


SIZE = {"height": 16, "width": 16, "num_inference_steps": 2}
FRAMES = {**SIZE, "num_frames": 2}
CLIP = [picture(number) for number in range(2)]
VIDEO = {**SIZE, "video": CLIP, "strength": 1.0}
ZERO = {**SIZE, "video_length": 2, "t0": 0, "t1": 1}
GUIDED = {**ZERO, "guidance_scale": 7.5}  # it fails without guidance

CASES = (
    Whole("AnimateDiffPipeline", "AnimateDiff", make_animate_diff, FRAMES),
    Whole("AnimateDiffPAGPipeline", "AnimateDiff", make_animate_diff_pag, FRAMES),
    Whole("AnimateDiffVideoToVideoPipeline", "AnimateDiff", make_animate_diff_video, VIDEO, takes="video"),
    Whole("AnimateDiffControlNetPipeline", "AnimateDiff", make_animate_diff_control,
          {**FRAMES, "conditioning_frames": CLIP}, takes="frames for the ControlNet",
          left=0.9),  # it reads the prompt too
    Whole("AnimateDiffVideoToVideoControlNetPipeline", "AnimateDiff", make_animate_diff_video_control,
          {**VIDEO, "conditioning_frames": CLIP}, takes="video, and frames for the ControlNet",
          left=0.9),
    Whole("AnimateDiffSparseControlNetPipeline", "AnimateDiff", make_animate_diff_sparse,
          {**FRAMES, "conditioning_frames": CLIP[:1], "controlnet_frame_indices": [0]},
          takes="frames for the ControlNet"),
    Whole("AnimateDiffSDXLPipeline", "AnimateDiff", make_animate_diff_xl, FRAMES),
    Whole("PIAPipeline", "PIA", make_pia, FRAMES, takes="image", pictures=True),
    Whole("TextToVideoSDPipeline", "ZeroScope", make_zeroscope, FRAMES),
    Whole("VideoToVideoSDPipeline", "ZeroScope", make_zeroscope_video,
          {"num_inference_steps": 2, "video": CLIP, "strength": 1.0}, takes="video"),
    Whole("I2VGenXLPipeline", "I2VGen-XL", make_i2vgen,
          {**FRAMES, "clip_skip": None, "image": CLIP[0]}, takes="image", pictures=True,
          remarks="pass `clip_skip=None`: its default fails with transformers 5"),
    Whole("StableVideoDiffusionPipeline", "Stable Video Diffusion", make_svd, {**FRAMES, "height": 8, "width": 8},
          takes="image", pictures=True, reads_text=False, left=inf, spared=inf),
    Whole("TextToVideoZeroPipeline", "Text2Video-Zero", make_zero, GUIDED),
    Whole("TextToVideoZeroSDXLPipeline", "Text2Video-Zero", make_zero_xl, ZERO,
          run={"output_type": "np"}),  # with "latent" it leaves its attention processors behind
)  # fmt: skip
