"""How fast things move in a clip, by optical flow, in pixels per frame at a stated size."""

from collections.abc import Callable

import numpy as np
from numpy.typing import NDArray

from unlearning_adapters.adapter.versions import version_of
from unlearning_adapters.clips import Clip
from unlearning_adapters.errors import EvaluationError

from .detector import Detection, Detector, check_count, detector_factory
from .loading import load_package
from .motion import average_down

SIDE = 240
PACKAGE = "opencv-python-headless"
BLOCK, REACH = 8, 4  # of block matching: pixels of a block's side, and how far it is looked for
# Of Farneback's method, as in OpenCV's tutorial: pyramid scale, levels, window, iterations, neighbourhood, deviation.
FARNEBACK = (0.5, 3, 15, 3, 5, 1.2)

Measure = Callable[[NDArray[np.float32], NDArray[np.float32]], float]


@detector_factory
def flow(method: str = "farneback", side: float = SIDE) -> Detector:
    """Return the detector of motion: the mean length of the optical flow over all pixels and pairs of frames.

    Args:
        method: "farneback" (G. Farneback, 2003; needs opencv-python-headless) or "blocks": the shift of up to 4 pixels
            at which a block of 8 x 8 pixels fits best, by the mean absolute difference; whole pixels, no package.
        side: Pixels of the longer side to which the unit belongs: pixels per frame of a clip of that size. Larger clips
            are averaged down to it or a little more, smaller ones are left as they are.

    Raises:
        EvaluationError: If the method is unknown, or its package is not installed.
    """
    side = check_count("the side of flow", side)
    if method not in ("farneback", "blocks") or side < BLOCK:
        raise EvaluationError(
            f"Expected the method of flow to be farneback or blocks, and its side at least {BLOCK}, "
            f"but got {method!r} and {side}."
        )
    measure = _farneback() if method == "farneback" else block_motion

    def look(frames: Clip) -> Detection:
        grey = average_down(frames, side).mean(axis=-1)
        scale = side / max(grey.shape[1:])
        speeds = [measure(one, two) * scale for one, two in zip(grey[:-1], grey[1:], strict=True)]
        return Detection(tuple(speeds), motion=float(np.mean(speeds)) if speeds else 0.0)

    settings = {"method": method, "side": side, "unit": f"pixels per frame at {side} pixels on the longer side"}
    return Detector("flow", look, "motion", version=version_of(PACKAGE) if method == "farneback" else "1",
                    settings=settings)  # fmt: skip


def _farneback() -> Measure:
    cv2 = load_package("cv2", PACKAGE, "flow")

    def measure(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
        pictures = [frame.round().astype(np.uint8) for frame in (one, two)]
        flow = cv2.calcOpticalFlowFarneback(*pictures, None, *FARNEBACK, 0)
        return float(np.linalg.norm(flow, axis=-1).mean())

    return measure


def block_motion(one: NDArray[np.float32], two: NDArray[np.float32]) -> float:
    """Return the mean length in pixels of the shifts at which the blocks of a frame fit best in the next one.

    Of shifts that fit equally well the shortest counts, so that flat blocks stand still.

    Args:
        one: Frame of shape (height, width).
        two: The next frame.
    """
    shifts = [(y, x) for y in range(-REACH, REACH + 1) for x in range(-REACH, REACH + 1)]
    shifts.sort(key=lambda shift: shift[0] ** 2 + shift[1] ** 2)
    height, width = one.shape
    block = min(BLOCK, height, width)
    padded = np.pad(two, REACH, mode="edge")
    costs = []
    for y, x in shifts:
        moved = padded[REACH + y : REACH + y + height, REACH + x : REACH + x + width]
        change = np.abs(one - moved)[: height // block * block, : width // block * block]
        costs.append(change.reshape(height // block, block, width // block, block).mean(axis=(1, 3)))
    lengths = np.asarray([np.hypot(*shift) for shift in shifts])
    return float(lengths[np.argmin(costs, axis=0)].mean())
