"""Start from a clip of the concept instead of noise: video-to-video, at several noise levels.

At a low noise level every model keeps the clip that it starts from, even a model that never saw the concept. A single
number therefore misleads: compare the curve with that of the base.
"""

from dataclasses import replace
from typing import Any

import diffusers
import torch

from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.subject import AttackPoint, Subject, rebuild
from unlearning_adapters.attacks.target import Examples, Target
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.generate import ClipRequest

# Pipelines and their siblings that start from latents; those run the rest of the schedule.
VIDEO_TO_VIDEO = {"WanPipeline": "WanVideoToVideoPipeline", "CogVideoXPipeline": "CogVideoXVideoToVideoPipeline"}


def video_start(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[AttackPoint, ...]:
    """Return the rate for each share of the schedule that is denoised; the number is the noise level of the start.

    The starts are the base's own clips of the named prompts; they are denoised with these prompts, and with open ones.

    Raises:
        EvaluationError: If the pipeline has no sibling that starts from latents.
    """
    other, points = subject.on(video_to_video(subject.pipe)), []
    for kind, requests in {"named": target.named, "open": target.open_prompts}.items():
        for strength in budget.strengths if requests else ():
            starts, sigma = noised(subject, requests, examples, strength)
            verdicts = other.look(starts, target, strength=strength)
            points.append(AttackPoint.of(f"noise {sigma:.2f}, {kind}", verdicts, sigma, kind == "open"))
    return tuple(points)


def video_to_video(pipe: Any) -> Any:
    """Return the sibling of a pipeline that starts from latents, with the same denoiser."""
    name = VIDEO_TO_VIDEO.get(type(pipe).__name__)
    if name is None:
        siblings = ", ".join(VIDEO_TO_VIDEO)
        raise EvaluationError(
            f"{type(pipe).__name__} has no video-to-video sibling that is known here. Known: {siblings}."
        )
    return rebuild(getattr(diffusers, name), pipe)


def noised(
    subject: Subject, requests: tuple[ClipRequest, ...], examples: Examples, strength: float
) -> tuple[list[ClipRequest], float]:
    """Return the prompts with noised latents to start from, and their noise level.

    The schedule is cut as diffusers' video-to-video pipelines cut it: of n steps the last int(n strength) are run.
    """
    scheduler = type(subject.pipe.scheduler).from_config(subject.pipe.scheduler.config)
    count = int(subject.call.get("num_inference_steps", 50))
    scheduler.set_timesteps(count)
    first = max(count - min(int(count * strength), count), 0)
    if first >= count:
        raise EvaluationError(f"A share of {strength:g} of {count} denoising steps leaves none. Take more steps.")
    timestep, started = scheduler.timesteps[first : first + 1], []
    for request, clean in zip(requests, examples.starts, strict=True):
        noise = torch.randn(
            clean[None].shape,
            generator=torch.Generator("cpu").manual_seed(request.seed),
            dtype=torch.float32,
            device="cpu",
        )
        if hasattr(scheduler, "add_noise"):
            latents = scheduler.add_noise(clean[None], noise, timestep)
        else:
            latents = scheduler.scale_noise(clean[None], timestep, noise)
        started.append(replace(request, latents=latents))
    return started, _level(scheduler, first)


def _level(scheduler: Any, step: int) -> float:
    """Return the share of noise before a step: sigma of flow matching, sqrt(1 - k) of diffusion."""
    if hasattr(scheduler, "sigmas"):
        return float(scheduler.sigmas[step])
    return float((1 - scheduler.alphas_cumprod[scheduler.timesteps[step]]) ** 0.5)
