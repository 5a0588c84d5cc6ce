"""Clips that the user gives in place of those that a build would make: of both sides of the pairs, and neutral ones."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from unlearning_adapters.adapter.missing import why_unreadable
from unlearning_adapters.clips import Clip, check_clip, to_clip
from unlearning_adapters.errors import ConceptError, ConfigError

from .images import is_picture

UNSAFE, SAFE, NEUTRAL = "unsafe", "safe", "neutral"
SIDES = (UNSAFE, SAFE)
PICTURES = (".png", ".jpg", ".jpeg", ".webp")
FILMS = (".mp4", ".gif")
ARRAY = ".npy"


def read_clips(source: Any, pairs: int) -> dict[str, list[Clip]]:
    """Return the clips of both sides of the pairs, and the neutral ones.

    Args:
        source: A folder with the folders "unsafe", "safe" and, if wanted, "neutral", whose files are taken in the order
            of their names; or a mapping of these names to lists of clips. A clip is a film (.mp4, .gif), a picture,
            which stands still, an array (.npy or in memory) of shape (frames, height, width, 3), a tensor of shape
            (frames, 3, height, width), or a list of PIL images; floats are from 0 to 1.
        pairs: Number of the pairs. Each has the same number of clips, one after the other.

    Returns:
        Clips of shape (frames, height, width, 3), uint8, by "unsafe", "safe" and "neutral"; a picture has one frame.

    Raises:
        ConceptError: If a file cannot be read, or the numbers of clips do not fit the pairs.
        ConfigError: If the source is neither a folder nor a mapping, or an item is no clip.
    """
    given = _in_folder(Path(source)) if isinstance(source, (str, Path)) else source
    if not isinstance(given, Mapping) or not set(SIDES) <= set(given) <= {*SIDES, NEUTRAL}:
        found = ", ".join(map(repr, given)) if isinstance(given, Mapping) else type(given).__name__
        raise ConfigError(
            f"Expected clips as a folder or a mapping of 'unsafe', 'safe' and 'neutral', but got {found}."
        )
    counts = {name: len(given[name]) for name in SIDES}
    if counts["unsafe"] != counts["safe"] or not counts["safe"] or counts["safe"] % pairs:
        raise ConceptError(
            f"Expected as many clips of the safe sides as of the unsafe ones, and the same number for each of the "
            f"{pairs} pairs, but got {counts['unsafe']} unsafe and {counts['safe']} safe clips."
        )
    return {
        name: [_read(item, f"{name} clip {index}") for index, item in enumerate(given[name], start=1)] for name in given
    }


def _in_folder(folder: Path) -> dict[str, list[Path]]:
    """Return the files of each side; hidden ones are none."""
    if not folder.is_dir():
        raise ConceptError(f"Expected a folder with clips, but there is none at {str(folder)!r}. Check the path.")
    missing = [name for name in SIDES if not (folder / name).is_dir()]
    if missing:
        raise ConceptError(
            f"Expected the folders 'unsafe' and 'safe' in {str(folder)!r}, but {missing[0]!r} is missing."
        )
    names = [name for name in (*SIDES, NEUTRAL) if (folder / name).is_dir()]
    return {name: sorted(path for path in (folder / name).iterdir() if path.name[0] != ".") for name in names}


def _read(item: Any, place: str) -> Clip:
    if isinstance(item, (str, Path)):
        return _opened(Path(item))
    if hasattr(item, "detach"):  # a tensor of torch, which this room need not import
        item = item.detach().float().cpu().numpy()
        item = item.transpose(0, 2, 3, 1) if item.ndim == 4 else item
    try:
        return to_clip([item] if is_picture(item) else item)
    except (ConfigError, ValueError, TypeError) as error:
        raise ConfigError(f"The {place} is none: {error}") from error


def _opened(path: Path) -> Clip:
    """Return the frames of a file."""
    suffix = path.suffix.lower()
    if suffix not in (*PICTURES, *FILMS, ARRAY):
        known = ", ".join((*FILMS, *PICTURES, ARRAY))
        raise ConceptError(f"Expected clips to be files of the kinds {known}, but got {str(path)!r}.")
    if reason := why_unreadable(path):
        raise ConceptError(f"The clip {str(path)!r} cannot be read: {reason}. Check the path.")
    try:
        if suffix == ARRAY:
            return to_clip(np.load(path, allow_pickle=False))
        from diffusers.utils import load_image, load_video

        frames = [load_image(str(path))] if suffix in PICTURES else load_video(str(path))
        return to_clip([frame.convert("RGB") for frame in frames])
    except Exception as error:  # PIL's, numpy's and imageio's, of a dozen kinds
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise ConceptError(f"The clip {str(path)!r} cannot be opened ({reason[:200]}). Check the file.") from error


def fitted(clip: Clip, size: Sequence[int]) -> Clip:
    """Return a clip at the size of a pipeline's own clips.

    A picture is repeated for all frames. A clip whose sides are a whole multiple of the size, as `save_clip` enlarges
    small ones, is averaged down. Nothing else is changed: what a scale or a cut would make of a motion is unknown.

    Args:
        clip: Frames of shape (frames, height, width, 3).
        size: Frames, height and width of the pipeline's clips.

    Raises:
        ConceptError: If the clip has another number of frames, or another size.
    """
    frames, height, width = size
    found = check_clip(clip)
    factor = max(1, found.shape[1] // height)
    if found.shape[1:3] != (factor * height, factor * width) or len(found) not in (1, frames):
        raise ConceptError(
            f"A given clip has {len(found)} frames of {found.shape[1]} x {found.shape[2]} pixels (height x width), but "
            f"those of the pipeline have {frames} of {height} x {width}. Give clips of this size, or set the size of "
            "the pipeline's in call_kwargs."
        )
    if factor > 1:
        parts = found.reshape(len(found), height, factor, width, factor, 3).astype(np.float32)
        found = np.rint(parts.mean(axis=(2, 4))).astype(np.uint8)
    return found if len(found) == frames else np.repeat(found, frames, axis=0)
