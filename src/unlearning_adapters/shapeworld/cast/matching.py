"""How the judge of CastWorld compares: banks of all sprites, and how badly each explains what is seen."""

from functools import lru_cache

import numpy as np

from unlearning_adapters.shapeworld.world.scenes import SIZE

from .roster import roster
from .scenes import OBJECT_PLACE, TRACKS, in_style
from .sprites import (
    CENTRE,
    EMBLEMS,
    HEIGHT,
    OBJECTS,
    WIDTH,
    Floats,
    Sprite,
    character_sprite,
    object_sprite,
    thing_sprite,
)

LEANING = 0.42  # of the way from the best to another that a clip may lie; a blend of two lies at 0.5
RIVALS = 5  # how many others the best is compared with


def rms(difference: Floats) -> Floats:
    """Return the root mean square over channels."""
    return np.asarray(np.sqrt(np.square(difference).mean(axis=-1)), dtype=np.float32)


def is_sure(errors: Floats, drawn: Floats, weight: Floats) -> bool:
    """Tell whether what is seen lies near the best drawing, and not on the way to another.

    Args:
        errors: Weighted sum of squares of each drawing's difference to what is seen, (drawings).
        drawn: The drawings, (drawings, height, width, 3).
        weight: Of each pixel, (height, width).
    """
    best, *others = np.argsort(errors)[: RIVALS + 1]
    apart = (np.square(drawn[others] - drawn[best]) * weight[..., None]).sum(axis=(1, 2, 3))
    # Noise adds the same to both errors, so that it moves nothing along the way.
    way = (errors[best] - errors[others] + apart) / (2 * np.maximum(apart, 1.0))
    return bool((way < LEANING).all())


def share_shown(seen: Floats, below: Floats, sprite: Sprite, style: str, place: tuple[int, int]) -> float:
    """Return how far a place has gone from what lies below (0) to a sprite above it (1)."""
    height, width = sprite.cover.shape
    top, left = max(0, place[0]), max(0, place[1])
    part = np.s_[top - place[0] : SIZE - place[0], left - place[1] : SIZE - place[1]]
    cover, colours = sprite.cover[part], in_style(sprite.colours[part], style)
    rows, columns = cover.shape
    area = np.s_[top : top + rows, left : left + columns]
    change = cover[..., None] * (colours - below[area])
    energy = float(np.square(change).sum())
    return float(((seen[area] - below[area]) * change).sum()) / max(energy, 1.0)


def shifted(frames: Floats, motion: str, indices: range) -> Floats:
    """Return frames moved back along a track, so that what moves so stands still; the edges are repeated."""
    columns, rows = TRACKS[motion]
    moved = []
    for index in indices:
        take_rows = np.clip(np.arange(SIZE) + rows[index], 0, SIZE - 1)
        take_columns = np.clip(np.arange(SIZE) + columns[index], 0, SIZE - 1)
        moved.append(frames[index][take_rows][:, take_columns])
    return np.stack(moved)


@lru_cache
def object_bank(style: str) -> tuple[Floats, Floats]:
    """Return colours and covers of all objects with all emblems, in a style."""
    sprites = [object_sprite(kind, emblem, style == "line") for kind in OBJECTS for emblem in EMBLEMS]
    return in_style(np.stack([s.colours for s in sprites]), style), np.stack([s.cover for s in sprites])


@lru_cache
def character_bank(style: str) -> tuple[Floats, Floats]:
    """Return colours (128, height, width, 3) and covers of all characters, in a style."""
    sprites = [character_sprite(index, style == "line") for index in range(len(roster()))]
    return in_style(np.stack([s.colours for s in sprites]), style), np.stack([s.cover for s in sprites])


@lru_cache
def visible(outlined: bool) -> Floats:
    """Return the part of a character's canvas that neither hat nor umbrella hides."""
    hidden = [thing_sprite(thing, outlined).cover for thing in ("hat", "umbrella")]
    return np.asarray(np.maximum(*hidden) == 0, dtype=np.float32)


@lru_cache
def products(style: str) -> tuple[Floats, ...]:
    """Return of each character, as rows, the products of cover a and colour c that its misfit is made of."""
    colours, covers = character_bank(style)
    a = covers[..., None]
    parts = ((a * colours) ** 2).sum(-1), a**2 * colours, covers**2, a * colours, covers
    return tuple(part.reshape(len(part), -1) for part in parts)


def free_pixels() -> Floats:
    """Return 1 where characters are looked for, and 0 in the columns of object and balloon: (size, size, 1)."""
    free = np.zeros((SIZE, SIZE, 1), dtype=np.float32)
    free[:, : OBJECT_PLACE[1]] = 1.0
    return free


def misfits(seen: Floats, below: Floats, style: str, middles: list[tuple[int, int]]) -> tuple[Floats, Floats]:
    """Return how badly each character explains what is seen around each middle (middles, characters), and how nobody.

    The sum over visible pixels of `(a (c - below) - (seen - below))^2`, expanded, so that all characters are compared
    by matrix products.
    """
    free = free_pixels()
    rest = [canvas_of(np.concatenate([free, below, seen - below], axis=-1), middle) for middle in middles]
    weight = np.stack(rest)[..., :1] * visible(style == "line")[..., None]
    below, change = np.stack(rest)[..., 1:4], np.stack(rest)[..., 4:]
    sides = (
        weight,
        -2 * weight * below,
        weight * np.square(below).sum(-1, keepdims=True),
        -2 * weight * change,
        2 * weight * (below * change).sum(-1, keepdims=True),
    )
    nothing = (weight * np.square(change)).sum(axis=(1, 2, 3))
    pairs = zip(sides, products(style), strict=True)
    errors = sum((side.reshape(len(middles), -1) @ part.T for side, part in pairs), nothing[:, None])
    return np.asarray(errors, dtype=np.float32), np.maximum(nothing, 1.0)


def canvas_of(frame: Floats, middle: tuple[int, int]) -> Floats:
    """Return the part of a frame that a canvas with its middle at a place covers; zero off the frame."""
    padded = np.pad(frame, ((HEIGHT, HEIGHT), (WIDTH, WIDTH), (0, 0)))
    top, left = middle[0] - CENTRE[0] + HEIGHT, middle[1] - CENTRE[1] + WIDTH
    return padded[top : top + HEIGHT, left : left + WIDTH]
