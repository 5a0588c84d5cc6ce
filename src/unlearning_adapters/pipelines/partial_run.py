"""Run the user's own pipeline for a moment and leave no trace: no pipeline loop is re-implemented.

Guidance is off, so that every call of the denoiser is a conditional one, and the run ends by an exception from a hook
as soon as enough was seen.
"""

import inspect
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers.utils import load_image
from PIL import Image

from unlearning_adapters.config import check_keys

from .compiling import any_compiled, eager
from .isolation import own_pipeline
from .sites import denoisers

# Guidance, each kind at the value that switches it off.
GUIDANCE_OFF = {
    "guidance_scale": 1.0,
    "min_guidance_scale": 1.0,
    "max_guidance_scale": 1.0,
    "audio_guidance_scale": 1.0,
    "modality_scale": 1.0,
    "audio_modality_scale": 1.0,
    "stg_scale": 0.0,
    "audio_stg_scale": 0.0,
    "pag_scale": 0.0,
}
# Fails with guidance off (diffusers 0.42): there the first half of the batch is the unconditional prompt.
ALWAYS_GUIDED = {"TextToVideoZeroPipeline", "TextToVideoZeroSDXLPipeline"}
GUIDANCE_ONLY = {"guidance_scale_2", "negative_prompt"}  # of no use without guidance
SCHEDULE = {"sigmas", "timesteps"}
SPATIAL_FACTORS = ("vae_scale_factor_spatial", "vae_spatial_compression_ratio", "vae_scale_factor")
TEMPORAL_FACTORS = ("vae_scale_factor_temporal", "vae_temporal_compression_ratio")
SIDE_MULTIPLE = 32  # some pipelines refuse other sizes
UNET_SIDE = 8  # latents of a UNet are halved three times
COPIES = "num_videos_per_prompt"
IMAGE_ARGUMENTS = ("image", "cond_image")
FEW_STEPS = 4  # enough that both denoisers of Wan 2.2 are called (measured for shifts 3 to 12)


class StopRun(BaseException):
    """Raised in a hook to end a run; not an `Exception`, so that modular pipelines do not log it as an error."""


class PartialRun:
    """Short runs of one pipeline.

    Args:
        pipe: A diffusers pipeline.
        call_kwargs: Arguments for it, such as {"height": 480}; prompt, seed, guidance and output type are set here.
        any_video: Whether the video does not matter, so that a small one and few steps do, unless `call_kwargs` says.
        own_guidance: Whether the pipeline guides as it does for its user; otherwise guidance is off.

    Raises:
        ConfigError: If `call_kwargs` has an argument that the pipeline does not accept.
    """

    def __init__(
        self, pipe: Any, call_kwargs: Mapping[str, Any] | None, *, any_video: bool, own_guidance: bool = False
    ) -> None:
        self.pipe = pipe
        self.accepted, self.required = _parameters(pipe)
        self.image = next((name for name in IMAGE_ARGUMENTS if name in self.accepted), None)
        given = dict(call_kwargs or {})
        check_keys(f"call_kwargs for {type(pipe).__name__}", given, self.accepted)
        small = _small_video(pipe) if any_video else {}
        if SCHEDULE & set(given):
            small.pop("num_inference_steps", None)
        self.guided = type(pipe).__name__ in ALWAYS_GUIDED
        without = {} if self.guided or own_guidance else _no_guidance(self.accepted)
        self.arguments = self._only_accepted({**small, **given, **without, "output_type": "latent"})
        for name in () if own_guidance else GUIDANCE_ONLY:
            self.arguments.pop(name, None)
        self.compiled = any_compiled(pipe.components.values())

    @property
    def takes_prompt(self) -> bool:
        """Whether the pipeline reads a prompt; Stable Video Diffusion reads a picture alone."""
        return "prompt" in self.accepted

    @property
    def one_by_one(self) -> bool:
        """Whether each call gets pictures, or tensors made of them, so that prompts are passed one by one."""
        if self.image in self.arguments or self.image in self.required:
            return True
        return any(_holds_pictures(value) for name, value in self.arguments.items() if name not in SCHEDULE)

    def __call__(self, prompts: Sequence[str], seeds: Sequence[int], image: Any = None) -> bool:
        """Run until a hook raises `StopRun`, or to the end; return whether it was stopped.

        Args:
            prompts: Prompts of one batch.
            seeds: Seed of the noise of each prompt.
            image: Picture for an image-to-video pipeline, or None for the one in `call_kwargs` or a grey one.
        """
        generators = [torch.Generator("cpu").manual_seed(seed) for seed in seeds]
        batch: dict[str, Any] = {
            # One prompt as a text, not a list: some pipelines take only that.
            "prompt": prompts[0] if len(prompts) == 1 else list(prompts),
            "generator": generators[0] if len(prompts) == 1 else generators,
        }
        return self._run(batch, seeds[0], image)

    def repeated(self, prompts: Sequence[str], seed: int, image: Any = None, copies: int = 2) -> bool:
        """Run as `__call__` does, with several clips of each prompt, one after the other; their noise does not matter.

        Args:
            prompts: Prompts of one batch.
            seed: Seed of the noise.
            image: Picture for an image-to-video pipeline, or None.
            copies: Clips per prompt.
        """
        # CogVideoX takes the argument, and makes one clip per prompt all the same; one picture fits no two prompts.
        by_argument = COPIES in self.accepted and (not self.takes_prompt or image is not None)
        texts = list(prompts) if by_argument else [prompt for prompt in prompts for _ in range(copies)]
        batch: dict[str, Any] = {
            "prompt": texts[0] if len(texts) == 1 else texts,
            "generator": torch.Generator("cpu").manual_seed(seed),
        }
        return self._run({**batch, COPIES: copies} if by_argument else batch, seed, image)

    def _run(self, batch: dict[str, Any], seed: int, image: Any) -> bool:
        if self.image and image is not None:
            batch[self.image] = load_image(str(image) if isinstance(image, Path) else image)
        elif self.image in self.required and self.image not in self.arguments:
            size = (self.arguments.get("width", 256), self.arguments.get("height", 256))
            batch[str(self.image)] = Image.new("RGB", size, (128, 128, 128))
        with own_pipeline(self.pipe, seed) as pipe, eager(self.compiled):
            try:
                pipe(**{**self.arguments, **self._only_accepted(batch)})
            except StopRun:
                # The pipeline's last line, which a stopped run did not reach: offloaded models leave the device.
                if hasattr(pipe, "maybe_free_model_hooks"):
                    pipe.maybe_free_model_hooks()
                return True
        return False

    def _only_accepted(self, values: Mapping[str, Any]) -> dict[str, Any]:
        return {name: value for name, value in values.items() if name in self.accepted}


def _parameters(pipe: Any) -> tuple[set[str], set[str]]:
    """Return the names of all arguments of a pipeline's call, and of those without a default."""
    blocks: Any = getattr(pipe, "blocks", None)
    if hasattr(blocks, "input_names"):  # a modular pipeline
        inputs = [item for item in blocks.inputs if item.name]
        return {item.name for item in inputs}, {item.name for item in inputs if item.required}
    parameters = inspect.signature(pipe).parameters
    names = [name for name, item in parameters.items() if item.kind is not item.VAR_KEYWORD]
    return set(names), {name for name in names if parameters[name].default is inspect.Parameter.empty}


def _holds_pictures(value: Any) -> bool:
    if isinstance(value, (list, tuple)):
        return any(map(_holds_pictures, value))
    return isinstance(value, (Image.Image, np.ndarray, torch.Tensor))


def _no_guidance(accepted: set[str]) -> dict[str, float]:
    if "true_cfg_scale" in accepted:  # `guidance_scale` is then an embedding that the denoiser was trained with
        return {"true_cfg_scale": 1.0}
    return GUIDANCE_OFF


def _small_video(pipe: Any) -> dict[str, Any]:
    """Return arguments for the smallest video that pipelines of all kinds accept, and few steps."""
    network = next(iter(denoisers(pipe).values()))
    config: Any = getattr(network, "config", None)
    config = config if isinstance(config, Mapping) else {}  # a module that is not of diffusers may have any other
    few: dict[str, Any] = {"num_inference_steps": FEW_STEPS, "use_resolution_binning": False}
    if config.get("use_learned_positional_embeddings"):  # bound to one size
        return few
    patch = config.get("patch_size") or 1
    patch = patch[-1] if isinstance(patch, (list, tuple)) else patch
    if "unet" in pipe.components:
        patch = UNET_SIDE
    side = math.lcm(_factor(pipe, SPATIAL_FACTORS, 8) * int(patch), SIDE_MULTIPLE)
    frames = _factor(pipe, TEMPORAL_FACTORS, 1) + 1
    if hasattr(pipe, "min_duration"):  # MiniMax H3 refuses shorter videos
        frames = math.ceil(pipe.min_duration * pipe.fps)
    return {"height": side, "width": side, "num_frames": frames, **few}


def _factor(pipe: Any, names: Sequence[str], default: int) -> int:
    values = (getattr(pipe, name, None) for name in names)
    return next((int(value) for value in values if isinstance(value, (int, float))), default)
