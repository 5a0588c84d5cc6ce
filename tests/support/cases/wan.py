"""Tiny whole pipelines of the Wan family."""

from __future__ import annotations

from typing import Any

from diffusers import (
    LucyEditPipeline,
    WanAnimatePipeline,
    WanAnimateTransformer3DModel,
    WanImageToVideoPipeline,
    WanPipeline,
    WanTransformer3DModel,
    WanVACEPipeline,
    WanVACETransformer3DModel,
    WanVideoToVideoPipeline,
)
from tiny import CALL, TEXT_DIM
from tiny_denoisers import ANIMATE, WAN
from tiny_parts import clip_vision, made, quiet, wan_parts

from whole import Whole, picture

CHANNELS = {"in_channels": 16, "out_channels": 16, "text_dim": TEXT_DIM}
IMAGE_KEYS = {"image_dim": 4, "added_kv_proj_dim": 24}
VIDEO = [picture(number) for number in range(5)]
MASK = [image.convert("L") for image in VIDEO]
LONG = {**CALL, "max_sequence_length": 512}  # with image keys, the last 512 tokens are taken for text


def denoiser(maker: Any = WanTransformer3DModel, seed: int = 0, **changes: Any) -> Any:
    return made(maker, seed=seed, **{**WAN, **CHANNELS, **changes})


def two(maker: Any = WanTransformer3DModel, **changes: Any) -> dict[str, Any]:
    """The two denoisers of Wan 2.2 and the noise level where the second takes over."""
    pair = {"transformer": denoiser(maker, **changes), "transformer_2": denoiser(maker, seed=1, **changes)}
    return {**pair, "boundary_ratio": 0.875}


def pipeline(maker: Any, **parts: Any) -> Any:
    return quiet(maker(**wan_parts(**parts)))


def wan(**parts: Any) -> WanPipeline:
    return pipeline(WanPipeline, **{"transformer": denoiser(), **parts})


def image_to_video() -> WanImageToVideoPipeline:
    """As Wan 2.1: the picture enters as tokens of CLIP, too."""
    return pipeline(WanImageToVideoPipeline, transformer=denoiser(in_channels=36, **IMAGE_KEYS), **clip_vision())


def animate() -> WanAnimatePipeline:
    transformer = denoiser(WanAnimateTransformer3DModel, **{**ANIMATE, **CHANNELS, "in_channels": 36,
                           "latent_channels": 16, "image_dim": 4})  # fmt: skip
    return pipeline(WanAnimatePipeline, transformer=transformer, **clip_vision())


def vace(**parts: Any) -> WanVACEPipeline:
    return pipeline(WanVACEPipeline, **parts)


VACE = {"vace_layers": [0], "vace_in_channels": 96}
CASES = (
    Whole("WanPipeline", "Wan", wan, CALL),
    Whole("WanPipeline", "Wan", lambda: wan(**two()), CALL, variant="two denoisers"),
    Whole("WanImageToVideoPipeline", "Wan", image_to_video, LONG, variant="image keys", takes="image", pictures=True,
          spared=0.4),  # between 500 tokens of padding a word is little
    Whole("WanImageToVideoPipeline", "Wan", lambda: pipeline(WanImageToVideoPipeline, **two(in_channels=36)), CALL,
          variant="two denoisers", takes="image", pictures=True),
    Whole("WanVideoToVideoPipeline", "Wan", lambda: pipeline(WanVideoToVideoPipeline, transformer=denoiser()),
          {"video": VIDEO, "height": 16, "width": 16, "num_inference_steps": 4, "max_sequence_length": 16},
          takes="video"),
    Whole("WanVACEPipeline", "Wan",
          lambda: vace(transformer=denoiser(WanVACETransformer3DModel, **VACE)),
          {**CALL, "video": VIDEO, "mask": MASK}, takes="video and mask", batch_size=1),
    Whole("WanVACEPipeline", "Wan", lambda: vace(**two(WanVACETransformer3DModel, **VACE)),
          {**CALL, "video": VIDEO, "mask": MASK}, variant="two denoisers", takes="video and mask", batch_size=1),
    Whole("WanAnimatePipeline", "Wan", animate,
          {"height": 16, "width": 16, "num_inference_steps": 2, "max_sequence_length": 16, "pose_video": VIDEO,
           "face_video": VIDEO, "segment_frame_length": 5},
          takes="image, pose video and face video", pictures=True, left=0.6, spared=0.4),
    Whole("LucyEditPipeline", "Wan", lambda: pipeline(LucyEditPipeline, transformer=denoiser(in_channels=32)),
          {**CALL, "video": VIDEO}, takes="video", batch_size=1),
)  # fmt: skip
