"""Pairs that say the concept in another way than the others, such as "shape without corners": a row for each."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.methods.refusal import exact_rows
from unlearning_adapters.methods.registry import METHODS
from unlearning_adapters.methods.strength import pair_shares

from .inputs import Material

REMOVED = 0.5  # all pairs of the ShapeWorld concepts lose more, but one, and that one was seen


def with_own_rows(
    material: Material,
    directions: Sequence[Direction],
    parts: Sequence[Sequence[float]],
    strength: float,
    config: BuildConfig,
) -> tuple[list[Direction], tuple[int, ...], dict[int, float]]:
    """Give pairs of which less than half is removed a row of their own, one after the other, the least removed first.

    The row reads what the pair shows and the others do not, and is solved jointly with the first one; it removes the
    pair's difference once, whatever the strength (`_written_once`). Where that would be half of the pairs or more, the
    pairs are of several concepts, and nothing is changed.

    Args:
        material: What the edit was built from.
        directions: The direction of each group, of rank 1 for text sites.
        parts: Of each group of text sites, what strength 1 removes of each pair that differs in what it reads
            (`pair_shares`); of others nothing.
        strength: The edit's strength.
        config: How the directions were found.

    Returns:
        The directions; the indices of the pairs that have a row of their own; and the pairs of which less than half is
        removed all the same, with the part.
    """
    removed = _removed_parts(material, parts, strength)
    unknown = {pair: part for pair, part in removed.items() if part < REMOVED}
    found, left, own, kept = list(directions), list(parts), list[int](), unknown
    find = METHODS[config.method].find_with_extra_rows
    while kept and find is not None:
        if 2 * (len(own) + 1) >= len(removed):
            return list(directions), (), unknown
        own.append(min(kept, key=kept.__getitem__))
        for group in range(material.groups):
            places = tuple(place for place, pair in enumerate(material.telling(group)) if pair in own)
            if parts[group] and places:
                with material.named(group):
                    rows = material.rows(group)
                    found[group] = _written_once(find(rows, config, places), strength)
                left[group] = pair_shares(rows, found[group])
        removed = _removed_parts(material, left, strength)
        kept = {pair: part for pair, part in removed.items() if part < REMOVED and pair not in own}
    return found, tuple(own), {}


def _removed_parts(material: Material, parts: Sequence[Sequence[float]], strength: float) -> dict[int, float]:
    """Return the part of each pair's concept that an edit removes, the median over the groups."""
    by_pair: dict[int, list[float]] = {}
    for group, found in enumerate(parts):
        for pair, part in zip(material.telling(group), found, strict=True) if found else ():
            by_pair.setdefault(pair, []).append(strength * part)
    return {pair: median(found) for pair, found in sorted(by_pair.items())}


def _written_once(direction: Direction, strength: float) -> Direction:
    """Return a direction that writes all rows but the first as strength 1 would, at the given one.

    The strength is that of what the pairs have in common, which other words have in part; a pair's own row knows its
    words whole. `w_j / lam + (1 - 1 / lam) q_j` in place of w_j, with q_j the shortest vector that `a_j` reads as 1 and
    the others as 0: so `read @ write.T` stays the identity, and of `w_j` once is taken.
    """
    shortest = torch.linalg.pinv(exact_rows(direction.read)).T
    write = exact_rows(direction.write)
    write = torch.cat([write[:1], write[1:] / strength + (1 - 1 / strength) * shortest[1:]])
    return replace(direction, write=write.to(direction.write))
