"""Generate ShapeWorld clips through the pipeline's own `__call__`, prompt by prompt with a seed each."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt

# The shipped defaults: `pipe(prompt, **GENERATION)`.
GENERATION: dict[str, Any] = {
    "height": 64,
    "width": 64,
    "num_frames": 9,
    "num_inference_steps": 12,
    "guidance_scale": 3.0,
    "max_sequence_length": 32,
}
# The same for the models of other classes, which `train_family` makes; they are smaller.
OTHERS: dict[str, dict[str, Any]] = {
    "TextToVideoSDPipeline": {
        "height": 32,
        "width": 32,
        "num_frames": 5,
        "num_inference_steps": 12,
        "guidance_scale": 3.0,
    },
    "CogVideoXPipeline": {
        "height": 32,
        "width": 32,
        "num_frames": 9,
        "num_inference_steps": 12,
        "guidance_scale": 2.0,  # at 3 circles are drawn out to diamonds
        "max_sequence_length": 24,
    },
}


def generation_of(pipe: Any) -> dict[str, Any]:
    """Return the call arguments of a ShapeWorld model, known by its name, and none for any other pipeline."""
    config: Any = getattr(pipe, "config", None) or {}
    name = str(config.get("_name_or_path") or "").rstrip("/").rpartition("/")[2]
    return dict(OTHERS.get(type(pipe).__name__, GENERATION)) if name.startswith("shapeworld") else {}


def prompt_length(call: Mapping[str, Any]) -> dict[str, Any]:
    """Return of the arguments of a call the length that prompts are padded to, which a build should share."""
    return {name: call[name] for name in ("max_sequence_length",) if name in call}


def generate_latents(
    pipe: Any, prompts: Sequence[LabelledPrompt], batch_size: int = 16, progress: str | None = None, **settings: Any
) -> Tensor:
    """Return the latents of one clip per prompt.

    Args:
        pipe: A ShapeWorld pipeline, edited or not.
        prompts: What to ask for; each has its own seed, so that a batch's composition does not matter.
        batch_size: Number of clips per call.
        progress: Label of a progress bar, None for none.
        settings: Call arguments that replace those of `GENERATION`.

    Returns:
        Latents of shape (prompts, channels, latent frames, latent height, latent width), on the CPU.
    """
    call = {**GENERATION, **settings, "output_type": "latent"}
    return torch.cat([frames.cpu() for frames in run_batches(pipe, prompts, batch_size, progress, **call)])


@torch.no_grad()
def run_batches(
    pipe: Any, prompts: Sequence[LabelledPrompt], batch_size: int = 16, progress: str | None = None, **call: Any
) -> list[Any]:
    """Return the frames of each call of the pipeline, with the prompts in batches and a generator for each."""
    shown = dict(pipe._progress_bar_config) if hasattr(pipe, "_progress_bar_config") else {}
    pipe.set_progress_bar_config(disable=True)
    bar = tqdm(total=len(prompts), desc=progress, disable=progress is None, unit="clip")
    rows: list[Any] = []
    try:
        for start in range(0, len(prompts), batch_size):
            batch = prompts[start : start + batch_size]
            generators = [torch.Generator().manual_seed(prompt.seed) for prompt in batch]
            rows.append(pipe([p.prompt for p in batch], generator=generators, **call).frames)
            bar.update(len(batch))
    finally:
        bar.close()
        pipe.set_progress_bar_config(**{"disable": False, **shown})
    return rows


@torch.no_grad()
def decode_latents(pipe: Any, latents: Tensor, batch_size: int = 16) -> list[NDArray[np.uint8]]:
    """Return the clips (frames, height, width, 3) that latents stand for, as `WanPipeline` itself decodes them."""
    vae = pipe.vae
    mean, std = (torch.tensor(v).view(1, -1, 1, 1, 1) for v in (vae.config.latents_mean, vae.config.latents_std))
    clips: list[NDArray[np.uint8]] = []
    for batch in latents.split(batch_size):
        decoded = vae.decode((batch * std + mean).to(vae.device, vae.dtype)).sample
        frames = pipe.video_processor.postprocess_video(decoded, output_type="np")
        clips += [np.rint(clip * 255).astype(np.uint8) for clip in frames]
    return clips


def generate_clips(pipe: Any, prompts: Sequence[LabelledPrompt], **settings: Any) -> list[NDArray[np.uint8]]:
    """Return one clip per prompt; arguments as in `generate_latents`."""
    if type(pipe).__name__ not in OTHERS:
        return decode_latents(pipe, generate_latents(pipe, prompts, **settings))
    outputs = run_batches(pipe, prompts, output_type="np", **{**OTHERS[type(pipe).__name__], **settings})
    return [np.rint(np.asarray(clip) * 255).astype(np.uint8) for frames in outputs for clip in frames]
