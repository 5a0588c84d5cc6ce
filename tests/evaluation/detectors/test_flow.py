"""Optical flow: a known shift is found, a still is still, and the unit belongs to a size."""

import numpy as np
import pytest

from unlearning_adapters.clips import Clip
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.detectors.detector import Detector
from unlearning_adapters.evaluation.detectors.floor import measure_floor
from unlearning_adapters.evaluation.detectors.flow import flow

METHODS = ("blocks", "farneback")


def sliding(shift: int, side: int = 96, frames: int = 4, grain: int = 6) -> Clip:
    """A smooth random texture that slides to the right by some pixels per frame, without an edge."""
    coarse = np.random.default_rng(0).uniform(0, 255, (side, side))
    spectrum = np.fft.fft2(coarse) * np.exp(-((np.hypot(*np.meshgrid(*[np.fft.fftfreq(side) * grain] * 2)) * 2) ** 2))
    smooth = np.fft.ifft2(spectrum).real
    smooth = (smooth - smooth.min()) / np.ptp(smooth) * 255
    clip = np.stack([np.roll(smooth, shift * index, axis=1) for index in range(frames)])
    return np.repeat(clip.round().astype(np.uint8)[..., None], 3, axis=-1)


def measure(method: str, side: int = 96) -> Detector:
    return flow(method, side)


@pytest.mark.parametrize("method", METHODS)
def test_a_known_shift_is_found(method: str) -> None:
    detector = measure(method)
    found = detector(sliding(2))
    assert found.motion == pytest.approx(2.0, rel=0.1) and len(found.scores) == 3
    assert detector(sliding(-2)).motion == pytest.approx(2.0, rel=0.1)
    assert detector(sliding(1)).motion == pytest.approx(1.0, rel=0.15)
    assert detector(sliding(2)[:1]).motion == 0.0


@pytest.mark.parametrize("method", METHODS)
def test_the_unit_belongs_to_a_size(method: str) -> None:
    small = measure(method, 96)(sliding(2)).motion
    assert measure(method, 192)(sliding(2)).motion == pytest.approx(2 * small, rel=1e-6)
    large = np.repeat(np.repeat(sliding(2), 2, axis=1), 2, axis=2)
    assert measure(method, 96)(large).motion == pytest.approx(small, rel=1e-6)
    assert measure(method).describe()["settings"]["unit"] == "pixels per frame at 96 pixels on the longer side"


@pytest.mark.parametrize("method", METHODS)
def test_a_still_is_still(method: str) -> None:
    detector = measure(method)
    noise = np.random.default_rng(1).integers(0, 256, (3, 40, 50, 3), dtype=np.uint8)
    floor = measure_floor(detector, [sliding(2), noise])
    assert floor.clips.count == 2 and floor.errors == 0
    assert (floor.largest or 0.0) < 0.01
    assert detector(np.full((3, 40, 50, 3), 128, dtype=np.uint8)).motion == 0.0


def test_what_flow_refuses() -> None:
    with pytest.raises(EvaluationError, match="method of flow to be farneback or blocks, .* but got 'raft' and 240"):
        flow("raft")
    with pytest.raises(EvaluationError, match="side at least 8, but got 'blocks' and 4"):
        flow("blocks", 4)
