"""Pairs that say the concept in another way than the others, such as "shape without corners": a row for each."""

from collections.abc import Sequence
from dataclasses import replace
from statistics import median

import torch

from .adapter import Direction
from .config import BuildConfig
from .material import Material
from .methods import GroupRows, find_direction, shares
from .refusal import exact_rows

REMOVED = 0.5  # all pairs of the ShapeWorld concepts lose more, but one, and that one was seen


def removed_parts(
    material: Material, rows: Sequence[GroupRows], directions: Sequence[Direction], strength: float
) -> dict[int, float]:
    """Return the part of each pair's concept that an edit removes, the median over the groups of text sites.

    Args:
        material: What the edit was built from.
        rows: What each group reads.
        directions: The direction of each group.
        strength: The edit's strength.
    """
    parts: dict[int, list[float]] = {}
    for group, (read, direction) in enumerate(zip(rows, directions, strict=True)):
        if read.kind == "text":
            for pair, part in zip(material.telling(group), shares(read, direction), strict=True):
                parts.setdefault(pair, []).append(strength * part)
    return {pair: median(found) for pair, found in sorted(parts.items())}


def with_own_rows(
    material: Material,
    rows: Sequence[GroupRows],
    directions: Sequence[Direction],
    strength: float,
    config: BuildConfig,
) -> tuple[list[Direction], tuple[int, ...]]:
    """Give pairs of which less than half is removed a row of their own, one after the other, the least removed first.

    The row reads what the pair shows and the others do not, and is solved jointly with the first one; it removes the
    pair's difference once, whatever the strength (`_written_once`). Where that would be half of the pairs or more, the
    pairs are of several concepts, and nothing is changed.

    Args:
        material: What the edit was built from.
        rows: What each group reads.
        directions: The direction of each group, of rank 1 for text sites.
        strength: The edit's strength.
        config: How the directions were found; by "ridge" with rank 1.

    Returns:
        The directions, and the indices of the pairs that have a row of their own.
    """
    found, own = list(directions), list[int]()
    while True:
        removed = removed_parts(material, rows, found, strength)
        kept = [pair for pair, part in removed.items() if part < REMOVED and pair not in own]
        if not kept:
            return found, tuple(own)
        if 2 * (len(own) + 1) >= len(removed):
            return list(directions), ()
        own.append(min(kept, key=removed.__getitem__))
        for group, read in enumerate(rows):
            places = [place for place, pair in enumerate(material.telling(group)) if pair in own]
            if read.kind == "text" and places:
                with material.named(group):
                    joint = find_direction(replace(read, own=tuple(places)), config, torch.Generator())
                found[group] = _written_once(joint, strength)


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
