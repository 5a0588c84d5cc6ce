"""CastWorld's VAE: the embedded model's, trained further on frames and then on clips of the cast."""

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from diffusers import AutoencoderKLWan
from torch import Tensor

from unlearning_adapters.shapeworld.cast.roster import look_alikes
from unlearning_adapters.shapeworld.cast.scenes import CastScene, render, sample_scene, without_foreground
from unlearning_adapters.shapeworld.cast.sprites import EMBLEMS
from unlearning_adapters.shapeworld.models.load import load_shapeworld
from unlearning_adapters.shapeworld.world.scenes import FRAMES

from .run import DEVICE, TrainingRun, learning_rate, minimise, to_tensor
from .wan_vae import vae_loss


@dataclass(frozen=True)
class CastVaeSettings:
    """Settings of the first stage: frames teach how the cast looks, then clips teach how it moves."""

    frame_steps: int = 900
    frame_batch: int = 16
    clip_steps: int = 1500
    clip_batch: int = 4
    frame_rate: float = 2e-3
    clip_rate: float = 2e-3
    warmup: int = 30
    kl: float = 1e-4
    foreground: float = 5.0  # extra weight of the pixels of characters, things and objects
    apart: float = 12.0  # and of those that tell a character from its look-alikes, or an emblem from no emblem
    seed: int = 11

    @property
    def steps(self) -> int:
        """Number of steps of both phases."""
        return self.frame_steps + self.clip_steps


def cast_batch(settings: CastVaeSettings, step: int) -> tuple[Tensor, Tensor]:
    """Return the frames, later the clips, of a step and the weight of their pixels; no step depends on another."""
    rng = np.random.default_rng((settings.seed, step))
    frames = step < settings.frame_steps
    scenes = [sample_scene(rng) for _ in range(settings.frame_batch if frames else settings.clip_batch)]
    moments: list[Any] = (
        [[index] for index in rng.integers(FRAMES, size=len(scenes))] if frames else [slice(None)] * len(scenes)
    )
    clips, weights = [], []
    for scene, moment in zip(scenes, moments, strict=True):
        clip = render(scene)[moment]
        others = [render(other)[moment] for other in confusable(scene)]
        over = differs(clip, without_foreground(scene)[moment])
        apart = np.any([differs(clip, other) for other in others], axis=0)
        clips.append(clip)
        weights.append(1.0 + settings.foreground * over + settings.apart * apart)
    return to_tensor(clips), torch.from_numpy(np.stack(weights)).float()[:, None]


def confusable(scene: CastScene) -> list[CastScene]:
    """Return the scene with each look-alike of its character, and with other emblems on its object."""
    scenes = [replace(scene, character=other) for other in look_alikes(scene.character)]
    place = EMBLEMS.index(scene.emblem) if scene.emblem else 0
    return scenes + [replace(scene, emblem=EMBLEMS[place - step]) for step in (1, 2, 3) if scene.emblem]


def differs(clip: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the pixels (frames, height, width) in which two uint8 clips differ by more than 12 in some channel."""
    return np.asarray(np.abs(clip.astype(np.int16) - other).max(axis=-1) > 12)


def train_cast_vae(run: TrainingRun, settings: CastVaeSettings) -> None:
    """Train the VAE, from the newest checkpoint if there is one."""
    torch.manual_seed(settings.seed)
    vae = load_shapeworld().vae.to(DEVICE).requires_grad_(True)

    def rate(step: int) -> float:
        late = step - settings.frame_steps
        if late < 0:
            return learning_rate(step, settings.steps, settings.warmup, settings.frame_rate)
        return learning_rate(late, settings.clip_steps, settings.warmup, settings.clip_rate)

    def loss(step: int) -> tuple[Tensor, dict[str, float]]:
        pixels, weight = cast_batch(settings, step)
        with torch.autocast(DEVICE.type, torch.bfloat16):
            return vae_loss(vae, pixels.to(DEVICE), settings, weight.to(DEVICE))

    minimise(run, "vae", vae, settings.steps, rate, loss, matrices=True)


def trained_cast_vae(run: TrainingRun) -> AutoencoderKLWan:
    """Return the VAE of the newest checkpoint, whose config has the statistics of latents if they are known."""
    state: dict[str, Any] | None = run.load("vae")
    if state is None:
        raise SystemExit(f"No VAE checkpoint in {run.folder}; run the stage 'vae' first.")
    vae = load_shapeworld().vae
    vae.load_state_dict(state["model"])
    statistics = run.load("statistics")
    if statistics is not None:
        vae.register_to_config(
            latents_mean=statistics["mean"].tolist(), latents_std=statistics["std"].tolist(), _name_or_path=""
        )
    return vae.eval()
