"""What the training of a further ShapeWorld model needs to know of its architecture."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class ModelFamily:
    """One architecture of a ShapeWorld model: how its parts are made, and how they work together.

    Args:
        name: Name of the model, such as "shapeworld-unet".
        frames: Frames of a clip; the scene is the same, seen at as many even moments.
        size: Height and width of a clip in pixels; the judge takes any.
        text_tokens: Length to which its pipeline pads prompts.
        build_vae: Returns a fresh VAE.
        build_text_encoder: Returns a fresh text encoder for a vocabulary of a size.
        build_denoiser: Returns a fresh denoiser.
        build_scheduler: Returns the scheduler; it predicts v.
        encode: VAE and clips (batch, 3, frames, height, width) -> means and deviations of their latents, laid out as
            the denoiser takes them.
        decode: VAE and unscaled latents -> clips, as the pipeline decodes them.
        pipeline: Class of the pipeline.
        component: Name of the denoiser in the pipeline.
        clip_vae: Whether the VAE sees time, and must learn from clips after it has learned from frames.
    """

    name: str
    frames: int
    size: int
    text_tokens: int
    build_vae: Callable[[], Any]
    build_text_encoder: Callable[[int], torch.nn.Module]
    build_denoiser: Callable[[], torch.nn.Module]
    build_scheduler: Callable[[], Any]
    encode: Callable[[Any, Tensor], tuple[Tensor, Tensor]]
    decode: Callable[[Any, Tensor], Tensor]
    pipeline: Callable[..., Any]
    component: str
    clip_vae: bool

    def assemble(self, parts: Mapping[str, Any]) -> Any:
        """Return the pipeline of parts, of which the denoiser is named "denoiser"."""
        return self.pipeline(**{self.component if name == "denoiser" else name: part for name, part in parts.items()})
