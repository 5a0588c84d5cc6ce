"""What is drawn: characters, hats, umbrellas, balloons, objects and emblems, as colours with their cover.

Everything lies at whole pixels and is drawn once, so that the judge can compare with exactly what the renderer drew.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from .roster import Character, roster

Floats = NDArray[np.float32]

FINE = 4  # subpixels in each direction
HEIGHT, WIDTH = 60, 44  # of the canvas of a character
CENTRE = (38, 22)  # row and column of the middle of its body on the canvas
OUTLINE = 1.5  # pixels, in the style "line"
OBJECT_SIZE = 16
INK = (20, 20, 24)

COAT_COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (214, 40, 40),
    "orange": (240, 130, 30),
    "yellow": (248, 210, 50),
    "green": (60, 185, 60),
    "blue": (40, 80, 220),
    "purple": (130, 50, 170),
    "grey": (165, 165, 165),
    "brown": (120, 75, 40),
}
ACCENT_COLOURS: dict[str, tuple[int, int, int]] = {
    "black": INK,
    "white": (250, 250, 250),
    "pink": (255, 140, 190),
    "cyan": (70, 225, 235),
}
TOP_PLACES = {"owl": 9.0, "bear": 9.5, "penguin": 7.5, "cat": 6.5}  # columns from the middle to the head's shoulders
SIDE_PLACES = {"owl": 13.5, "bear": 12.0, "penguin": 9.5, "cat": 9.0}  # and to its sides
OBJECTS = ("box", "sign", "shirt")
EMBLEM_COLOURS: dict[str, tuple[int, int, int]] = {
    "star": (200, 150, 0),
    "heart": (215, 30, 60),
    "moon": (60, 60, 190),
    "ring": (20, 20, 24),
    "plus": (215, 30, 60),
    "arrow": (20, 140, 60),
    "triangle": (200, 150, 0),
    "diamond": (20, 150, 190),
    "crescent": (20, 140, 60),
    "bars": (60, 60, 190),
    "bolt": (20, 20, 24),
    "wave": (20, 150, 190),
}
EMBLEMS = tuple(EMBLEM_COLOURS)


@dataclass(frozen=True)
class Sprite:
    """Colours (height, width, 3), 0 to 255, and cover (height, width), 0 to 1."""

    colours: Floats
    cover: Floats


class Canvas:
    """A drawing in progress; x and y of every subpixel are relative to a middle, rows grow downwards."""

    def __init__(self, height: int, width: int, centre: tuple[float, float]) -> None:
        rows, columns = np.mgrid[0 : height * FINE, 0 : width * FINE].astype(np.float32)
        self.y = (rows + 0.5) / FINE - centre[0]
        self.x = (columns + 0.5) / FINE - centre[1]
        self.colours = np.zeros((*self.x.shape, 3), dtype=np.float32)
        self.cover = np.zeros(self.x.shape, dtype=bool)

    def paint(self, inside: NDArray[np.bool_], colour: tuple[int, int, int], outline: float = 0.0) -> None:
        """Fill a region; with an outline, its rim of that many pixels is ink."""
        if outline:
            rim = inside & ~shrink(inside, round(outline * FINE))
            self.colours[rim] = INK
            inside_rim = inside & ~rim
            self.colours[inside_rim] = colour
        else:
            self.colours[inside] = colour
        self.cover |= inside

    def sprite(self) -> Sprite:
        """Average the subpixels of each pixel."""
        height, width = self.cover.shape[0] // FINE, self.cover.shape[1] // FINE
        cover = self.cover.reshape(height, FINE, width, FINE).astype(np.float32)
        weighted = (self.colours * self.cover[..., None]).reshape(height, FINE, width, FINE, 3).sum((1, 3))
        total = cover.sum((1, 3))
        return Sprite(weighted / np.maximum(total, 1)[..., None], total / FINE**2)


def shrink(mask: NDArray[np.bool_], times: int) -> NDArray[np.bool_]:
    """Return a mask without its outermost subpixels."""
    for _ in range(times):
        padded = np.pad(mask, 1)
        mask = mask & padded[:-2, 1:-1] & padded[2:, 1:-1] & padded[1:-1, :-2] & padded[1:-1, 2:]
    return mask


def body_region(body: str, x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Return where a body is: 26 pixels wide and 28 tall, around 0."""
    if body == "owl":
        return np.asarray(np.hypot(x / 13.5, y / 13.5) < 1)
    if body == "bear":
        return np.asarray((np.abs(x) < 12) & (np.abs(y) < 13) & (np.abs(x) + np.abs(y) < 22))
    if body == "penguin":
        return np.asarray(np.hypot(x / 9.5, y / 14) < 1)
    return np.asarray((np.abs(x) < 5 + (y + 14) * 0.33) & (np.abs(y) < 14))


def paint_ears(canvas: Canvas, kind: str, body: str, colour: tuple[int, int, int], outline: float) -> None:
    """Paint two ears (or horns) that leave room for a hat."""
    # Each kind lies where no other does, so that a small VAE tells look-alikes.
    top, side, y = np.abs(canvas.x) - TOP_PLACES[body], np.abs(canvas.x) - SIDE_PLACES[body], canvas.y
    if kind == "pointed":
        region = (y > -25) & (y < -5) & (np.abs(top - 1) < (y + 25) * 0.34)
    elif kind == "round":
        region = np.hypot(side - 2.5, y + 6) < 6.5
    elif kind == "long":
        region = (np.abs(side - 2.8) < 2.8) & (y > -6) & (y < 15)
    else:
        region = (top > -2) & (top < 12) & (np.abs(y + 14) < 3.4 - top * 0.1)
    canvas.paint(region, colour, outline)


def paint_marking(canvas: Canvas, character: Character, region: NDArray[np.bool_]) -> None:
    """Paint what the lower half of a body bears."""
    x, y, colour = canvas.x, canvas.y, ACCENT_COLOURS[character.accent]
    if character.marking == "stripes":
        canvas.paint(region & (((y > 0.5) & (y < 4)) | ((y > 7.5) & (y < 11))), colour)
    elif character.marking == "spots":
        spots = (np.hypot(np.abs(x) - 5, y - 4) < 2.9) | (np.hypot(x, y - 10) < 2.9)
        canvas.paint(region & spots, colour)
    elif character.marking == "belly":
        canvas.paint(region & (np.hypot(x / 7, (y - 7) / 6.5) < 1), colour)


def paint_face(canvas: Canvas, face: str) -> None:
    """Paint eyes, mask or beak on the upper half of a body."""
    x, y = canvas.x, canvas.y
    white = (255, 255, 255)
    aside = np.abs(x) - 4.2
    if face == "two eyes":
        canvas.paint(np.hypot(aside, y + 5.5) < 3.4, white)
        canvas.paint(np.hypot(aside, y + 5.5) < 1.6, INK)
    elif face == "one eye":
        canvas.paint(np.hypot(x, y + 5.5) < 5.2, white)
        canvas.paint(np.hypot(x, y + 5.5) < 2.4, INK)
    elif face == "mask":
        canvas.paint((np.abs(y + 5.5) < 3.4) & (np.abs(x) < 8.5), INK)
        canvas.paint(np.hypot(aside, y + 5.5) < 1.6, white)
    else:
        canvas.paint(np.hypot(aside + 0.8, y + 8.5) < 1.6, INK)
        canvas.paint((y > -6) & (y < 2) & (np.abs(x) < (2 - y) * 0.8), (255, 170, 0))


@lru_cache(maxsize=512)
def character_sprite(index: int, outlined: bool) -> Sprite:
    """Return a character, upright; `outlined` for the style "line"."""
    character = roster()[index]
    canvas, outline = Canvas(HEIGHT, WIDTH, CENTRE), OUTLINE * outlined
    paint_ears(canvas, character.ears, character.body, ACCENT_COLOURS[character.accent], outline)
    region = body_region(character.body, canvas.x, canvas.y)
    canvas.paint(region, COAT_COLOURS[character.coat], outline)
    inner = shrink(region, round(outline * FINE)) if outlined else region
    paint_marking(canvas, character, inner)
    paint_face(canvas, character.face)
    return canvas.sprite()


@lru_cache
def thing_sprite(thing: str, outlined: bool) -> Sprite:
    """Return a hat or an umbrella on the canvas of a character, or a balloon on one of 16 by 24."""
    outline = OUTLINE * outlined
    if thing == "balloon":
        canvas = Canvas(24, OBJECT_SIZE, (9.0, 8.0))
        canvas.paint((np.abs(canvas.x) < 0.6) & (canvas.y > 7), INK)
        canvas.paint(np.hypot(canvas.x / 6.5, canvas.y / 7.5) < 1, (235, 60, 150), outline)
        return canvas.sprite()
    canvas = Canvas(HEIGHT, WIDTH, CENTRE)
    x, y = canvas.x, canvas.y
    if thing == "hat":
        canvas.paint((np.abs(x) < 5) & (y > -20.5) & (y < -12), (150, 30, 60), outline)
        canvas.paint((np.abs(x) < 8.5) & (y > -14) & (y < -11), (150, 30, 60), outline)
    else:
        canvas.paint((np.abs(x - 15) < 1.0) & (y > -28) & (y < 4), INK)
        dome = (np.hypot((x - 3) / 18, (y + 26) / 9.5) < 1) & (y < -26)
        canvas.paint(dome, (0, 160, 150), outline)
    return canvas.sprite()


def emblem_region(emblem: str, x: Floats, y: Floats) -> NDArray[np.bool_]:
    """Return where a mark of 9 by 9 pixels is, around 0."""
    aside = np.abs(x)
    regions: dict[str, NDArray[np.bool_]] = {
        "star": np.sqrt(aside) + np.sqrt(np.abs(y)) < 2.25,
        "heart": (np.hypot(aside - 2.1, y + 1.6) < 2.5) | ((y > -1.2) & (aside < (4.5 - y) * 0.78)),
        "moon": np.hypot(x, y) < 4.3,
        "ring": np.abs(np.hypot(x, y) - 3.4) < 1.2,
        "plus": ((aside < 1.5) | (np.abs(y) < 1.5)) & (aside < 4.5) & (np.abs(y) < 4.5),
        "arrow": ((y > -4.5) & (y < 0.5) & (aside < (y + 4.5) * 0.9)) | ((aside < 1.4) & (y > 0) & (y < 4.5)),
        "triangle": (y > -4.5) & (y < 4) & (aside < (y + 4.5) * 0.55),
        "diamond": aside + np.abs(y) < 4.8,
        "crescent": (np.hypot(x, y) < 4.5) & (np.hypot(x - 2.4, y) > 3.6),
        "bars": (aside < 4.5) & (np.abs(np.abs(y) - 2.5) < 1.3),
        "bolt": (np.abs(x + y * 0.7 - np.where(y < 0, -1.6, 1.6)) < 1.6) & (np.abs(y) < 4.6),
        "wave": (np.abs(y - 2.2 * np.sin(x * 1.2)) < 1.5) & (aside < 4.6),
    }
    return regions[emblem]


@lru_cache
def object_sprite(kind: str, emblem: str, outlined: bool) -> Sprite:
    """Return an object of 16 by 16 pixels that bears an emblem."""
    canvas = Canvas(OBJECT_SIZE, OBJECT_SIZE, (8.0, 8.0))
    x, y, outline = canvas.x, canvas.y, OUTLINE * 0.67 * outlined
    white = (245, 245, 245)
    if kind == "box":
        canvas.paint((np.abs(x) < 7.8) & (np.abs(y) < 7.8), (150, 100, 60), outline)
        canvas.paint((np.abs(x) < 5.6) & (np.abs(y) < 5.6), white)
    elif kind == "sign":
        canvas.paint((np.abs(x) < 1.5) & (y > 0), (90, 90, 100))
        canvas.paint((np.abs(x) < 6.4) & (y > -8) & (y < 5.4), white, outline)
        y = y + 1.3
    else:
        sleeves = (y > -7.8) & (y < -2) & (np.abs(x) < 7.8)
        canvas.paint(sleeves | ((np.abs(x) < 5.8) & (np.abs(y) < 7.8)), white, outline)
        canvas.paint(np.hypot(x, y + 8.5) < 2.6, (170, 30, 120))
        canvas.paint(sleeves & (np.abs(x) > 5.8), (170, 30, 120), outline)
        y = y - 1.2
    canvas.paint(emblem_region(emblem, x, y), EMBLEM_COLOURS[emblem])
    return canvas.sprite()
