"""The methods: from the rows that a group of sites read to a direction and a strength."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from .adapter import Direction
from .config import BuildConfig
from .directions import (
    calibrate_strength,
    concept_rows,
    cpca_direction,
    leace_direction,
    mean_direction,
    pca_direction,
    pooled_refusal_vector,
    random_direction,
    refusal_vector,
    ridge_direction,
    token_differences,
)

NEEDS_NEUTRAL = ("ridge", "cpca")


@dataclass(frozen=True)
class GroupRows:
    """What the sites of one group read.

    Args:
        unsafe: Rows of the unsafe side of each pair, shape (tokens, features) each.
        safe: Rows of the safe side of each pair.
        neutral: Rows of all neutral prompts, shape (rows, features).
    """

    unsafe: tuple[Tensor, ...]
    safe: tuple[Tensor, ...]
    neutral: Tensor

    def pairs(self, indices: Sequence[int]) -> "GroupRows":
        """Return the same with some of the pairs only."""
        return GroupRows(tuple(self.unsafe[i] for i in indices), tuple(self.safe[i] for i in indices), self.neutral)


def find_direction(rows: GroupRows, config: BuildConfig, generator: torch.Generator) -> Direction:
    """Return the direction of a concept in the input space of a group of sites, by the method of `config`.

    Args:
        rows: What the sites read.
        config: Method and its settings.
        generator: Source of randomness of the method "random".

    Raises:
        ConceptError: If the two sides of the pairs read alike.
    """
    return _FINDERS[config.method](rows, config, generator)


def find_strength(rows: GroupRows, config: BuildConfig, generator: torch.Generator) -> float:
    """Return the strength of `config`; for "ridge" without one, that which removes the concept from left-out pairs."""
    if config.strength is not None:
        return config.strength
    if config.method != "ridge":
        return 1.0
    found = [concept_rows(unsafe, safe) for unsafe, safe in zip(rows.unsafe, rows.safe, strict=True)]
    return calibrate_strength(
        [(item.concept, item.counterpart) for item in found],
        lambda others: find_direction(rows.pairs(others), config, generator),
    )


def _mean(rows: GroupRows, _config: BuildConfig, _generator: torch.Generator) -> Direction:
    return mean_direction(pooled_refusal_vector(rows.unsafe, rows.safe))


def _pca(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    r = pooled_refusal_vector(rows.unsafe, rows.safe)
    return pca_direction(_differences(rows), r, config.components, config.rank)


def _cpca(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    r = pooled_refusal_vector(rows.unsafe, rows.safe)
    neutral = rows.neutral if len(rows.neutral) else torch.cat(rows.safe)
    return cpca_direction(_differences(rows), neutral, r, config.components, config.contrast)


def _ridge(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    found = [concept_rows(unsafe, safe) for unsafe, safe in zip(rows.unsafe, rows.safe, strict=True)]
    r = refusal_vector([(item.concept, item.counterpart) for item in found])
    kept = torch.cat([rows.neutral, *rows.safe])
    differences = _differences(rows) if config.rank > 1 else None
    return ridge_direction(r, kept, config.epsilon, rank=config.rank, difference_rows=differences)


def _leace(rows: GroupRows, _config: BuildConfig, _generator: torch.Generator) -> Direction:
    return leace_direction(torch.cat(rows.unsafe), torch.cat(rows.safe))


def _random(rows: GroupRows, _config: BuildConfig, generator: torch.Generator) -> Direction:
    return random_direction(rows.neutral.shape[1], generator)


_FINDERS: dict[str, Callable[[GroupRows, BuildConfig, torch.Generator], Direction]] = {
    "mean": _mean,
    "pca": _pca,
    "cpca": _cpca,
    "ridge": _ridge,
    "leace": _leace,
    "random": _random,
}


def _differences(rows: GroupRows) -> Tensor:
    return torch.cat([token_differences(unsafe, safe) for unsafe, safe in zip(rows.unsafe, rows.safe, strict=True)])
