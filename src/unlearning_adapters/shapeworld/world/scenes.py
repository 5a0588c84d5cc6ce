"""The world itself: what a clip shows, and the renderer that draws it.

A scene is one or two flat shapes of one colour each, which move in a straight line over a plain background.
Every factor is known by construction, so that a judge can be exact about what a generated clip shows.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

FRAMES = 9
SIZE = 64

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (224, 40, 40),
    "green": (32, 176, 72),
    "blue": (40, 88, 232),
    "yellow": (244, 212, 40),
}
SHAPES = ("circle", "square", "triangle", "cross")
MOTIONS: dict[str, tuple[int, int]] = {"left": (-1, 0), "right": (1, 0), "up": (0, -1), "down": (0, 1)}
BACKGROUNDS: dict[str, tuple[int, int, int]] = {
    "black": (12, 12, 16),
    "white": (242, 242, 242),
    "grey": (128, 128, 132),
}

FACTORS: dict[str, tuple[str, ...]] = {
    "colour": tuple(COLOURS),
    "shape": SHAPES,
    "motion": tuple(MOTIONS),
    "background": tuple(BACKGROUNDS),
}

TRAVEL = 26.0  # pixels from the first frame to the last; 13 before and 13 behind the middle


@dataclass(frozen=True)
class Body:
    """One moving shape.

    Args:
        shape: A key of `SHAPES`.
        colour: A key of `COLOURS`.
        motion: A key of `MOTIONS`.
        radius: Half of the shape's extent, in pixels.
        x: Column of its centre in the middle frame, in pixels.
        y: Row of its centre in the middle frame, in pixels.
    """

    shape: str
    colour: str
    motion: str
    radius: float
    x: float
    y: float


@dataclass(frozen=True)
class Scene:
    """One or two bodies over a background; `bodies[0]` is the one that a caption names first."""

    bodies: tuple[Body, ...]
    background: str

    @property
    def factors(self) -> dict[str, str]:
        """The four factor values of a scene with one body."""
        body = self.bodies[0]
        return {"colour": body.colour, "shape": body.shape, "motion": body.motion, "background": self.background}


def signed_distance(shape: str, radius: float, x: NDArray[Any], y: NDArray[Any]) -> NDArray[Any]:
    """Return the distance of each point to the outline of a shape at the origin, negative inside (pixels)."""
    if shape == "circle":
        return np.asarray(np.hypot(x, y) - radius)
    if shape == "square":
        side = 0.88 * radius
        return np.asarray(np.maximum(np.abs(x), np.abs(y)) - side)
    if shape == "triangle":
        # Upright, with its base at 0.8 of the radius; rows grow downwards.
        slope = np.hypot(1.8, 1.0)
        return np.asarray(np.maximum((1.8 * np.abs(x) - y - radius) / slope, y - 0.8 * radius))
    if shape == "cross":
        arm = 0.36 * radius
        upright = np.maximum(np.abs(x) - arm, np.abs(y) - radius)
        level = np.maximum(np.abs(x) - radius, np.abs(y) - arm)
        return np.asarray(np.minimum(upright, level))
    raise ValueError(f"Expected `shape` to be one of {', '.join(SHAPES)}, but got {shape!r}.")


def centres(body: Body, frames: int = FRAMES) -> NDArray[np.float32]:
    """Return the centre of a body in every frame, as an array of shape (frames, 2) of (x, y) in pixels."""
    dx, dy = MOTIONS[body.motion]
    steps = np.linspace(-0.5, 0.5, frames, dtype=np.float32)[:, None] * TRAVEL
    return np.array([[body.x, body.y]], dtype=np.float32) + steps * np.array([[dx, dy]], dtype=np.float32)


def render(scene: Scene, frames: int = FRAMES, size: int = SIZE) -> NDArray[np.uint8]:
    """Draw a scene, anti-aliased by the signed distance.

    Args:
        scene: What to draw.
        frames: Number of frames.
        size: Height and width in pixels; positions are given for `SIZE` and scaled.

    Returns:
        RGB clip of shape (frames, size, size, 3), values 0 to 255.
    """
    scale = size / SIZE
    rows, columns = np.mgrid[0:size, 0:size].astype(np.float32) + 0.5
    clip = np.empty((frames, size, size, 3), dtype=np.float32)
    clip[:] = BACKGROUNDS[scene.background]
    for body in scene.bodies:
        for frame, (x, y) in zip(clip, centres(body, frames) * scale, strict=True):
            distance = signed_distance(body.shape, body.radius * scale, columns - x, rows - y)
            cover = np.clip(0.5 - distance, 0.0, 1.0)[..., None]
            frame += cover * (np.array(COLOURS[body.colour], dtype=np.float32) - frame)
    return np.rint(clip).astype(np.uint8)


def sample_scene(rng: np.random.Generator, bodies: int = 1, **fixed: str) -> Scene:
    """Draw a random scene.

    Args:
        rng: Source of randomness.
        bodies: 1, or 2 bodies side by side that share one motion.
        fixed: Factor values (`colour=`, `shape=`, `motion=`, `background=`) of the first body that are not drawn.

    Returns:
        A scene whose bodies stay inside the frame.
    """
    pick = {name: fixed.get(name) or str(rng.choice(values)) for name, values in FACTORS.items()}
    if bodies == 1:
        x, y = 32.0 + rng.uniform(-3.0, 3.0, size=2)
        body = Body(pick["shape"], pick["colour"], pick["motion"], float(rng.uniform(12.5, 14.5)), float(x), float(y))
        return Scene((body,), pick["background"])
    other_colour = str(rng.choice([value for value in COLOURS if value != pick["colour"]]))
    other_shape = str(rng.choice([value for value in SHAPES if value != pick["shape"]]))
    across = MOTIONS[pick["motion"]][0] != 0
    placed = []
    for side, (shape, colour) in ((-1, (pick["shape"], pick["colour"])), (1, (other_shape, other_colour))):
        along, aside = rng.uniform(-2.0, 2.0), side * 15.5 + rng.uniform(-1.0, 1.0)
        x, y = (along, aside) if across else (aside, along)
        radius = float(rng.uniform(10.5, 12.0))
        placed.append(Body(shape, colour, pick["motion"], radius, 32.0 + float(x), 32.0 + float(y)))
    return Scene(tuple(placed), pick["background"])
