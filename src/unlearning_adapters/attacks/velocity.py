"""The loss that a flow-matching denoiser is trained with, through the arguments of the pipeline's own call."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.partial_run import PartialRun, StopRun

from .subject import Subject, one_denoiser
from .target import Ask

INPUTS = ("hidden_states", "timestep", "encoder_hidden_states")


@dataclass(frozen=True)
class Examples:
    """Clips of a concept, made by the base.

    Args:
        asks: What was asked for; they name the concept.
        latents: Latents of shape (clips, ...), as the denoiser reads them.
        starts: Latents of the target's named prompts, in their order, for a start that is no noise.
    """

    asks: tuple[Ask, ...]
    latents: Tensor
    starts: Tensor


@dataclass(frozen=True)
class Denoising:
    """A denoiser, and how its pipeline calls it.

    Args:
        network: The denoiser.
        others: Arguments that stay the same, such as `return_dict`.
        scale: Timestep of pure noise.
    """

    network: nn.Module
    others: dict[str, Any]
    scale: float

    def loss(self, clean: Tensor, embeds: Tensor, generator: torch.Generator) -> Tensor:
        """Return the mean squared error of the velocity at random noise levels.

        E |v(x_s, s) - (noise - x_0)|^2 with x_s = (1 - s) x_0 + s noise, s logit-normal.
        """
        noise = torch.randn(clean.shape, generator=generator).to(clean)
        level = torch.sigmoid(torch.randn(len(clean), generator=generator)).to(clean)
        spread = level.view(-1, *[1] * (clean.ndim - 1))
        noisy = (1 - spread) * clean + spread * noise
        call = {**self.others, "hidden_states": noisy, "timestep": level * self.scale, "encoder_hidden_states": embeds}
        found = self.network(**call)
        velocity = found[0] if isinstance(found, tuple) else found.sample
        error: Tensor = (velocity.float() - (noise - clean).float()).square().mean()
        return error


def denoising_of(subject: Subject, clean: Tensor) -> Denoising:
    """Return how the pipeline calls its denoiser.

    Raises:
        EvaluationError: If it is no flow-matching denoiser that reads latents and text embeddings as they are.
    """
    name = type(subject.pipe).__name__
    _, network = one_denoiser(subject.pipe)
    scheduler = subject.pipe.scheduler
    if "FlowMatch" not in type(scheduler).__name__ and not getattr(scheduler.config, "use_flow_sigmas", False):
        raise EvaluationError(f"{name} has the scheduler {type(scheduler).__name__}, which is not of flow matching.")
    call = _first_call(subject, network)
    missing = [key for key in INPUTS if not isinstance(call.get(key), Tensor)]
    if missing:
        raise EvaluationError(f"{name} gives its denoiser no `{missing[0]}`, so that it cannot be trained through.")
    found, wanted = tuple(call["hidden_states"].shape[1:]), tuple(clean.shape[1:])
    if found != wanted or call["timestep"].ndim != 1:
        raise EvaluationError(
            f"{name} gives its denoiser latents of shape {found} and returns latents of shape {wanted}; "
            "attacks that train through the denoiser need them equal."
        )
    others = {key: value for key, value in call.items() if key not in INPUTS}
    return Denoising(network, others, float(scheduler.config.num_train_timesteps))


def _first_call(subject: Subject, network: nn.Module) -> dict[str, Any]:
    """Return the arguments of the denoiser's first call, which is then not made."""
    calls: list[dict[str, Any]] = []

    def stop(_: nn.Module, arguments: tuple[Any, ...], named: dict[str, Any]) -> None:
        if not arguments:
            calls.append(named)
        raise StopRun

    handle = network.register_forward_pre_hook(stop, with_kwargs=True)
    try:
        PartialRun(subject.pipe, subject.call, any_video=False)(["a"], [0])
    finally:
        handle.remove()
    return calls[0] if calls else {}


def pick(count: int, batch: int, generator: torch.Generator) -> Sequence[int]:
    """Return the indices of one batch, each at most once."""
    return [int(index) for index in torch.randperm(count, generator=generator)[:batch]]
