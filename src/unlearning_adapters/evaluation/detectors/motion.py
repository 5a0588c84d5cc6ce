"""How much moves in a clip, from the pixels alone: a picture that stands still must not pass for a good video."""

import numpy as np

from unlearning_adapters.clips import Clip

from .detector import Detection, Detector, detector_factory

SIDE = 64  # frames are averaged down to about this many pixels on the longer side, so that noise does not count


@detector_factory
def motion(side: int = SIDE) -> Detector:
    """Return the detector of motion: the mean absolute difference of successive frames, 0 to 1, after averaging.

    Args:
        side: Pixels on the longer side to which frames are averaged down.
    """
    side = int(side)

    def measure(frames: Clip) -> Detection:
        small = average_down(frames, side)
        change = np.abs(np.diff(small, axis=0)).mean(axis=(1, 2, 3)) / 255 if len(small) > 1 else np.zeros(1)
        return Detection(scores=tuple(float(value) for value in change), motion=float(change.mean()))

    return Detector("motion", measure, "motion", version="1", settings={"side": side})


def average_down(frames: Clip, side: int) -> np.ndarray:
    """Return frames whose pixels are means of equal blocks, at least `side` of them on the longer side if there are.

    Args:
        frames: Clip of shape (frames, height, width, 3).
        side: Pixels on the longer side.

    Returns:
        float32 array of shape (frames, rows, columns, 3).
    """
    block = max(1, max(frames.shape[1:3]) // side)
    rows, columns = max(1, frames.shape[1] // block), max(1, frames.shape[2] // block)
    high, wide = min(block, frames.shape[1]), min(block, frames.shape[2])
    cut = frames[:, : rows * high, : columns * wide].astype(np.float32)
    return np.asarray(cut.reshape(len(frames), rows, high, columns, wide, 3).mean(axis=(2, 4)))
