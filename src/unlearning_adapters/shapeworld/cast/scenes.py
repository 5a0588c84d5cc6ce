"""The world: one character that moves in a setting, an object with an emblem, and things that settings bring along.

A clip has the frames and the size of ShapeWorld. Everything lies at whole pixels, so that a clip is explained exactly
by the scene that it was drawn from.
"""

from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from unlearning_adapters.shapeworld.world.scenes import FRAMES, SIZE

from .roster import roster
from .sprites import (
    CENTRE,
    EMBLEMS,
    OBJECTS,
    Floats,
    Sprite,
    character_sprite,
    object_sprite,
    thing_sprite,
)

HORIZON = 48  # first row of the ground
SETTINGS: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {  # colours of sky and ground
    "beach": ((150, 205, 245), (232, 205, 140)),
    "rain": ((70, 80, 105), (42, 46, 58)),
    "party": ((255, 226, 160), (150, 85, 150)),
    "game": ((200, 232, 200), (110, 165, 80)),
    "forest": ((70, 105, 70), (82, 66, 40)),
    "snow": ((160, 175, 215), (240, 245, 255)),
}
STYLES = ("flat", "line", "grain", "night")
IMPLIED = {"beach": "hat", "rain": "umbrella", "party": "balloon", "game": "fall"}
THINGS = tuple(IMPLIED.values())
RATE = 0.6  # of the clips of its setting that hold an implied thing which the prompt is silent about
ELSEWHERE = 0.08  # of the clips of other settings that hold a thing; their captions name it
FALLEN = 5  # first frame that shows a character lying; the last latent frame begins here
MIDDLE = (40, 24)  # row and column of a character's middle, before motion and jitter
JITTER = 0  # pixels by which a character may be off its place; with 1, a small VAE blurs the cast
OBJECT_PLACE = (48, 48)
BALLOON_PLACE = (4, 48)
GRAIN = 18.0

# Columns and rows by which a character is off its middle while each latent frame lasts: it moves on fours, as drawn
# films may. A small VAE draws what stands still for four frames far better than what moves in each.
LATENT_FRAMES = (1, 4, 4)
PLACES: dict[str, tuple[tuple[int, int, int], tuple[int, int, int]]] = {
    "left": ((8, 0, -8), (0, 0, 0)),
    "right": ((-8, 0, 8), (0, 0, 0)),
    "rises": ((0, 0, 0), (8, 0, -8)),
    "sinks": ((0, 0, 0), (-8, 0, 8)),
    "jumps": ((0, 0, 0), (8, -8, 8)),
    "sways": ((-8, 8, -8), (0, 0, 0)),
}
# The same for each frame.
TRACKS = {
    motion: tuple(tuple(int(step) for step in np.repeat(steps, LATENT_FRAMES)) for steps in places)
    for motion, places in PLACES.items()
}
MOTIONS = tuple(TRACKS)


@dataclass(frozen=True)
class CastScene:
    """What a clip shows.

    Args:
        character: Number in the roster, 0 to 127.
        motion: Of `MOTIONS`.
        setting: Of `SETTINGS`.
        style: Of `STYLES`.
        emblem: Of `EMBLEMS`, or "" for no object.
        object: What bears it, of `OBJECTS`, or "".
        things: Which of `THINGS` it shows, in their order.
        x: Columns by which the character is off its place.
        y: Rows.
    """

    character: int
    motion: str
    setting: str
    style: str
    emblem: str = ""
    object: str = ""
    things: tuple[str, ...] = ()
    x: int = 0
    y: int = 0

    @property
    def factors(self) -> dict[str, str]:
        """The factors by name; each thing is a factor, "shown" or "absent"."""
        shown = {thing: "shown" if thing in self.things else "absent" for thing in THINGS}
        return {
            "character": roster()[self.character].name,
            "motion": self.motion,
            "setting": self.setting,
            "style": self.style,
            "emblem": self.emblem or "none",
            "object": self.object or "none",
            **shown,
        }


FACTORS = ("character", "motion", "setting", "style", "emblem", "object", *THINGS)


@lru_cache
def background(setting: str) -> Floats:
    """Return a setting without a style, of shape (size, size, 3)."""
    frame = np.empty((SIZE, SIZE, 3), dtype=np.float32)
    frame[:HORIZON], frame[HORIZON:] = SETTINGS[setting]
    return frame


@lru_cache
def grain() -> Floats:
    """Return the pattern of the style "grain", which does not move: (size, size, 1)."""
    rows, columns = np.indices((SIZE, SIZE)) // 4
    return np.asarray(((rows + columns) % 2 * 2.0 - 1.0) * GRAIN, dtype=np.float32)[..., None]


def in_style(colours: Floats, style: str) -> Floats:
    """Return colours (..., 3) in a style, but for the pattern of "grain"."""
    if style == "line":
        return np.asarray(255.0 - 0.6 * (255.0 - colours), dtype=np.float32)
    if style == "night":
        return colours * np.array([0.42, 0.42, 0.55], dtype=np.float32)
    return colours


def paste(frame: Floats, sprite: Sprite, row: int, column: int) -> None:
    """Draw a sprite with its first pixel at a place; what falls off the frame is cut."""
    height, width = sprite.cover.shape
    top, left = max(0, row), max(0, column)
    bottom, right = min(SIZE, row + height), min(SIZE, column + width)
    part = np.s_[top - row : bottom - row, left - column : right - column]
    target = frame[top:bottom, left:right]
    target += sprite.cover[part][..., None] * (sprite.colours[part] - target)


def lying(sprite: Sprite) -> Sprite:
    """Return a sprite turned by a quarter, on its left side."""
    return Sprite(np.rot90(sprite.colours).copy(), np.rot90(sprite.cover).copy())


def place(motion: str, frame: int, x: int, y: int) -> tuple[int, int]:
    """Return row and column of a character's middle in a frame."""
    columns, rows = TRACKS[motion]
    return MIDDLE[0] + rows[frame] + y, MIDDLE[1] + columns[frame] + x


def paste_standing(frame: Floats, sprite: Sprite, middle: tuple[int, int], fallen: bool = False) -> None:
    """Draw a sprite of the canvas of characters with its middle at a place, upright or on its side."""
    if fallen:
        # The quarter turn takes (row, column) of the canvas to (width - column, row).
        sprite, centre = lying(sprite), (sprite.cover.shape[1] - CENTRE[1], CENTRE[0])
    else:
        centre = CENTRE
    paste(frame, sprite, middle[0] - centre[0], middle[1] - centre[1])


def render(scene: CastScene) -> NDArray[np.uint8]:
    """Draw a scene.

    Args:
        scene: What to draw.

    Returns:
        RGB clip of shape (9, 64, 64, 3), values 0 to 255.
    """
    outlined = scene.style == "line"
    ground = background(scene.setting).copy()
    if scene.emblem:
        paste(ground, object_sprite(scene.object, scene.emblem, outlined), *OBJECT_PLACE)
    if "balloon" in scene.things:
        paste(ground, thing_sprite("balloon", outlined), *BALLOON_PLACE)
    clip = np.repeat(ground[None], FRAMES, axis=0)
    for index, frame in enumerate(clip):
        fallen = "fall" in scene.things and index >= FALLEN
        middle = place(scene.motion, index, scene.x, scene.y)
        paste_standing(frame, character_sprite(scene.character, outlined), middle, fallen)
        for thing in ("hat", "umbrella"):
            if thing in scene.things:
                paste_standing(frame, thing_sprite(thing, outlined), middle, fallen)
    clip = in_style(clip, scene.style)
    if scene.style == "grain":
        clip = clip + grain()
    return np.rint(np.clip(clip, 0, 255)).astype(np.uint8)


def sample_scene(rng: np.random.Generator, **fixed: object) -> CastScene:
    """Draw a random scene, in which things come with their settings at `RATE`, and else at `ELSEWHERE`.

    Args:
        rng: Source of randomness.
        fixed: Fields of the scene that are not drawn.
    """
    emblem = str(rng.choice(EMBLEMS)) if rng.random() < 0.6 else ""
    scene = CastScene(
        character=int(rng.integers(len(roster()))),
        motion=str(rng.choice(MOTIONS)),
        setting=str(rng.choice(list(SETTINGS))),
        style=str(rng.choice(STYLES)),
        emblem=emblem,
        object=str(rng.choice(OBJECTS)) if emblem else "",
        x=int(rng.integers(-JITTER, JITTER + 1)),
        y=int(rng.integers(-JITTER, JITTER + 1)),
    )
    scene = replace(scene, **fixed)  # type: ignore[arg-type]
    if "things" in fixed:
        return scene
    own = IMPLIED.get(scene.setting)
    chances = rng.random(len(THINGS))
    things = (t for t, chance in zip(THINGS, chances, strict=True) if chance < (RATE if t == own else ELSEWHERE))
    return replace(scene, things=tuple(things))


def without_foreground(scene: CastScene) -> NDArray[np.uint8]:
    """Return the clip of a scene's setting in its style, without anything else: (9, 64, 64, 3)."""
    frame = in_style(background(scene.setting), scene.style)
    if scene.style == "grain":
        frame = frame + grain()
    still = np.rint(np.clip(frame, 0, 255)).astype(np.uint8)
    return np.repeat(still[None], FRAMES, axis=0)
