"""Which frames of a clip a slow detector looks at, and how settings that are lists are written in one line."""

from collections.abc import Iterable

import numpy as np

from unlearning_adapters.clips import Clip
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.pipelines.spacing import evenly_spaced

FRAMES = 10  # looked at by default: the first, the last, and eight between them


def check_count(name: str, value: float) -> int:
    """Return a setting as a whole number of at least 0; command lines give floats."""
    if value != int(value) or value < 0:
        raise EvaluationError(f"Expected {name} to be a whole number >= 0, but got {value!r}.")
    return int(value)


def choose_frames(frames: Clip, count: int) -> Clip:
    """Return at most `count` frames, evenly from the first to the last; 0 takes all.

    Args:
        frames: Clip of shape (frames, height, width, 3).
        count: Number of frames; 1 takes the middle one.
    """
    if count == 0 or count >= len(frames):
        return frames
    if count == 1:
        return frames[len(frames) // 2 : len(frames) // 2 + 1]
    return np.asarray(frames[list(evenly_spaced(len(frames), count))])


def split_texts(name: str, values: str | float | Iterable[str]) -> list[str]:
    """Return a list of texts; one text holds several after "|", as in "a red car|a red bus"."""
    if isinstance(values, (int, float)):  # a command line reads a word of digits as a number
        values = f"{values:g}"
    given = values.split("|") if isinstance(values, str) else list(values)
    texts = [str(text).strip() for text in given]
    if not texts or not all(texts):
        raise EvaluationError(f"Expected {name} to be texts that are not empty, such as 'one|two', but got {given!r}.")
    return texts
