"""A detector is added in the two steps of docs/architecture.md: a file, and its name in the table."""

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest

from unlearning_adapters.evaluation import detectors
from unlearning_adapters.evaluation.detectors.detector import BUILT_IN, load_detector

NAME = f"{detectors.__name__}.toy"
TOY = '''"""The toy detector: it sees the concept in frames that are dark."""

from unlearning_adapters.clips import Clip

from .detector import Detection, Detector, detector_factory


@detector_factory
def toy(light: float = 255.0) -> Detector:
    """Return the detector of dark frames, whose scores go from 0, as bright as `light`, to 1."""

    def look(frames: Clip) -> Detection:
        return Detection(tuple(1 - float(frame.mean()) / float(light) for frame in frames))

    return Detector("toy", look, threshold=0.6, version="1", settings={"light": light})
'''


def test_a_toy_detector_takes_a_file_and_a_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "toy.py"
    file.write_text(TOY, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(NAME, file)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, NAME, module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(BUILT_IN, "toy", f"{NAME}:toy")

    detector = load_detector("toy?light=100&threshold=0.4")
    assert (detector.threshold, detector.settings["light"]) == (0.4, 100)
    dark, light = (np.full((2, 4, 4, 3), value, np.uint8) for value in (50, 90))
    assert detector(dark, "a prompt").scores == pytest.approx((0.5, 0.5))
    assert detector.sees_concept(detector(dark, "a prompt"), {}) is True
    assert detector.sees_concept(detector(light, "a prompt"), {}) is False
