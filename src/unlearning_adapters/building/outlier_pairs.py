"""An extra row for each outlier pair: one that shows the concept in another way, such as "shape without corners"."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.methods.refusal import exact_rows
from unlearning_adapters.methods.registry import METHODS
from unlearning_adapters.methods.strength import pair_shares

from .inputs import BuildInputs

REMOVED = 0.5  # all pairs of the ShapeWorld concepts lose more, but one, and that one was seen


def with_outlier_rows(
    inputs: BuildInputs,
    directions: Sequence[Direction],
    parts: Sequence[Sequence[float]],
    strength: float,
    config: BuildConfig,
) -> tuple[list[Direction], tuple[int, ...], dict[int, float]]:
    """Add an extra row for each outlier pair: a pair of which the edit removes less than half; the smallest part first.

    The row reads what this pair shows and the other pairs do not. It is solved jointly with the first row, and removes
    the pair's difference once at any strength (`_written_once`). If half of the pairs or more are outliers, they show
    several concepts, and the directions stay as they are.

    Args:
        inputs: What the edit was built from.
        directions: The direction of each group, of rank 1 for text sites.
        parts: Of each group of text sites, what strength 1 removes of each pair that differs in what it reads
            (`pair_shares`); of others nothing.
        strength: The edit's strength.
        config: How the directions were found.

    Returns:
        The directions; the indices of the pairs that got an extra row; and, by index, the removed part of each pair
        that still loses less than half.
    """
    shares_by_pair = _removed_parts(inputs, parts, strength)
    unreached = {pair: part for pair, part in shares_by_pair.items() if part < REMOVED}
    edited, shares, outliers, survivors = list(directions), list(parts), list[int](), unreached
    find = METHODS[config.method].find_with_extra_rows
    while survivors and find is not None:
        if 2 * (len(outliers) + 1) >= len(shares_by_pair):
            return list(directions), (), unreached
        outliers.append(min(survivors, key=survivors.__getitem__))
        for group in range(inputs.groups):
            places = tuple(place for place, pair in enumerate(inputs.telling(group)) if pair in outliers)
            if parts[group] and places:
                with inputs.named(group):
                    rows = inputs.rows(group)
                    edited[group] = _written_once(find(rows, config, places), strength)
                shares[group] = pair_shares(rows, edited[group])
        shares_by_pair = _removed_parts(inputs, shares, strength)
        survivors = {pair: part for pair, part in shares_by_pair.items() if part < REMOVED and pair not in outliers}
    return edited, tuple(outliers), {}


def _removed_parts(inputs: BuildInputs, parts: Sequence[Sequence[float]], strength: float) -> dict[int, float]:
    """Return the part of each pair's concept that an edit removes, the median over the groups."""
    by_pair: dict[int, list[float]] = {}
    for group, values in enumerate(parts):
        for pair, part in zip(inputs.telling(group), values, strict=True) if values else ():
            by_pair.setdefault(pair, []).append(strength * part)
    return {pair: median(values) for pair, values in sorted(by_pair.items())}


def _written_once(direction: Direction, strength: float) -> Direction:
    """Return a direction that writes all rows but the first as strength 1 would, at the given one.

    The strength is that of what the pairs have in common, which other words have in part; the extra row of a pair holds
    its words whole. `w_j / lam + (1 - 1 / lam) q_j` in place of w_j, with q_j the shortest vector that `a_j` reads as
    1 and the others as 0: so `read @ write.T` stays the identity, and of `w_j` once is taken.
    """
    shortest = torch.linalg.pinv(exact_rows(direction.read)).T
    write = exact_rows(direction.write)
    write = torch.cat([write[:1], write[1:] / strength + (1 - 1 / strength) * shortest[1:]])
    return replace(direction, write=write.to(direction.write))
