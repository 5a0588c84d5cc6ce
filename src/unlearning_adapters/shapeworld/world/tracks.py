"""Explains a clip as a plain background plus one or two flat bodies, each followed through the frames.

A clip that cannot be explained so (noise, blank, destroyed) shows no scene, and nothing may be read off it.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from .scenes import SIZE

Mask = NDArray[np.bool_]
Floats = NDArray[np.float32]

# A pixel and the four beside it, in one frame of (frames, height, width).
NEIGHBOURS = np.zeros((3, 3, 3), dtype=bool)
NEIGHBOURS[1] = ndimage.generate_binary_structure(2, 1)

# Tolerances, in units of 1/255 per channel where a colour is meant, otherwise in pixels of a clip of `SIZE`.
PLAIN = 30.0  # a background pixel differs from the background by less than this
PLAIN_SHARE = 0.85  # share of the border that must be plain
CONTRAST = 36.0  # a body differs from the background by more than this in some channel; 4.5 sd of visible noise
BODY_CONTRAST = 50.0  # of the inside of a body; all colours lie 96 or more from all backgrounds
AREA = (100.0, 1000.0)  # of one body
FLAT_SHARE = 0.5  # share of a body that must have its median colour
SOFTNESS = 4.5  # pixels over which the outline of a body may fade
STRAY_SHARE = 0.02  # share of a frame, away from the bodies, that may be neither background nor body
FRAME_SHARE = 0.8  # share of the frames that must show the bodies


class NotAScene(Exception):
    """A clip cannot be explained as a scene; caught by `judge_clip`, which turns its text into a verdict."""


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


def label_components(mask: Mask) -> NDArray[np.intp]:
    """Label the 4-connected components of each frame of a mask (frames, height, width) from 1 up; 0 is off the mask.

    Labels rise in reading order: frame by frame, and in a frame by the first pixel.
    """
    return np.asarray(ndimage.label(mask, NEIGHBOURS)[0], dtype=np.intp)


def spread(mask: Mask, times: int) -> Mask:
    """Return a mask grown by its 4-neighbours so many times; call on `~mask` and invert to shrink."""
    return np.asarray(ndimage.binary_dilation(mask, NEIGHBOURS, iterations=times))


def find_bodies(pixels: Floats, ground: Floats) -> list[Track]:
    """Return the one or two bodies of a clip, the left or upper one first; NotAScene if there are none or more."""
    contrast = np.abs(pixels - ground).max(axis=-1)
    ahead = contrast[contrast > CONTRAST]
    if ahead.size == 0:
        raise NotAScene("nothing stands out from the background")
    labels = label_components(contrast > max(CONTRAST, 0.5 * float(np.median(ahead))))
    names_of_frames = bodies_per_frame(labels)
    counts = np.array([len(names) for names in names_of_frames])
    bodies = int(np.bincount(counts).argmax())
    share = float((counts == bodies).mean())
    if bodies not in (1, 2) or share < FRAME_SHARE:
        raise NotAScene(f"{share:.0%} of the frames show {bodies} bodies of plausible size")
    masks = np.zeros((bodies, *labels.shape), dtype=bool)
    for index in np.flatnonzero(counts == bodies):
        for body, name in enumerate(names_of_frames[index]):
            masks[body, index] = labels[index] == name
    if bodies == 2:
        masks = in_order(masks)
    return [make_track(pixels, ground, mask) for mask in masks]


def bodies_per_frame(labels: NDArray[np.intp]) -> list[list[int]]:
    """Return the components of each frame that are as large as a body; none in a frame that holds a larger one."""
    areas = np.bincount(labels.ravel())
    least, most = (limit * (labels.shape[1] / SIZE) ** 2 for limit in AREA)
    frames = [[int(name) for name in np.unique(frame) if name and areas[name] >= least] for frame in labels]
    return [names if all(areas[name] <= most for name in names) else [] for names in frames]


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
    visible = np.abs(toward).max(axis=1) > BODY_CONTRAST
    reach = np.maximum((toward**2).sum(axis=1), 1.0)[:, None, None]
    cover = np.clip(np.einsum("fhwc,fc->fhw", pixels - ground, toward) / reach, 0.0, 1.0)
    cover *= spread(masks, 3)
    visible = (visible & (cover.sum(axis=(1, 2)) > 1.0))[:, None, None]
    return Track(masks & visible, inner & visible, colours, cover * visible)


def check_explained(pixels: Floats, ground: Floats, tracks: list[Track]) -> None:
    """Raise NotAScene if flat bodies with clear outlines over the background do not explain nearly all of the clip."""
    near = np.zeros(pixels.shape[:3], dtype=bool)
    for track in tracks:
        near |= spread(track.masks, 3)
        share = float(track.present.mean())
        if share < FRAME_SHARE:
            raise NotAScene(f"a body is seen in only {share:.0%} of the frames")
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


def centroids(cover: Floats) -> Floats:
    """Return the centroid of every frame of (frames, height, width) as (frames, 2) of (x, y); NaN for empty frames."""
    total = cover.sum(axis=(1, 2))
    total = np.where(total > 0, total, np.nan)
    x = cover.sum(axis=1) @ np.arange(cover.shape[2], dtype=np.float32)
    y = cover.sum(axis=2) @ np.arange(cover.shape[1], dtype=np.float32)
    return np.asarray(np.stack([x, y], axis=1) / total[:, None], dtype=np.float32)
