"""The judge of CastWorld: explains a clip by what the renderer draws, piece by piece, and says so when it cannot.

The setting and the style are those that explain most pixels; the motion is the one that holds the foreground still;
character, things, object and emblem are the sprites that fit best where the motion puts them. What fits nothing, or
two things alike, is "unknown". A clip without setting or without one body (noise, blank, destroyed) is not valid.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from unlearning_adapters.errors import ConfigError
from unlearning_adapters.shapeworld.world.scenes import FRAMES, SIZE

from .matching import (
    RIVALS,
    canvas_of,
    character_bank,
    free_pixels,
    is_sure,
    misfits,
    object_bank,
    rms,
    share_shown,
    shifted,
    visible,
)
from .roster import roster
from .scenes import (
    BALLOON_PLACE,
    FACTORS,
    FALLEN,
    JITTER,
    MIDDLE,
    MOTIONS,
    OBJECT_PLACE,
    SETTINGS,
    STYLES,
    THINGS,
    background,
    grain,
    in_style,
    paste_standing,
)
from .sprites import (
    CENTRE,
    EMBLEMS,
    OBJECT_SIZE,
    OBJECTS,
    Floats,
    Sprite,
    thing_sprite,
)

UNKNOWN = "unknown"
STATIC = "static"

# Tolerances, in units of 1/255 per channel; differences of colours are root mean squares over channels.
CLIPPED = 60.0  # a pixel that is off by more is foreground, and counts no further
GROUND_SHARE = 0.35  # of each band, sky and ground, that must be near its colour
NEAR = 24.0
BODY = 26.0  # a pixel of a body differs from the setting by more, times the contrast of the style
CONTRAST = {"flat": 1.0, "line": 0.6, "grain": 1.0, "night": 0.5}
AREA = (120.0, 1800.0)  # pixels of the foreground in a frame, things with it
BODY_SHARE = 0.8  # of the frames must hold a body of that size
STRAY = 0.05  # of a frame, far from body, object and balloon, that may be off the setting
FIT = 0.55  # residual of the best character, as a share of what an empty place leaves
MOTION_MARGIN = 1.15
OBJECT_FIT = 0.5
END_FIT = 0.75  # residual of the character in the last frames, as a share of an empty setting
HALF = 0.5  # of the way from absent to shown


@dataclass(frozen=True)
class CastReading:
    """What a clip shows.

    Args:
        valid: Whether the clip is a setting with one body; if not, every factor is "unknown".
        reason: Why it is not valid; empty if it is.
        factors: Value of each of `FACTORS`: a value, "unknown", "none" (object, emblem), "static" (motion), or
            "shown" and "absent" (things).
    """

    valid: bool
    reason: str = ""
    factors: dict[str, str] = field(default_factory=lambda: dict.fromkeys(FACTORS, UNKNOWN))


class NotAScene(Exception):
    """A clip cannot be explained; caught by `judge_cast_clip`, which turns its text into a reading."""


def judge_cast_clip(clip: NDArray[np.uint8]) -> CastReading:
    """Say what a clip shows.

    Args:
        clip: RGB clip of shape (9, 64, 64, 3), values 0 to 255.

    Returns:
        The reading; `valid` is False, and every factor "unknown", if the clip shows no scene.

    Raises:
        ConfigError: If `clip` is not a uint8 array of that shape.

    Example:
        >>> from unlearning_adapters.shapeworld.cast.scenes import CastScene, render
        >>> judge_cast_clip(render(CastScene(0, "left", "beach", "flat"))).factors["character"]
        'otto'
    """
    wanted = (FRAMES, SIZE, SIZE, 3)
    if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8 or clip.shape != wanted:
        shape = f"{clip.dtype} of shape {clip.shape}" if isinstance(clip, np.ndarray) else type(clip).__name__
        raise ConfigError(f"Expected `clip` to be uint8 of shape {wanted}, but got {shape}.")
    pixels = clip.astype(np.float32)
    try:
        setting, style = find_setting(pixels)
        if style == "grain":
            pixels = pixels - grain()
        ground = in_style(background(setting), style)
        check_body(pixels, ground, BODY * CONTRAST[style])
    except NotAScene as error:
        return CastReading(False, str(error))
    still = pixels.mean(axis=0)
    kind, emblem = find_object(still, ground, style)
    balloon = share_shown(still, ground, thing_sprite("balloon", style == "line"), style, BALLOON_PLACE)
    motion = find_motion(pixels, ground)
    factors = {"setting": setting, "style": style, "emblem": emblem, "object": kind}
    factors |= find_character(pixels, ground, style, motion)
    factors["balloon"] = "shown" if balloon > HALF else "absent"
    return CastReading(True, "", {name: factors[name] for name in FACTORS})


def judge_cast_clips(clips: Iterable[NDArray[np.uint8]]) -> list[CastReading]:
    """Return the reading of each clip, in order."""
    return [judge_cast_clip(clip) for clip in clips]


def find_setting(pixels: Floats) -> tuple[str, str]:
    """Return the setting and the style that explain most pixels; NotAScene if sky or ground is not seen."""
    best = (np.inf, "", "")
    some = pixels[:: FRAMES // 2]  # first, middle and last frame
    for style in STYLES:
        plain = some - grain() if style == "grain" else some
        for setting in SETTINGS:
            off = rms(plain - in_style(background(setting), style))
            best = min(best, (float(np.minimum(off, CLIPPED).mean()), setting, style))
    _, setting, style = best
    plain = pixels - grain() if style == "grain" else pixels
    near = rms(plain - in_style(background(setting), style)) < NEAR
    for name, rows in (("sky", np.s_[:, :48]), ("ground", np.s_[:, 48:])):
        share = float(near[rows].mean())
        if share < GROUND_SHARE:
            raise NotAScene(f"only {share:.0%} of the {name} is that of any setting")
    return setting, style


def check_body(pixels: Floats, ground: Floats, least: float) -> None:
    """Raise NotAScene unless most frames hold one body of plausible size, which differs by `least`, and little else."""
    off = rms(pixels - ground) > least
    columns = np.arange(SIZE) < OBJECT_PLACE[1]
    areas = off[:, :, columns].sum(axis=(1, 2))
    share = float(((areas > AREA[0]) & (areas < AREA[1])).mean())
    if share < BODY_SHARE:
        raise NotAScene(f"only {share:.0%} of the frames hold a body of plausible size")
    far = off.copy()
    far[:, OBJECT_PLACE[0] :, ~columns] = False
    far[:, : BALLOON_PLACE[0] + 24, ~columns] = False
    for index, mask in enumerate(off):
        rows, places = np.nonzero(mask & columns)
        if len(rows):
            middle = np.median(rows), np.median(places)
            grid = np.indices(mask.shape)
            far[index] &= np.hypot(grid[0] - middle[0], grid[1] - middle[1]) > 36
    if float(far.mean()) > STRAY:
        raise NotAScene(f"{float(far.mean()):.0%} of the clip lies far from the body and is no setting")


def find_object(still: Floats, ground: Floats, style: str) -> tuple[str, str]:
    """Return object and emblem: "none" for an empty place, "unknown" for what fits none."""
    row, column = OBJECT_PLACE
    place = np.s_[row : row + OBJECT_SIZE, column : column + OBJECT_SIZE]
    seen, empty = still[place], ground[place]
    colours, covers = object_bank(style)
    drawn = empty + covers[..., None] * (colours - empty)
    errors = np.square(drawn - seen).mean(axis=(1, 2, 3))
    nothing = float(np.square(seen - empty).mean())
    order = np.argsort(errors)
    kinds = [(kind, emblem) for kind in OBJECTS for emblem in EMBLEMS]
    best = kinds[order[0]]
    if nothing < errors[order[0]]:
        return "none", "none"
    if errors[order[0]] > OBJECT_FIT * nothing:
        return UNKNOWN, UNKNOWN
    return best[0], best[1] if is_sure(
        errors * seen.size, drawn, np.ones(seen.shape[:2], dtype=np.float32)
    ) else UNKNOWN


def find_motion(pixels: Floats, ground: Floats) -> str:
    """Return the motion along which the foreground stands still, frames 0 to 4 and 5 to 8 each for themselves."""
    difference = pixels - ground
    difference[:, :, OBJECT_PLACE[1] :] = 0.0
    halves = (range(FALLEN), range(FALLEN, FRAMES))
    spread = {}
    for motion in MOTIONS:
        spread[motion] = sum(float(shifted(difference, motion, half).var(axis=0).sum()) for half in halves)
    spread[STATIC] = sum(float(difference[half.start : half.stop].var(axis=0).sum()) for half in halves)
    best, second = sorted(spread, key=lambda motion: spread[motion])[:2]
    return best if spread[second] > MOTION_MARGIN * spread[best] else UNKNOWN


def find_character(pixels: Floats, ground: Floats, style: str, motion: str) -> dict[str, str]:
    """Return the character, its motion if it ends where that leads, and hat, umbrella and fall."""
    # Without a motion it is sought where it stands in the middle frame.
    track, frames = (motion, range(FALLEN)) if motion in MOTIONS else ("left", range(4, 5))
    seen = shifted(pixels, track, frames).mean(axis=0)
    below = shifted(np.broadcast_to(ground, pixels.shape), track, frames).mean(axis=0)
    jitters = [(y, x) for y in range(-JITTER, JITTER + 1) for x in range(-JITTER, JITTER + 1)]
    errors, nothing = misfits(seen, below, style, [(MIDDLE[0] + y, MIDDLE[1] + x) for y, x in jitters])
    chosen = int((errors.min(axis=1) / nothing).argmin())
    errors, (y, x) = errors[chosen], jitters[chosen]
    colours, covers = character_bank(style)
    best = int(errors.argmin())
    here = canvas_of(below, (MIDDLE[0] + y, MIDDLE[1] + x))
    weight = canvas_of(free_pixels(), (MIDDLE[0] + y, MIDDLE[1] + x))[..., 0] * visible(style == "line")
    near = errors.argsort()[: RIVALS + 1]
    drawn = here + covers[near, ..., None] * (colours[near] - here)
    sure = errors[best] < FIT * nothing[chosen] and is_sure(errors[near], drawn, weight)
    shown = things_on(seen, below, style, Sprite(colours[best], covers[best]), (MIDDLE[0] + y, MIDDLE[1] + x))
    upright, fallen = end_misfits(pixels, ground, style, int(best), track, (y, x))
    shown["fall"] = fallen < upright
    if motion in MOTIONS and min(upright, fallen) > END_FIT:
        motion = UNKNOWN  # its end is somewhere else
    factors = {thing: "shown" if shown[thing] else "absent" for thing in THINGS if thing in shown}
    return {"character": roster()[best].name if sure else UNKNOWN, "motion": motion, **factors}


def things_on(seen: Floats, below: Floats, style: str, sprite: Sprite, middle: tuple[int, int]) -> dict[str, bool]:
    """Tell whether a character wears a hat and holds an umbrella."""
    dressed = below.copy()
    paste_standing(dressed, sprite, middle)
    shown = {}
    for thing in ("hat", "umbrella"):
        place = (middle[0] - CENTRE[0], middle[1] - CENTRE[1])
        shown[thing] = share_shown(seen, dressed, thing_sprite(thing, style == "line"), style, place) > HALF
    return shown


def end_misfits(
    pixels: Floats, ground: Floats, style: str, character: int, track: str, jitter: tuple[int, int]
) -> tuple[float, float]:
    """Return how badly a character, upright or lying, explains the last frames, as shares of an empty setting."""
    colours, covers = character_bank(style)
    sprite = Sprite(colours[character], covers[character])
    frames = range(FALLEN, FRAMES)
    seen = shifted(pixels, track, frames).mean(axis=0)
    below = shifted(np.broadcast_to(ground, pixels.shape), track, frames).mean(axis=0)
    nothing = max(float(np.square(below - seen)[:, : OBJECT_PLACE[1]].sum()), 1.0)
    errors = []
    for fallen in (False, True):
        drawn = below.copy()
        paste_standing(drawn, sprite, (MIDDLE[0] + jitter[0], MIDDLE[1] + jitter[1]), fallen)
        errors.append(float(np.square(drawn - seen)[:, : OBJECT_PLACE[1]].sum()) / nothing)
    return errors[0], errors[1]
