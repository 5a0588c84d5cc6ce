"""The method "random": the control, which must not erase."""

import torch

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import BuildConfig

from .factors import orthogonal
from .method import Method
from .rows import GroupRows


def random_direction(in_features: int, generator: torch.Generator, like: Direction | None = None) -> Direction:
    """Return the control: an orthogonal direction drawn at random, uniform over the sphere.

    Args:
        in_features: Width of the site's input.
        generator: Source of randomness, on the CPU, so that the same seed gives the same direction everywhere.
        like: Direction whose rank and device are taken; rank 1 on the CPU if None.

    Returns:
        Direction with orthonormal rows, the same for reading and writing.
    """
    rank = 1 if like is None else like.rank
    matrix = torch.randn(in_features, rank, generator=generator, dtype=torch.float64, device="cpu")
    return orthogonal(torch.linalg.qr(matrix).Q.T, torch.device("cpu") if like is None else like.read.device)


def _find(rows: GroupRows, _config: BuildConfig, generator: torch.Generator) -> Direction:
    return random_direction(rows.features, generator)


RANDOM = Method(_find, control=True)
