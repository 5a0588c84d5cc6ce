"""The controls, which must fail: a random direction of the same rank and norm, and a destroyed model."""

import contextlib
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.pipelines.sites import denoisers

from .arm import Arm, adapter_arm, check_unedited

WHOLE_NUMBERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}  # by bytes


def random_arm(adapter: UnlearningAdapter, strength: float | None = None, fused: bool = False, seed: int = 0) -> Arm:
    """Return the arm of a random direction, as strong as the adapter and at the same sites.

    If it erases as much as the adapter, then any edit of this size erases, and the adapter's result proves nothing.
    """
    control = random_adapter(adapter, seed)
    return adapter_arm(control, strength, fused, "control", "control: random direction", seed=seed)


def random_adapter(adapter: UnlearningAdapter, seed: int = 0) -> UnlearningAdapter:
    """Return an adapter whose directions are those of another one, turned at random.

    Reads and writes of a site are turned by one random rotation Q, a' = a Q and w' = w Q, so that rank, norms and the
    angles between reads and writes are what they were; only where they point is random. Sites that share a direction
    share the turned one, and each keeps its gain.

    Args:
        adapter: The adapter.
        seed: Seed of the rotations.
    """
    generator = torch.Generator("cpu").manual_seed(seed)
    rotated: dict[bytes, Direction] = {}
    directions = {}
    for site, direction in adapter.directions.items():
        key = direction.read.cpu().numpy().tobytes() + direction.write.cpu().numpy().tobytes()
        if key not in rotated:
            rotated[key] = turn(direction, generator)
        same = rotated[key]
        directions[site] = same if same.gain == direction.gain else replace(same, gain=direction.gain)
    return replace(adapter, info=replace(adapter.info, method="random"), directions=directions, lora_B={})


def turn(direction: Direction, generator: torch.Generator) -> Direction:
    """Turn reads and writes of a direction by one random rotation.

    With the thin QR factorisation [a; w]^T = Q R, the rows a = R_a^T Q^T become R_a^T P^T, P random orthonormal.
    """
    rows = torch.cat([direction.read, direction.write]).double().cpu()
    basis, factor = torch.linalg.qr(rows.T)
    fresh = torch.linalg.qr(torch.randn(basis.shape, generator=generator, dtype=torch.float64, device="cpu"))[0]
    read, write = (factor.T @ fresh.T).split(direction.rank)
    write = read if direction.orthogonal else write
    return replace(direction, read=read.float().contiguous(), write=write.float().contiguous())


def destroyed_arm(share: float = 0.5, seed: int = 0) -> Arm:
    """Return the arm of a destroyed model: a random part of the denoiser's weights changes its sign.

    That adds noise of the size of the weights, -2 W at random places, and changes no norm. Signs are turned back when
    the arm ends, bit for bit and without a copy of the model. A destroyed model does not show the concept either. If
    this arm counts as erased, the detectors count rubbish as success.

    Args:
        share: Share of the weights whose sign changes, above 0 and at most 1.
        seed: Seed of the choice.
    """
    if not 0 < share <= 1:
        raise EvaluationError(f"Expected the share of the weights to be above 0 and at most 1, but got {share!r}.")

    @contextlib.contextmanager
    def enter(pipe: Any) -> Iterator[None]:
        check_unedited(pipe)
        weights = destructible_weights(pipe)
        flipped = 0
        try:
            for flipped, weight in enumerate(weights, start=1):  # noqa: B007 - counts what must be turned back
                flip_signs(weight, share, seed + flipped)
            yield
        finally:
            for index, weight in enumerate(weights[:flipped], start=1):
                flip_signs(weight, share, seed + index)

    return Arm(enter, "control", "control: destroyed model", details={"share": share, "seed": seed})


def destructible_weights(pipe: Any) -> list[Tensor]:
    """Return all weights of a pipeline's denoisers, each once: floating-point parameters with two or more axes.

    Raises:
        EvaluationError: If there are none, or they are offloaded: a hook would bring them back as they were.
    """
    weights: dict[int, Tensor] = {}
    for name, network in denoisers(pipe).items():
        for path, parameter in network.named_parameters():
            if parameter.is_meta:
                raise EvaluationError(
                    f"The weight {name}.{path} is offloaded and cannot be destroyed for a moment. "
                    "Leave this control out, which makes the report void, or load the denoiser as a whole."
                )
            if type(parameter) is nn.Parameter and parameter.ndim > 1 and parameter.is_floating_point():
                weights[id(parameter)] = parameter
    if not weights:
        raise EvaluationError("The denoiser has no floating-point weights that could be destroyed for a control.")
    return list(weights.values())


@torch.no_grad()
def flip_signs(weight: Tensor, share: float, seed: int) -> None:
    """Change the sign of a random share of a weight's entries in place; twice is bit for bit not at all."""
    generator = torch.Generator("cpu").manual_seed(seed)
    whole = WHOLE_NUMBERS[weight.element_size()]  # bits, so that what is no number keeps its bits as well
    sign = torch.iinfo(whole).min
    for row in weight:
        flips = torch.rand(row.shape, generator=generator, dtype=torch.float32, device="cpu") < share
        row.view(whole).bitwise_xor_(flips.to(row.device, whole) * sign)
