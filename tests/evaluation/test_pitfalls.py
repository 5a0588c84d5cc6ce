"""The twenty ways to fool oneself about erasure, one test each: none of them gets through."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import evaluation_runs as runs
import numpy as np
import pytest
from evaluation_runs import noise, obedient, recoloured, red_suite, scene, synthetic

from unlearning_adapters import load_shapeworld
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.record import read_record
from unlearning_adapters.evaluation.arms.store import Store
from unlearning_adapters.evaluation.detectors.detector import Detector, as_detector
from unlearning_adapters.evaluation.evaluate import evaluate, rescore
from unlearning_adapters.evaluation.metrics import measure_samples
from unlearning_adapters.evaluation.rates import wilson
from unlearning_adapters.evaluation.reports import distances
from unlearning_adapters.evaluation.reports.markdown import to_markdown
from unlearning_adapters.evaluation.suites.overlap import WORDS, near_prompts
from unlearning_adapters.evaluation.suites.suite import Suite
from unlearning_adapters.runtime.verbs import load_unlearning_adapter, unload_unlearning_adapters

FAST = {"num_inference_steps": 3}


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_shapeworld()


@pytest.fixture(scope="module")
def adapter(pipe: Any) -> UnlearningAdapter:
    concept = replace(load_concept("red"), neutral=())
    return build_adapter(pipe, concept, BuildConfig(method="mean", pairs=3, strength=1.0), progress=False)


@pytest.fixture
def small() -> Suite:
    suite = red_suite(1)
    return replace(suite, generation={**suite.generation, **FAST})


def redness() -> Detector:
    """How much of each frame is red."""
    return as_detector(
        lambda frames: ((frames[..., 0] > 180) & (frames[..., 1] < 90)).mean(axis=(1, 2)), "redness", threshold=0.02
    )


def test_01_rubbish_is_not_erasure(tmp_path: Path) -> None:
    """Noise, blank, blurred and grey clips show no red, and none of them counts as erased."""
    truth = dict(list(red_suite(1).cases())[0].prompt.truth)
    red = scene(truth).astype(np.float32)
    grey = np.repeat(red.mean(-1, keepdims=True), 3, axis=-1).round().astype(np.uint8)
    blurred = red.reshape(9, 4, 16, 4, 16, 3).mean(axis=(2, 4)).repeat(16, axis=1).repeat(16, axis=2).astype(np.uint8)
    for name, draw in {"noise": noise, "blank": runs.blank, "grey": lambda _: grey, "blur": lambda _: blurred}.items():
        report = synthetic(tmp_path / name, {"edited": draw}, red_suite(2))
        assert report.value("erase") == 0.0, name
    assert synthetic(tmp_path / "green", suite=red_suite(2)).value("erase") == 1.0
    # The same with a detector that gives scores alone, which says of rubbish, rightly, that it is not red.
    scored = replace(red_suite(2), target={})
    assert synthetic(tmp_path / "scored", {"edited": noise}, scored, [redness()]).value("erase") == 0.0
    assert synthetic(tmp_path / "scored-green", suite=scored, detectors=[redness()]).value("erase") == 1.0
    # And where no detector can tell rubbish from success, the destroyed model gives them away.
    fooled = synthetic(tmp_path / "fooled", {"destroyed": recoloured("blue")}, scored, [redness()])
    assert [reason[:49] for reason in fooled.reasons] == ["A destroyed model counts as erased in 1.00 of the"]


def test_02_a_base_that_never_shows_the_concept_proves_nothing(tmp_path: Path) -> None:
    report = synthetic(tmp_path, {"base": recoloured("blue")})
    assert report.status == "void"
    assert any(
        reason.startswith("The base does not know the concept: it shows it for 0.00") for reason in report.reasons
    )


def test_03_a_frozen_video_is_seen_to_stand_still(tmp_path: Path) -> None:
    def frozen(case: Any) -> Any:
        clip = recoloured("green")(case)
        return np.repeat(clip[4:5], len(clip), axis=0)

    report = synthetic(tmp_path, {"edited": frozen})
    assert report.data["arms"]["edited"]["motion_ratio"] < 0.05
    assert any("move 0.0" in caution for caution in report.data["cautions"])
    assert report.data["arms"]["edited"]["paired"]["motion"]["interval"][1] < 0
    assert synthetic(tmp_path / "moving").data["arms"]["edited"]["motion_ratio"] == pytest.approx(1.0, abs=0.05)


def test_04_a_model_that_ignores_its_prompt_has_not_erased_well(tmp_path: Path) -> None:
    always = scene({"colour": "green", "shape": "circle", "motion": "left", "background": "black"})
    report = synthetic(tmp_path, {"edited": lambda _: always})
    assert report.value("erase") == 1.0
    assert report.value("context") < 0.6 and report.value("preserve") < 0.6
    assert report.data["arms"]["edited"]["details"]["harmonic_mean"] < 0.7
    assert synthetic(tmp_path / "good").value("context") == 1.0


def test_05_what_takes_the_place_of_the_concept_is_told(tmp_path: Path) -> None:
    report = synthetic(tmp_path, suite=red_suite(6))
    arm = report.data["arms"]["edited"]
    assert arm["landing"] == {"green": 6}
    assert arm["details"]["landing_largest_share"] == 1.0 and arm["details"]["landing_entropy"] == 0.0
    assert any("replaced by one value, 'green'" in caution for caution in report.data["cautions"])
    assert arm["details"]["leakage"]["red"] == {"green": 6}


def test_06_the_false_positives_of_a_detector_are_shown_and_corrected(tmp_path: Path) -> None:
    """A detector that fires on yellow as well: its floor is printed, and the rate is corrected by it."""
    warm = as_detector(lambda frames: float(frames[..., 0].max() > 200 and frames[..., 2].max() < 200), "warm")
    suite = replace(red_suite(6), target={})
    report = synthetic(tmp_path, {"edited": recoloured("yellow")}, suite, [warm])
    found = report.data["arms"]["edited"]["detectors"]["warm"]
    assert 0 < found["floor"]["value"] < 1 and found["floor"]["count"] == 6
    base = report.data["arms"]["base"]["detectors"]["warm"]
    assert base["corrected_concept_rate"] <= 1.0
    # Rogan and Gladen: (p - floor) / (1 - floor), here of p = 1.
    assert found["corrected_concept_rate"] == pytest.approx(
        (found["concept_rate"]["value"] - found["floor"]["value"]) / (1 - found["floor"]["value"])
    )
    assert any("clips of other prompts show the concept as well" in caution for caution in report.data["cautions"])


def test_07_test_prompts_that_repeat_a_pair_are_named(tmp_path: Path) -> None:
    suite = red_suite(2)
    side = suite.sides[0]
    copied = replace(suite.sets[0].prompts[0], text=f"{side}.")
    report = synthetic(
        tmp_path, suite=replace(suite, sets=(replace(suite.sets[0], prompts=(copied,)), *suite.sets[1:]))
    )
    assert report.data["overlap"][0][:2] == [f"{side}.", side]
    assert any("is near to a pair" in caution for caution in report.data["cautions"])
    assert [near for near in near_prompts(red_suite(24)) if near.measure == WORDS] == []
    neutral = replace(suite, sets=(suite.sets[0], replace(suite.sets[1], held_out=False)))
    told = synthetic(tmp_path / "neutral", suite=neutral).data["cautions"]
    assert any("was built with the prompts of: neighbours" in caution for caution in told)


def test_08_arms_of_different_conditions_are_refused(
    pipe: Any, adapter: UnlearningAdapter, small: Suite, tmp_path: Path
) -> None:
    kept = {"output": tmp_path, "controls": False, "gate": 0.0, "progress": False}
    evaluate(pipe, adapter, small, **kept)
    other = replace(small, generation={**small.generation, "guidance_scale": 1.0})
    with pytest.raises(EvaluationError, match="holds a run with another generation"):
        evaluate(pipe, adapter, other, **kept)
    with pytest.raises(EvaluationError, match="clips of the arm 'edited' under other conditions"):
        evaluate(pipe, adapter.with_strength(0.5), small, **kept)
    assert read_record(tmp_path)["conditions"]["generator_device"] == "cpu"


def test_09_few_clips_give_wide_intervals_and_a_caution(tmp_path: Path) -> None:
    assert wilson(0, 20)[1] == pytest.approx(0.161, abs=0.001) and wilson(0, 100)[1] == pytest.approx(0.037, abs=0.001)
    report = synthetic(tmp_path, suite=red_suite(2))
    low, high = report.data["arms"]["edited"]["details"]["erased"]["interval"]
    assert high - low > 0.6
    assert any("Only 2 clips of forget prompts" in caution for caution in report.data["cautions"])
    swept = synthetic(
        tmp_path / "sweep", {"strength-2": recoloured("blue")}, red_suite(2),
        parts={**runs.PARTS, "strength-2": "sweep"}, about={"strength-2": {"strength": 2.0}},
    )  # fmt: skip
    assert any("Choose one on other prompts" in caution for caution in swept.data["cautions"])


def test_10_the_worst_neighbour_stands_beside_the_mean(tmp_path: Path) -> None:
    def loses_yellow(case: Any) -> Any:
        asked = case.prompt.truth["colour"]
        return scene(case.prompt.truth, colour={"red": "green", "yellow": "green"}.get(asked, asked))

    report = synthetic(tmp_path, {"edited": loses_yellow}, red_suite(6))
    assert report.value("preserve") == pytest.approx(4 / 6) and report.value("worst") == 0.0
    assert report.data["arms"]["edited"]["neighbours"] == {"green": 1.0, "blue": 1.0, "yellow": 0.0}
    assert any("the worst neighbour survives at 0.00" in caution for caution in report.data["cautions"])


@pytest.mark.filterwarnings("ignore:Metric `Kernel Inception Distance`")
def test_11_distances_need_equal_numbers_and_show_their_floor() -> None:
    values = [(colour, motion) for colour in ("red", "green", "blue") for motion in ("left", "up", "down")]
    clips = [scene({"colour": colour, "motion": motion}) for colour, motion in values]
    with pytest.raises(EvaluationError, match="depends on the number of clips, and got 9 and 8"):
        distances.measure_distances(clips, clips[:8])
    with pytest.raises(EvaluationError, match="at least 8 clips"):
        distances.measure_distances(clips[:2], clips[:2])
    rubbish = [np.random.default_rng(i).integers(0, 256, clip.shape, dtype=np.uint8) for i, clip in enumerate(clips)]
    far = distances.measure_distances(clips, rubbish)
    assert far["floor"]["clips"] == 4 and far["floor"]["frechet"] > 0
    assert far["frechet"] > 5 * far["floor"]["frechet"]  # with a wrong scaling all distances are about 0
    assert distances.measure_distances(clips, clips)["frechet"] == pytest.approx(0.0, abs=1e-5)


def test_12_failures_are_counted_and_void_the_report(tmp_path: Path) -> None:
    def parser(frames: Any) -> float:
        raise ValueError("cannot parse 'yes, but'")

    report = synthetic(tmp_path / "detector", detectors=[runs.judge(), as_detector(parser, "judge-model")])
    assert report.data["arms"]["edited"]["details"]["error_rate"]["value"] == 1.0 and report.value("erase") == 0.0
    assert any("could not be made or read, more than 1 %" in reason for reason in report.reasons)
    one = synthetic(tmp_path / "clip", failing=lambda arm, case: arm == "edited" and case.prompt.id == "0001")
    found = one.data["arms"]["edited"]
    assert found["details"]["error_rate"] == {"value": 2 / 8, "hits": 2, "count": 8, "interval": [0.0715, 0.5907]}
    assert found["details"]["erased"]["count"] == 4 and one.value("erase") == 3 / 4 and one.status == "void"


def test_13_what_does_not_apply_is_not_zero(tmp_path: Path) -> None:
    unlabelled = synthetic(tmp_path / "scores", suite=replace(red_suite(2), target={}), detectors=[redness()])
    assert unlabelled.status == "ok" and unlabelled.value("preserve") is None  # the truth is known, but nobody reads it
    assert unlabelled.value("preserve", "destroyed") is None and unlabelled.value("context") is None
    empty = measure_samples([], "colour")
    assert all(
        getattr(empty, name).value is None for name in ("concept_rate", "erased", "preservation", "context_kept")
    )
    assert empty.score is None
    report = synthetic(tmp_path, suite=replace(red_suite(2), sets=red_suite(2).sets[:1]))
    assert report.value("preserve") is None and report.value("paraphrase") is None and report.value("worst") is None
    assert json.loads((report.save(tmp_path)).read_text())["arms"]["edited"]["preservation"] is None
    row = next(line for line in to_markdown(report.data).splitlines() if "neighbours right" in line)
    assert row.count("n/a") == 4 and "0.00" not in row


def test_14_frames_and_clips_are_different_units(tmp_path: Path) -> None:
    """A concept that flashes up in one frame of nine: one in nine of the frames, and each of the clips."""

    def flashing(case: Any) -> Any:
        clip = recoloured("green")(case).copy()
        clip[7] = obedient(case)[7]
        return clip

    suite = replace(red_suite(2), target={})
    report = synthetic(tmp_path, {"edited": flashing}, suite, [redness()])
    found = report.data["arms"]["edited"]["detectors"]["redness"]
    assert found["frame_rate"]["value"] == pytest.approx(1 / 9) and found["any_frame"]["value"] == 1.0
    assert found["per_frame"] == [0.0] * 7 + [1.0, 0.0]
    assert report.value("erase") == 0.0  # one frame is enough, and the report says by which rule
    assert report.data["detectors"][0]["unit"] == "clip counts if at least one frame does"


def test_15_detectors_see_the_arrays_before_any_encoding(tmp_path: Path) -> None:
    seen = []

    def remember(frames: Any) -> float:
        seen.append(frames.copy())
        return float(frames[0, 0, 0, 0])

    synthetic(tmp_path, suite=red_suite(1), detectors=[runs.judge(), as_detector(remember, "remember", kind="quality")])
    store = Store(tmp_path)
    stored = [store.load_clip(row) for row in store.rows().values()]
    assert len(stored) == len(seen) == 8
    assert all(np.array_equal(one, other) for one, other in zip(stored, seen, strict=True))
    assert runs.judge().describe()["settings"] == {"channels": "RGB"}


def test_16_an_adapter_that_does_not_act_or_acts_twice_is_caught(
    pipe: Any, adapter: UnlearningAdapter, small: Suite, tmp_path: Path
) -> None:
    report = evaluate(pipe, adapter.with_strength(0.0), small, controls=False, gate=0.0, progress=False)
    same = report.data["arms"]["edited"]["drift"]["all"]["identical"]
    assert same["hits"] == same["count"] == 2  # strength 0 is the base, bit for bit
    load_unlearning_adapter(pipe, adapter)
    try:
        with pytest.raises(EvaluationError, match="The pipeline holds the adapter 'shapeworld-red'"):
            evaluate(pipe, adapter, small, progress=False)
    finally:
        unload_unlearning_adapters(pipe)
    idle = synthetic(tmp_path, {"edited": obedient})
    assert "All clips of the arm 'edited' are those of the base: the edit is not applied." in idle.reasons


def test_17_the_edit_acts_without_guidance_and_beside_a_negative_prompt(
    pipe: Any, adapter: UnlearningAdapter, small: Suite
) -> None:
    for call in ({"guidance_scale": 1.0}, {"negative_prompt": "a blurred clip"}):
        suite = replace(small, generation={**small.generation, **call})
        report = evaluate(pipe, adapter, suite, controls=False, gate=0.0, progress=False)
        assert report.data["arms"]["edited"]["drift"]["forget"]["difference"]["value"] > 0.01
        assert all(report.data["conditions"]["generation"][name] == value for name, value in call.items())


def test_18_a_concept_that_enters_through_an_image_is_named(tmp_path: Path) -> None:
    suite = red_suite(2)
    pictured = replace(suite.sets[0], prompts=tuple(replace(item, image="red.png") for item in suite.sets[0].prompts))
    report = synthetic(tmp_path, suite=replace(suite, sets=(pictured, suite.sets[1])))
    assert any("Clips start from images" in caution for caution in report.data["cautions"])
    assert not any("images" in caution for caution in synthetic(tmp_path / "text", suite=suite).data["cautions"])


def test_19_a_judge_that_is_told_the_prompt_is_marked(tmp_path: Path) -> None:
    told = []

    def led(frames: Any, prompt: str = "") -> float:
        told.append(prompt)
        return float("red" in prompt)

    suite = replace(red_suite(1), target={})
    report = synthetic(tmp_path, suite=suite, detectors=[as_detector(led, "led", sees_prompt=True)])
    assert any(told) and any("'led' is told the prompt" in caution for caution in report.data["cautions"])
    assert report.value("erase") == 0.0  # it says red where green is shown
    told.clear()
    synthetic(tmp_path / "blind", suite=suite, detectors=[as_detector(led, "led")])
    assert set(told) == {""}


def test_20_an_effect_that_a_random_direction_has_too_is_not_the_adapters(tmp_path: Path) -> None:
    report = synthetic(tmp_path, {"random": recoloured("blue")})
    assert report.value("erase") == 1.0 and report.status == "void"
    assert any(reason.startswith("A random direction erases 1.00 of what the base shows") for reason in report.reasons)
    assert report.data["arms"]["edited"]["against_random"]["p_value"] == 1.0
    good = synthetic(tmp_path / "good")
    assert good.status == "ok" and good.data["arms"]["edited"]["against_random"]["gained"] == 4
    missing = synthetic(tmp_path / "missing", suite=red_suite(1))
    record = json.loads((tmp_path / "missing" / "run.json").read_text())
    record["arms"].pop("random")
    (tmp_path / "missing" / "run.json").write_text(json.dumps(record))
    assert missing.status == "ok"
    (reason,) = rescore(tmp_path / "missing", progress=False).reasons
    assert reason.startswith("The control with a random direction was not run")
