"""The judge explains a clip as a scene (analysis by synthesis), and reports clips that no scene explains.

A clip is explained as a plain background plus one or two flat bodies. Each factor is read off that explanation and is
"unknown" as soon as it fits no value clearly; a clip that has no such explanation at all (noise, blank, destroyed) is
not valid. Errors are therefore one-sided: a clip is rarely mistaken for another value, and junk never counts as a clip
from which a concept is absent.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from unlearning_adapters.errors import ConfigError

from .scenes import BACKGROUNDS, COLOURS, FACTORS, MOTIONS, SHAPES, SIZE, TRAVEL, signed_distance
from .tracks import FRAME_SHARE, Floats, NotAScene, Track, centroids, check_explained, find_background, find_bodies

UNKNOWN = "unknown"
STATIC = "static"

# Tolerances, in units of 1/255 per channel where a colour is meant, otherwise in pixels of a clip of `SIZE`.
BACKGROUND_OFF = 50.0  # largest channel difference to a background's own colour; they lie 110 apart
COLOUR_OFF = 75.0  # distance to a body colour; they lie at least 173 apart, and every grey 100 or more from all
COLOUR_MARGIN = 1.4  # the second nearest colour is at least this much farther
PURE_SHARE = 0.8  # share of a body that must have its colour
SHAPE_LIMIT = 0.06  # residual of the best template as a share of the energy of the body's cover
SHAPE_MARGIN = 1.2  # the second best shape fits at least this much worse
SHAPE_SHARE = 0.75  # share of the frames whose best shape is the one of the clip
MOVING = 0.35 * TRAVEL  # least distance that counts as motion
STILL = 0.12 * TRAVEL  # largest distance that counts as none
WOBBLE = 0.10 * TRAVEL  # deviation (root mean square) from a straight, even motion
BACKWARD = 1.5  # largest step against the motion
RADII = np.arange(8.0, 17.1, 0.6)
OFFSETS = (-1 / 3, 0.0, 1 / 3)
SOFT_EDGE = 2.5  # width of the outlines that the VAE draws
# How far the VAE rounds corners, as shares of the radius: thin arms most; a square rounded more would be a circle.
ROUNDING = {"circle": (0.1, 0.2), "square": (0.06, 0.12), "triangle": (0.1, 0.2), "cross": (0.15, 0.25)}
REACH = 21  # half of the window that a template covers


@dataclass(frozen=True)
class SceneReading:
    """What a clip shows.

    Args:
        valid: Whether the clip is a plain background plus one or two bodies; if not, every factor is "unknown".
        reason: Why it is not valid; empty if it is.
        colour: A value of `FACTORS["colour"]` or "unknown"; of the left or upper body if there are two.
        shape: A value of `FACTORS["shape"]` or "unknown".
        motion: A value of `FACTORS["motion"]`, "static" or "unknown".
        background: A value of `FACTORS["background"]` or "unknown".
        displacement: Distance that the body travels from the first frame to the last, in pixels of a clip of `SIZE`.
        bodies: Number of bodies; 0 if the clip is not valid.
    """

    valid: bool
    reason: str = ""
    colour: str = UNKNOWN
    shape: str = UNKNOWN
    motion: str = UNKNOWN
    background: str = UNKNOWN
    displacement: float = 0.0
    bodies: int = 0

    @property
    def factors(self) -> dict[str, str]:
        """The value that the judge saw for each factor, in the order of `FACTORS`."""
        return {name: str(getattr(self, name)) for name in FACTORS}


def judge_clip(clip: NDArray[np.uint8]) -> SceneReading:
    """Say what a clip shows.

    Args:
        clip: RGB clip of shape (frames, size, size, 3), values 0 to 255.

    Returns:
        The reading; `valid` is False, and every factor "unknown", if the clip shows no scene.

    Raises:
        ConfigError: If `clip` is not a uint8 array of that shape.

    Example:
        >>> from unlearning_adapters.shapeworld.world.scenes import Body, Scene, render
        >>> judge_clip(render(Scene((Body("circle", "red", "left", 13.0, 32.0, 32.0),), "black"))).colour
        'red'
    """
    if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
        shape = f"{clip.dtype} of shape {clip.shape}" if isinstance(clip, np.ndarray) else type(clip).__name__
        raise ConfigError(f"Expected `clip` to be uint8 of shape (frames, size, size, 3), but got {shape}.")
    if clip.shape[1] != clip.shape[2] or 0 in clip.shape:
        raise ConfigError(f"Expected `clip` to have square frames, and at least one, but got shape {clip.shape}.")
    pixels = clip.astype(np.float32)
    try:
        ground = find_background(pixels)
        tracks = find_bodies(pixels, ground)
        check_explained(pixels, ground, tracks)
    except NotAScene as error:
        return SceneReading(valid=False, reason=str(error))
    motion, displacement = judge_motion(tracks[0])
    return SceneReading(
        valid=True,
        colour=judge_colour(pixels, tracks[0]),
        shape=judge_shape(tracks[0]),
        motion=motion,
        background=nearest_background(ground),
        displacement=displacement,
        bodies=len(tracks),
    )


def judge_clips(clips: Iterable[NDArray[np.uint8]]) -> list[SceneReading]:
    """Return the verdict of each clip, in order."""
    return [judge_clip(clip) for clip in clips]


def judge_bodies(clip: NDArray[np.uint8]) -> list[dict[str, str]]:
    """Return colour, shape and motion of each body of a clip; none if the clip shows no scene.

    Args:
        clip: RGB clip of shape (frames, size, size, 3), values 0 to 255.
    """
    if not judge_clip(clip).valid:
        return []
    pixels = clip.astype(np.float32)
    tracks = find_bodies(pixels, find_background(pixels))
    return [
        {"colour": judge_colour(pixels, track), "shape": judge_shape(track), "motion": judge_motion(track)[0]}
        for track in tracks
    ]


def nearest_background(ground: Floats) -> str:
    """Return the name of the background nearest to a colour, or "unknown"."""
    off = {name: float(np.abs(ground - np.array(colour)).max()) for name, colour in BACKGROUNDS.items()}
    best = min(off, key=off.__getitem__)
    return best if off[best] < BACKGROUND_OFF else UNKNOWN


def nearest_colour(colour: Floats) -> str:
    """Return the name of the body colour nearest to a colour, or "unknown"."""
    off = {name: float(np.linalg.norm(colour - np.array(value))) for name, value in COLOURS.items()}
    best, second = sorted(off, key=off.__getitem__)[:2]
    return best if off[best] < COLOUR_OFF and off[second] > COLOUR_MARGIN * off[best] else UNKNOWN


def judge_colour(pixels: Floats, track: Track) -> str:
    """Return the colour of a body if it keeps it over its extent and over time, or "unknown"."""
    colours = track.colours[track.present]
    name = nearest_colour(np.median(colours, axis=0))
    if name == UNKNOWN:
        return UNKNOWN
    near = np.linalg.norm(pixels[track.inner] - np.array(COLOURS[name]), axis=1) < 1.2 * COLOUR_OFF
    agreement = float(np.mean([nearest_colour(colour) == name for colour in colours]))
    return name if float(near.mean()) >= PURE_SHARE and agreement >= FRAME_SHARE else UNKNOWN


def judge_motion(track: Track) -> tuple[str, float]:
    """Return the motion of a body and the distance that it travels, from a line fit through its centroids."""
    times = np.flatnonzero(track.present).astype(np.float64)
    if len(times) < 3:
        return UNKNOWN, 0.0
    path = centroids(track.cover)[track.present].astype(np.float64) * (SIZE / track.cover.shape[1])
    slope, start = np.polyfit(times, path, 1)
    wobble = float(np.sqrt(((path - start - np.outer(times, slope)) ** 2).sum(axis=1).mean()))
    travel = slope * (len(track.cover) - 1)
    distance = float(np.hypot(*travel))
    if wobble > WOBBLE:
        return UNKNOWN, distance
    if distance <= STILL:
        return STATIC, distance
    for name, heading in MOTIONS.items():
        along, aside = float(travel @ heading), abs(float(travel @ heading[::-1]))
        if along >= MOVING and aside < 0.4 * along and (np.diff(path @ heading) > -BACKWARD).all():
            return name, distance
    return UNKNOWN, distance


def rounded(covers: Floats, sigma: float, edge: float) -> Floats:
    """Round the corners of shapes (..., window, window): blur by `sigma` pixels, then sharpen to that edge width."""
    steps = np.arange(covers.shape[-1], dtype=np.float32)
    kernel = np.exp(-0.5 * ((steps[:, None] - steps) / sigma) ** 2)
    kernel /= sigma * np.sqrt(2 * np.pi)
    # A straight edge blurred by sigma has the slope 1 / (sigma sqrt(2 pi)) at its middle.
    gain = sigma * np.sqrt(2 * np.pi) / edge
    return np.asarray(np.clip(0.5 + gain * (kernel @ covers @ kernel - 0.5), 0.0, 1.0))


@lru_cache(maxsize=4)
def templates(size: int) -> Floats:
    """Draw every shape, centroid in the middle, as (shapes, radii x looks x offsets, window x window) covers."""
    scale = size / SIZE
    reach = round(REACH * scale)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    offsets = [(x, y) for x in OFFSETS for y in OFFSETS]
    pictures: list[Floats] = []
    for shape in SHAPES:
        for radius in RADII * scale:
            # The centroid of the triangle lies below its centre, a third of its height above its base.
            down = 0.2 * radius if shape == "triangle" else 0.0
            distance = np.stack([signed_distance(shape, radius, columns - x, rows - y + down) for x, y in offsets])
            sharp: Floats = np.clip(0.5 - distance, 0.0, 1.0).astype(np.float32)
            pictures += [sharp, np.clip(0.5 - distance / SOFT_EDGE, 0.0, 1.0).astype(np.float32)]
            pictures += [rounded(sharp, share * radius, SOFT_EDGE) for share in ROUNDING[shape]]
    return np.stack(pictures).astype(np.float32).reshape(len(SHAPES), -1, rows.size)


def shape_residuals(track: Track) -> Floats:
    """Return the residual of the best template of each shape as (frames with the body, shapes), 0 for a perfect fit.

    min over templates T of |cover - T|^2 / |cover|^2.
    """
    pictures = templates(track.cover.shape[1])
    reach = round(REACH * track.cover.shape[1] / SIZE)
    cover = track.cover[track.present]
    padded = np.pad(cover, ((0, 0), (reach, reach), (reach, reach)))
    window = 2 * reach + 1
    middles = np.rint(centroids(cover)).astype(int)
    crops = np.stack(
        [frame[y : y + window, x : x + window].ravel() for frame, (x, y) in zip(padded, middles, strict=True)]
    )
    energy = (crops**2).sum(axis=1)
    flat = pictures.reshape(-1, pictures.shape[-1])
    squared = energy[:, None] - 2 * crops @ flat.T + (flat**2).sum(axis=1)
    return np.asarray(squared.reshape(len(crops), len(SHAPES), -1).min(axis=-1) / energy[:, None])


def judge_shape(track: Track) -> str:
    """Return the shape of a body if its templates fit well, clearly best, and in nearly all frames, or "unknown"."""
    residuals = shape_residuals(track)
    mean = residuals.mean(axis=0)
    best, second = np.argsort(mean)[:2]
    agree = float((residuals.argmin(axis=1) == best).mean())
    if mean[best] > SHAPE_LIMIT or mean[second] < SHAPE_MARGIN * mean[best] or agree < SHAPE_SHARE:
        return UNKNOWN
    return SHAPES[best]
