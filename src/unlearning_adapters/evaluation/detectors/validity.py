"""Whether a clip is valid: blank frames and frames of noise are not."""

import numpy as np
from numpy.typing import NDArray

from unlearning_adapters.clips import Clip

from .detector import Detection, Detector, detector_factory

BLANK = 5.0  # standard deviation of a frame in units of 1/255, below which it is blank
NOISE = 0.9  # roughness from which a frame is noise; smooth pictures lie far below, white noise at 1
SHARE = 0.5  # share of frames that must be good


@detector_factory
def validity(blank: float = BLANK, noise: float = NOISE, share: float = SHARE) -> Detector:
    """Return the detector of frames that are blank or noise.

    Args:
        blank: Least standard deviation of the values of a frame, 0 to 255.
        noise: Largest roughness of a frame.
        share: Least share of good frames in a valid clip.
    """

    def judge(frames: Clip) -> Detection:
        grey = frames.astype(np.float32).mean(axis=-1)
        flat = frames.reshape(len(frames), -1).astype(np.float32).std(axis=1) < blank
        rough = roughness(grey) > noise
        good = ~flat & ~rough
        kind = "blank" if flat.sum() >= rough.sum() else "noise"
        valid = bool(good.mean() >= share)
        return Detection(scores=tuple(good.astype(float).tolist()), valid=valid, reason="" if valid else kind)

    return Detector(
        "validity", judge, "validity", version="1", settings={"blank": blank, "noise": noise, "share": share}
    )


def roughness(grey: NDArray[np.float32]) -> NDArray[np.float32]:
    """Return how much neighbouring pixels differ, per frame: 0 for a flat picture, about 1 for white noise.

    E (x_i - x_{i+1})^2 / (2 Var x), over rows and columns: one minus the correlation of neighbours. A frame without
    contrast has the roughness 0.

    Args:
        grey: Frames of shape (frames, height, width).
    """
    variance = grey.var(axis=(1, 2))
    across = (np.diff(grey, axis=2) ** 2).mean(axis=(1, 2)) if grey.shape[2] > 1 else np.zeros_like(variance)
    down = (np.diff(grey, axis=1) ** 2).mean(axis=(1, 2)) if grey.shape[1] > 1 else np.zeros_like(variance)
    return np.asarray((across + down) / (4 * np.maximum(variance, 1e-6)), dtype=np.float32)
