"""The judge: says what a clip shows by explaining it as a scene (analysis by synthesis), and says so when it cannot.

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

UNKNOWN = "unknown"
STATIC = "static"

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

# Tolerances, in units of 1/255 per channel where a colour is meant, else in pixels of a clip of `SIZE`.
PLAIN = 30.0  # a background pixel differs from the background by less than this
PLAIN_SHARE = 0.85  # share of the border that must be plain
BACKGROUND_OFF = 50.0  # largest channel difference to a background's own colour; they lie 110 apart
COLOUR_OFF = 75.0  # distance to a body colour; they lie at least 173 apart, and every grey 100 or more from all
COLOUR_MARGIN = 1.4  # the second nearest colour is at least this much farther
PURE_SHARE = 0.8  # share of a body that must have its colour
CONTRAST = 36.0  # a body differs from the background by more than this in some channel; 4.5 sd of visible noise
AREA = (100.0, 1000.0)  # of one body
FLAT_SHARE = 0.5  # share of a body that must have its median colour
SOFTNESS = 4.5  # pixels over which the outline of a body may fade
STRAY_SHARE = 0.02  # share of a frame, away from the bodies, that may be neither background nor body
FRAME_SHARE = 0.8  # share of the frames that must show the bodies
SHAPE_LIMIT = 0.10  # residual of the best template as a share of the energy of the body's cover
SHAPE_MARGIN = 1.3  # the second best shape fits at least this much worse
SHAPE_SHARE = 0.75  # share of the frames whose best shape is the one of the clip
MOVING = 0.35 * TRAVEL  # least distance that counts as motion
STILL = 0.12 * TRAVEL  # largest distance that counts as none
WOBBLE = 0.10 * TRAVEL  # deviation (root mean square) from a straight, even motion
BACKWARD = 1.5  # largest step against the motion
RADII = np.arange(8.0, 17.01, 0.5)
OFFSETS = (-1 / 3, 0.0, 1 / 3)
EDGES = (1.0, 3.0)  # width of a sharp and of a blurred outline
REACH = 21  # half of the window that a template covers


@dataclass(frozen=True)
class Verdict:
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


@dataclass(frozen=True)
class Track:
    """One body through the clip.

    Args:
        masks: Pixels that belong to the body, of shape (frames, height, width); empty where it is not seen.
        inner: The same without its outline.
        colours: Median colour inside the outline, of shape (frames, 3).
        cover: How much of every pixel the body covers, of shape (frames, height, width), 0 to 1.
    """

    masks: Mask
    inner: Mask
    colours: Floats
    cover: Floats

    @property
    def present(self) -> Mask:
        """The frames that show the body."""
        return np.asarray(self.masks.any(axis=(1, 2)))


class NotAScene(Exception):
    """A clip cannot be explained as a scene; caught by `judge_clip`, which turns its text into a verdict."""


def judge_clip(clip: NDArray[np.uint8]) -> Verdict:
    """Say what a clip shows.

    Args:
        clip: RGB clip of shape (frames, size, size, 3), values 0 to 255.

    Returns:
        The verdict; `valid` is False, and every factor "unknown", if the clip is no scene at all.

    Raises:
        ConfigError: If `clip` is not a uint8 array of that shape.

    Example:
        >>> from unlearning_adapters.shapeworld.scenes import Body, Scene, render
        >>> judge_clip(render(Scene((Body("circle", "red", "left", 13.0, 32.0, 32.0),), "black"))).colour
        'red'
    """
    if not isinstance(clip, np.ndarray) or clip.dtype != np.uint8 or clip.ndim != 4 or clip.shape[-1] != 3:
        found = f"{clip.dtype} of shape {clip.shape}" if isinstance(clip, np.ndarray) else type(clip).__name__
        raise ConfigError(f"Expected `clip` to be uint8 of shape (frames, size, size, 3), but got {found}.")
    if clip.shape[1] != clip.shape[2] or 0 in clip.shape:
        raise ConfigError(f"Expected `clip` to have square frames, and at least one, but got shape {clip.shape}.")
    pixels = clip.astype(np.float32)
    try:
        ground = find_background(pixels)
        tracks = find_bodies(pixels, ground)
        check_explained(pixels, ground, tracks)
    except NotAScene as error:
        return Verdict(valid=False, reason=str(error))
    motion, displacement = judge_motion(tracks[0])
    return Verdict(
        valid=True,
        colour=judge_colour(pixels, tracks[0]),
        shape=judge_shape(tracks[0]),
        motion=motion,
        background=nearest_background(ground),
        displacement=displacement,
        bodies=len(tracks),
    )


def judge_clips(clips: Iterable[NDArray[np.uint8]]) -> list[Verdict]:
    """Return the verdict of each clip, in order."""
    return [judge_clip(clip) for clip in clips]


def find_background(pixels: Floats) -> Floats:
    """Return the median colour (3) of the two outermost pixels of all frames; NotAScene if they are not plain."""
    edge = np.ones(pixels.shape[1:3], dtype=bool)
    edge[2:-2, 2:-2] = False
    border = pixels[:, edge].reshape(-1, 3)
    ground = np.median(border, axis=0)
    plain = float((np.abs(border - ground).max(axis=1) < PLAIN).mean())
    if plain < PLAIN_SHARE:
        raise NotAScene(f"only {plain:.0%} of the border is plain background")
    return ground


def nearest_background(ground: Floats) -> str:
    """Return the name of the background nearest to a colour, or "unknown"."""
    off = {name: float(np.abs(ground - np.array(colour)).max()) for name, colour in BACKGROUNDS.items()}
    best = min(off, key=off.__getitem__)
    return best if off[best] < BACKGROUND_OFF else UNKNOWN


def label_components(mask: Mask) -> NDArray[np.intp]:
    """Label the 4-connected components of each frame of a mask (frames, height, width) from 1 up; 0 is off the mask.

    Runs of pixels in a row are joined with the runs that touch them above and below, by pointer jumping.
    """
    starts = mask.copy()
    starts[..., 1:] &= ~mask[..., :-1]
    runs = np.cumsum(starts).reshape(mask.shape) * mask
    touch = mask[:, 1:] & mask[:, :-1]
    one, two = runs[:, 1:][touch], runs[:, :-1][touch]
    parent = np.arange(runs.max() + 1)
    while True:
        a, b = parent[one], parent[two]
        if np.array_equal(a, b):
            return np.asarray(parent[runs])
        low = np.minimum(a, b)
        np.minimum.at(parent, a, low)
        np.minimum.at(parent, b, low)
        while not np.array_equal(parent, jumped := parent[parent]):
            parent = jumped


def spread(mask: Mask, times: int) -> Mask:
    """Return a mask grown by its 4-neighbours so many times; call on `~mask` and invert to shrink."""
    for _ in range(times):
        grown = mask.copy()
        grown[:, 1:] |= mask[:, :-1]
        grown[:, :-1] |= mask[:, 1:]
        grown[:, :, 1:] |= mask[:, :, :-1]
        grown[:, :, :-1] |= mask[:, :, 1:]
        mask = grown
    return mask


def find_bodies(pixels: Floats, ground: Floats) -> list[Track]:
    """Return the one or two bodies of a clip, the left or upper one first; NotAScene if there are none or more."""
    contrast = np.abs(pixels - ground).max(axis=-1)
    ahead = contrast[contrast > CONTRAST]
    if ahead.size == 0:
        raise NotAScene("nothing stands out from the background")
    labels = label_components(contrast > max(CONTRAST, 0.5 * float(np.median(ahead))))
    areas = np.bincount(labels.ravel())
    areas[0] = 0
    least, most = (limit * (pixels.shape[1] / SIZE) ** 2 for limit in AREA)
    found: list[list[int]] = []
    for frame in labels:
        names = [int(name) for name in np.unique(frame) if areas[name] >= least]
        if any(areas[name] > most for name in names):
            names = []
        found.append(names)
    counts = np.array([len(names) for names in found])
    bodies = int(np.bincount(counts).argmax())
    share = float((counts == bodies).mean())
    if bodies not in (1, 2) or share < FRAME_SHARE:
        raise NotAScene(f"{share:.0%} of the frames show {bodies} bodies of plausible size")
    masks = np.zeros((bodies, *labels.shape), dtype=bool)
    for index, names in enumerate(found):
        if len(names) == bodies:
            for body, name in enumerate(names):
                masks[body, index] = labels[index] == name
    if bodies == 2:
        masks = in_order(masks)
    return [make_track(pixels, ground, mask) for mask in masks]


def in_order(masks: Mask) -> Mask:
    """Sort the two bodies of each frame (2, frames, height, width) along the axis that parts them most."""
    centres = np.stack([centroids(mask.astype(np.float32)) for mask in masks])
    axis = int(np.nanmedian(np.abs(centres[0] - centres[1]), axis=0).argmax())
    swap = centres[0, :, axis] > centres[1, :, axis]
    ordered = masks.copy()
    ordered[:, swap] = masks[::-1, swap]
    return ordered


def make_track(pixels: Floats, ground: Floats, masks: Mask) -> Track:
    """Measure the colour of a body inside its outline in each frame, and from it how much of every pixel it covers."""
    inner = masks & ~spread(~masks, 2)
    colours = np.full((len(pixels), 3), ground, dtype=np.float32)
    for index in np.flatnonzero(inner.any(axis=(1, 2))):
        colours[index] = np.median(pixels[index][inner[index]], axis=0)
    toward = colours - ground
    # A body too thin or too pale to have a colour of its own is not seen in that frame.
    seen = np.abs(toward).max(axis=1) > 0.5 * CONTRAST
    reach = np.maximum((toward**2).sum(axis=1), 1.0)[:, None, None]
    cover = np.clip(np.einsum("fhwc,fc->fhw", pixels - ground, toward) / reach, 0.0, 1.0)
    cover *= spread(masks, 3)
    seen = (seen & (cover.sum(axis=(1, 2)) > 1.0))[:, None, None]
    return Track(masks & seen, inner & seen, colours, cover * seen)


def check_explained(pixels: Floats, ground: Floats, tracks: list[Track]) -> None:
    """Raise NotAScene if flat bodies with clear outlines over the background do not explain nearly all of the clip."""
    near = np.zeros(pixels.shape[:3], dtype=bool)
    for track in tracks:
        near |= spread(track.masks, 3)
        seen = float(track.present.mean())
        if seen < FRAME_SHARE:
            raise NotAScene(f"a body is seen in only {seen:.0%} of the frames")
        flat = float((np.abs(pixels - track.colours[:, None, None]).max(axis=-1) < CONTRAST)[track.inner].mean())
        if flat < FLAT_SHARE:
            raise NotAScene(f"only {flat:.0%} of a body has one colour")
        outline = track.masks & spread(~track.masks, 1)
        soft = float(((track.cover > 0.2) & (track.cover < 0.8)).sum() / outline.sum())
        if soft > SOFTNESS:
            raise NotAScene(f"a body has no clear outline, it fades over {soft:.1f} pixels")
    stray = ((np.abs(pixels - ground).max(axis=-1) > CONTRAST) & ~near).mean(axis=(1, 2))
    bad = float((stray > STRAY_SHARE).mean())
    if bad > 1 - FRAME_SHARE:
        raise NotAScene(f"{bad:.0%} of the frames hold more than background and bodies")


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
    kept = float(np.mean([nearest_colour(colour) == name for colour in colours]))
    return name if float(near.mean()) >= PURE_SHARE and kept >= FRAME_SHARE else UNKNOWN


def centroids(cover: Floats) -> Floats:
    """Return the centroid of every frame of (frames, height, width) as (frames, 2) of (x, y); NaN for empty frames."""
    total = cover.sum(axis=(1, 2))
    total = np.where(total > 0, total, np.nan)
    x = cover.sum(axis=1) @ np.arange(cover.shape[2], dtype=np.float32)
    y = cover.sum(axis=2) @ np.arange(cover.shape[1], dtype=np.float32)
    return np.stack([x, y], axis=1) / total[:, None]


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


@lru_cache(maxsize=4)
def templates(size: int) -> Floats:
    """Draw every shape, centroid in the middle, as (shapes, edges x radii x offsets, window x window) covers."""
    scale = size / SIZE
    reach = round(REACH * scale)
    rows, columns = np.mgrid[-reach : reach + 1, -reach : reach + 1].astype(np.float32)
    drawn = []
    for shape in SHAPES:
        for radius in RADII * scale:
            # The centroid of the triangle lies below its centre, a third of its height above its base.
            down = 0.2 * radius if shape == "triangle" else 0.0
            for x in OFFSETS:
                for y in OFFSETS:
                    distance = signed_distance(shape, radius, columns - x, rows - y + down)
                    drawn += [np.clip(0.5 - distance / edge, 0.0, 1.0).ravel() for edge in EDGES]
    return np.stack(drawn).astype(np.float32).reshape(len(SHAPES), -1, rows.size)


def shape_residuals(track: Track) -> Floats:
    """Return the residual of the best template of each shape as (frames with the body, shapes), 0 for a perfect fit.

    min over templates T of |cover - T|^2 / |cover|^2.
    """
    drawn = templates(track.cover.shape[1])
    reach = round(REACH * track.cover.shape[1] / SIZE)
    cover = track.cover[track.present]
    padded = np.pad(cover, ((0, 0), (reach, reach), (reach, reach)))
    window = 2 * reach + 1
    middles = np.rint(centroids(cover)).astype(int)
    crops = np.stack(
        [frame[y : y + window, x : x + window].ravel() for frame, (x, y) in zip(padded, middles, strict=True)]
    )
    energy = (crops**2).sum(axis=1)
    flat = drawn.reshape(-1, drawn.shape[-1])
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
