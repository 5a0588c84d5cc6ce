"""The strength that removes the concept whole, calibrated on pairs that are left out."""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import MAX_CALIBRATED_STRENGTH

from .refusal import exact_rows
from .rows import GroupRows, Sides

# A concept is erased whole if the strength covers the pairs up to this quantile; the worst pair alone is too noisy.
COVERED_PAIRS = 0.9


def calibrate_strength(differences: Sequence[Sequence[Tensor]], build: Callable[[tuple[int, ...]], Direction]) -> float:
    """Return the strength that removes the concept whole from a pair that the direction was not made from.

    For each pair i the direction is made from the other pairs. `share_i = max_t(a . (c_it - s_i))`, over the tokens t
    that carry the concept, is the part of the concept that strength 1 removes from pair i, since `a . w = 1`, and
    `1 / share_i` the strength that removes all of it, taken from 1 to 2. The largest and not the mean: tokens beside
    the concept's own, of a contextual encoder, hold some of it and lose as much of it as they hold. The result is the
    0.9 quantile over the pairs.

    Args:
        differences: Of each pair the tokens that carry the concept less what stands in their place, shape
            (tokens, features), at each step at which the pair was recorded; shares are means over the steps.
        build: Makes a direction from the pairs with the given indices; its first row is read, and its first write is
            the concept whole.

    Returns:
        Strength from 1 to 2; 1 if there is only one pair, since nothing can be left out.
    """
    if len(differences) < 2:
        return 1.0
    strengths = []
    for left_out, steps in enumerate(differences):
        others = build(tuple(index for index in range(len(differences)) if index != left_out))
        strengths.append(1 / min(max(concept_share(others.read[0], steps), 1 / MAX_CALIBRATED_STRENGTH), 1.0))
    return float(torch.tensor(strengths, dtype=torch.float64, device="cpu").quantile(COVERED_PAIRS))


def concept_share(read: Tensor, steps: Sequence[Tensor]) -> float:
    """Return the part of a pair's concept that strength 1 removes, `max_t(a . (c_t - s))`, the mean over the steps.

    Args:
        read: What knows the concept, a direction's first row, shape (features,).
        steps: The tokens that carry the concept less what stands in their place, shape (tokens, features), at each
            step at which the pair was recorded.
    """
    read = exact_rows(read)
    largest = [float((exact_rows(rows).to(read.device) @ read).max()) for rows in steps]
    return sum(largest) / len(largest)


def pair_shares(rows: GroupRows, direction: Direction) -> list[float]:
    """Return the part of each pair's concept that strength 1 removes from it (`concept_share`).

    Args:
        rows: What a group reads.
        direction: Its rows know the concept, each as some of the pairs say it: what they read adds up.
    """
    return [concept_share(direction.read.sum(0), steps) for steps in concept_differences(rows)]


def concept_differences(rows: GroupRows) -> list[list[Tensor]]:
    """Return, of each pair at each step, the tokens that carry the concept less what stands in their place.

    Their mean where it is not text: a picture has hundreds of tokens, of which the largest is noise.
    """
    return [[_difference(sides, rows.kind) for sides in pair] for pair in rows.pairs]


def _difference(sides: Sides, kind: str) -> Tensor:
    concept = sides.concept
    if kind != "text":
        return (concept.concept - concept.counterpart)[None]
    return sides.unsafe[concept.unsafe_index] - concept.counterpart
