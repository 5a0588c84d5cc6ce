"""Detectors: the protocol, the built-in ones, and what they refuse."""

import sys
import types
from importlib.metadata import EntryPoint

import numpy as np
import pytest
import torch
from evaluation_runs import scene

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.detectors import detector as module
from unlearning_adapters.evaluation.detectors.detector import (
    Detection,
    Detector,
    as_detection,
    as_detector,
    as_detectors,
    load_detector,
)
from unlearning_adapters.evaluation.detectors.validity import roughness

RED = scene({"colour": "red"})
NOISE = np.random.default_rng(0).integers(0, 256, RED.shape, dtype=np.uint8)


def test_a_plain_callable_may_return_a_number_numbers_labels_or_tensors() -> None:
    assert as_detection(0.25) == Detection((0.25,))
    assert as_detection([0, True, 0.5]) == Detection((0.0, 1.0, 0.5))
    assert as_detection(torch.tensor([0.5, 1.0])) == Detection((0.5, 1.0))
    assert as_detection({"colour": "red"}) == Detection(labels={"colour": "red"})
    for wrong in (None, "red", [], [[1.0]], {"colour": 1}):
        with pytest.raises(EvaluationError, match="to return a number, numbers per frame"):
            as_detection(wrong)
    with pytest.raises(EvaluationError, match="to be finite"):
        as_detection(float("nan"))


def test_what_a_detection_holds_survives_json() -> None:
    for found in (Detection(), Detection((0.5, 1.0), {"colour": "red"}, False, "noise", 2.5), Detection(valid=True)):
        assert Detection.from_dict(found.to_dict()) == found


def test_thresholds_and_shares_decide() -> None:
    detection = Detection((0.2, 0.6, 0.7, 0.1))
    assert as_detector(lambda f: 0, "x", threshold=0.6).sees_concept(detection, {}) is True
    assert as_detector(lambda f: 0, "x", threshold=0.71).sees_concept(detection, {}) is False
    assert as_detector(lambda f: 0, "x", threshold=0.6, min_share=0.5).sees_concept(detection, {}) is True
    assert as_detector(lambda f: 0, "x", threshold=0.6, min_share=0.6).sees_concept(detection, {}) is False
    assert as_detector(lambda f: 0, "x").sees_concept(Detection(), {}) is None
    assert as_detector(lambda f: 0, "x", kind="quality").sees_concept(detection, {}) is None
    labelled = Detection(labels={"colour": "red"})
    assert as_detector(lambda f: 0, "x").sees_concept(labelled, {"colour": "red"}) is True
    assert as_detector(lambda f: 0, "x").sees_concept(labelled, {"shape": "circle"}) is None


def test_validity_tells_pictures_from_rubbish() -> None:
    judge = load_detector("validity")
    smooth = np.linspace(0, 255, 64, dtype=np.uint8)[None, :, None, None].repeat(9, 0).repeat(64, 2).repeat(3, 3)
    for clip, valid, reason in (
        (RED, True, ""), (smooth, True, ""), (NOISE, False, "noise"), (np.full_like(RED, 90), False, "blank"),
    ):  # fmt: skip
        found = judge(clip)
        assert (found.valid, found.reason) == (valid, reason)
    half = RED.copy()
    half[:5] = 0
    assert judge(half).valid is False and load_detector("validity?share=0.4")(half).valid is True
    grey = NOISE.astype(np.float32).mean(-1)
    assert (
        roughness(grey) == pytest.approx(np.ones(9), abs=0.1) and roughness(np.zeros((2, 8, 8), np.float32)).max() == 0
    )


def test_motion_is_zero_for_a_still_and_grows_with_speed() -> None:
    measure = load_detector("motion")
    still = np.repeat(RED[:1], 9, axis=0)
    slow = np.repeat(RED[:5], 2, axis=0)[:9]
    assert measure(still).motion == 0.0
    assert 0 < measure(slow).motion < measure(RED).motion
    assert len(measure(RED).scores) == len(RED) - 1 and measure(RED[:1]).motion == 0.0


def test_the_judge_gives_labels_and_rejects() -> None:
    judge = load_detector("shapes")
    assert judge(RED).labels == {"colour": "red", "shape": "circle", "motion": "left", "background": "black"}
    assert judge(NOISE).valid is False and judge(NOISE).labels == {}


def test_detectors_are_found_by_name(monkeypatch: pytest.MonkeyPatch) -> None:
    foreign = types.ModuleType("foreign_detectors")
    foreign.brightness = lambda frames: frames.mean() / 255
    foreign.made = module.detector_factory(lambda preset="a": Detector(f"made-{preset}", lambda frames: 1.0))
    monkeypatch.setitem(sys.modules, "foreign_detectors", foreign)
    assert load_detector("foreign_detectors:brightness?threshold=0.25").threshold == 0.25
    points = [EntryPoint("made", "foreign_detectors:made", module.GROUP)]
    monkeypatch.setattr(module, "entry_points", lambda group: points if group == module.GROUP else [])
    assert load_detector("made?preset=strict&threshold=0.1").describe()["name"] == "made-strict"
    with pytest.raises(EvaluationError, match="Unknown detector 'nudent'. Known: cast, clip, flow, made, motion, nu"):
        load_detector("nudent")
    with pytest.raises(EvaluationError, match="takes no settings, but got preset"):
        load_detector("foreign_detectors:brightness?preset=x")
    with pytest.raises(EvaluationError, match="Cannot load the detector 'foreign_detectors:absent'"):
        load_detector("foreign_detectors:absent")
    with pytest.raises(EvaluationError, match="threshold in .* to be a number, but got 'high'"):
        load_detector("validity?threshold=high")


def test_names_are_used_once() -> None:
    assert [item.name for item in as_detectors({"a": lambda f: 0, "b": "motion"})] == ["a", "b"]
    with pytest.raises(EvaluationError, match="Two detectors are named 'motion'"):
        as_detectors(["motion", "motion"])
    with pytest.raises(EvaluationError, match="to be callable, but got 3"):
        as_detector(3, "three")
