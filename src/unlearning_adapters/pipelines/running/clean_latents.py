"""Clean latents of a pipeline's own clips, and runs of its denoiser on noised ones, through its own loop.

No loop, schedule or conditioning is re-implemented: only what the scheduler returns is exchanged. Whatever a pipeline
does between two steps, such as adding the latents of a picture, scaling, masking or changing the expert, it does
to the exchanged latents too.
"""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from itertools import count
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.errors import DenoiserError

from .partial_run import PartialRun, StopRun

# Scheduler, step from 0, what it returned -> what to return in its place.
Exchange = Callable[[Any, int, Tensor], Tensor | None]


def clean_latents(run: PartialRun, prompts: Sequence[str] | Tensor, seeds: Sequence[int], image: Any = None) -> Tensor:
    """Return what the last step of a run returns: the clips' latents, laid out as the pipeline steps them.

    Args:
        run: The pipeline with its call, as clips are made.
        prompts: Prompts of one batch, or their text embeddings.
        seeds: Seed of the noise of each prompt.
        image: Picture for an image-to-video pipeline.

    Returns:
        Latents of shape (prompts, parts, ...), as the scheduler returns them, on the CPU: some pipelines step frames
        of a clip as parts of the batch, and all others have one part.

    Raises:
        DenoiserError: If the pipeline has no scheduler that steps.
    """
    last: list[Tensor] = []

    def keep(scheduler: Any, step: int, latents: Tensor) -> None:
        last[:] = [latents]
        if step + 1 >= len(scheduler.timesteps):
            raise StopRun  # nothing needs to be decoded

    with steps_exchanged(run, keep):
        run(prompts, seeds, image)
    if not last:
        raise DenoiserError(f"The scheduler of {type(run.pipe).__name__} was never stepped, so that no clip was made.")
    result = last[0].detach().to("cpu")
    return result.reshape(len(prompts), -1, *result.shape[1:])


def run_noised(run: PartialRun, clean: Tensor, prompts: Sequence[str] | Tensor, seed: int, image: Any = None) -> None:
    """Run the denoiser on latents that are noised to each level of the pipeline's own schedule but the first.

    x_t = add_noise(x_0, n, t), with one noise n for all copies of a prompt. The first call reads noise alone, in
    which nothing differs; hooks that want to see the others must skip it.

    Args:
        run: The pipeline with its call, without guidance.
        clean: Clean latents of shape (prompts, copies, parts, ...).
        prompts: The prompt of all copies of a clip, such as the two sides of a pair; or text embeddings of each copy.
        seed: Seed of the noise.
        image: Picture for an image-to-video pipeline.

    Raises:
        DenoiserError: If the pipeline does not make several clips of one size in a call.
    """
    maker = torch.Generator("cpu").manual_seed(seed)
    random = torch.randn(clean[:, :1].shape, generator=maker, dtype=torch.float32, device="cpu")
    copies = clean.shape[1]
    noise, clean = random.expand_as(clean).flatten(0, 2), clean.flatten(0, 2)

    def noised(scheduler: Any, step: int, latents: Tensor) -> Tensor | None:
        if step + 1 >= len(scheduler.timesteps):
            raise StopRun  # the last call was seen, and nothing needs what comes after it
        if latents.shape != clean.shape:
            raise DenoiserError(
                f"{type(run.pipe).__name__} steps latents of shape {tuple(latents.shape)} where its own clips have "
                f'{tuple(clean.shape)}, so that it cannot be run on them. Build with scope="word".'
            )
        timestep = scheduler.timesteps[step + 1 : step + 2].expand(len(latents))
        return add_noise(scheduler, clean.to(latents), noise.to(latents), timestep)

    with steps_exchanged(run, noised):
        run.repeated(prompts, seed, image, copies)


def add_noise(scheduler: Any, clean: Tensor, noise: Tensor, timesteps: Tensor) -> Tensor:
    """Return noised latents by the scheduler's own rule: of diffusion, `add_noise`; of flow matching, `scale_noise`."""
    if hasattr(scheduler, "scale_noise"):
        return torch.as_tensor(scheduler.scale_noise(clean, timesteps, noise))
    return torch.as_tensor(scheduler.add_noise(clean, noise, timesteps))


@contextmanager
def steps_exchanged(run: PartialRun, exchange: Exchange) -> Iterator[None]:
    """Let `exchange` see, and change, what the scheduler returns at each step of the runs inside."""
    before = run.around
    run.around = lambda pipe: exchanged(pipe, exchange)
    try:
        yield
    finally:
        run.around = before


@contextmanager
def exchanged(pipe: Any, exchange: Exchange) -> Iterator[None]:
    """Show what each step of a pipeline's scheduler returns, and let it be exchanged.

    Raises:
        DenoiserError: If the pipeline has no scheduler.
    """
    scheduler: Any = getattr(pipe, "scheduler", None)
    if not hasattr(scheduler, "step"):
        raise DenoiserError(
            f'{type(pipe).__name__} has no scheduler with steps, which scope="concept" needs. Build with scope="word".'
        )
    kind: Any = type(scheduler)
    indices = count()

    @functools.wraps(kind.step)  # pipelines look at its parameters
    def step(self: Any, *args: Any, **kwargs: Any) -> Any:
        output = kind.step(self, *args, **kwargs)
        if self is not scheduler:  # a copy, which steps the audio
            return output
        first = output[0] if isinstance(output, tuple) else output.prev_sample
        other = exchange(scheduler, next(indices), first)
        if other is None:
            return output
        if isinstance(output, tuple):
            return (other, *output[1:])
        output.prev_sample = other
        return output

    # A class of its own, for a function set on the scheduler would also be in its copies, and step the original.
    scheduler.__class__ = type(kind.__name__, (kind,), {"step": step, "__module__": kind.__module__})
    try:
        yield
    finally:
        scheduler.__class__ = kind
