"""`unlearn eval`, `--rescore` and `unlearn eval diff`: what they write, print, and with which code they exit."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from command_line import parsed
from evaluation_runs import obedient, recoloured, red_suite, synthetic
from tiny import tiny_wan_pipeline

from unlearning_adapters.adapter.adapter import save_adapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept, Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.reports.diff import check_thresholds, diff_reports, failures
from unlearning_adapters.evaluation.reports.report import read_report

Outcome = tuple[int, str, str]
SIZE = ["--call", "height=16", "--call", "width=16", "--call", "num_frames=5", "--call", "num_inference_steps=2"]


def brightness(frames):
    """A detector as a user would write it."""
    return frames.mean(axis=(1, 2, 3)) / 255


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, an adapter of it, and a suite."""
    place = tmp_path_factory.mktemp("command")
    pipe = tiny_wan_pipeline()
    pipe.save_pretrained(place / "pipeline")
    concept = Concept("tiny-red", (Pair("a red circle moves left", "a green circle moves left"),), ("a dog walks",))
    save_adapter(build_adapter(pipe, concept, BuildConfig(strength=1.0), progress=False), place / "no-red")
    (place / "suite.yaml").write_text(
        "words: [red]\nsets:\n  forget: [a red car, a red boat]\n  unrelated: [two trees near a house]\n"
    )
    return place


def test_eval_writes_all_forms_of_the_report(place: Path, unlearn: Callable[..., Outcome]) -> None:
    """A pipeline that is not ShapeWorld, with a detector of the user's own; random weights show no concept."""
    call = ["eval", place / "pipeline", place / "no-red", "-o", place / "run", "--suite", place / "suite.yaml", *SIZE]
    detector = ["--detector", f"{__name__}:brightness", "--threshold", "brightness=0.9"]
    further = [
        "--negative-prompt",
        "red",
        "--without-words",
        "--reseeded",
        "--rival",
        place / "no-red",
        "--seeds",
        "0,1",
    ]
    options = [*detector, *further, "--gate", "0", "--strengths", "0.5", "--fused", "--batch", "4"]
    code, out, err = unlearn(*call, *options, "--json")
    found = json.loads(out)
    assert code == 0 and "error" not in err
    assert [Path(file).name for file in found["files"]] == ["report.json", "report.md", "index.html"]
    assert all(Path(file).stat().st_size > 1000 for file in found["files"])
    assert list(found["arms"]) == [
        "base", "edited", "strength-0.5", "rival-1", "negative-prompt", "reseeded", "without-words",
        "random", "destroyed",
    ]  # fmt: skip
    assert found["clips"] == 4 and found["seeds"] == [0, 1] and found["detectors"][0]["threshold"] == 0.9
    assert found["arms"]["edited"]["about"]["applied"] == "fused" and found["conditions"]["batch"] == 4
    drift = {
        name: arm["drift"]["forget"]["difference"]["value"] for name, arm in found["arms"].items() if name != "base"
    }
    assert all(value > 0 for value in drift.values())
    assert drift["edited"] == pytest.approx(drift["rival-1"], rel=0.2)  # fused and attached


def test_rescore_changes_a_threshold(place: Path, unlearn: Callable[..., Outcome]) -> None:
    test_eval_writes_all_forms_of_the_report(place, unlearn)  # nothing is made again
    code, out, _ = unlearn("eval", "--rescore", place / "run", "--threshold", "brightness=0", "--json")
    assert code == 0
    assert json.loads(out)["arms"]["base"]["concept_rate"] == 1.0
    assert "| concept shown (of valid clips) | 1.00" in unlearn("eval", "--rescore", place / "run")[1]


@pytest.fixture(scope="module")
def reports(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A good report, one in which half of the clips leak, and one of another suite."""
    place = tmp_path_factory.mktemp("reports")

    def leaks(case):
        return (obedient if int(case.prompt.id) % 2 else recoloured("green"))(case)

    arms = {"good": {}, "leaks": {"edited": leaks}, "void": {"random": recoloured("blue")}}
    for name, drawn in arms.items():
        synthetic(place / name, drawn, red_suite(4)).save(place / name)
    return place


def test_diff_compares_and_thresholds_decide(reports: Path, unlearn: Callable[..., Outcome]) -> None:
    code, out, err = unlearn("eval", "diff", reports / "good", reports / "leaks" / "report.json", "--json")
    found = json.loads(out)
    assert (code, err, found["same_prompts"], found["failures"]) == (0, "", True, [])
    assert found["measures"]["erase"]["before"] == 1.0 and found["measures"]["erase"]["change"] == -0.5
    assert found["measures"]["erase"]["paired"] == {"count": 4, "lost": 2, "gained": 0, "p_value": 0.5}
    assert found["measures"]["paraphrase"] == {"before": None, "after": None, "change": None}
    call = ["eval", "diff", reports / "good", reports / "leaks", "--fail-under"]
    code, out, err = unlearn(*call, "erase=0.8", "--fail-under", "preserve=0.9")
    assert code == 1 and err == "error: erase is 0.500, below 0.8\n"
    assert "erase            1.000     0.500    -0.500  0 gained, 2 lost, p 0.500" in out and "n/a" in out
    assert unlearn(*call, "erase=0.5")[0] == 0
    assert unlearn(*call, "paraphrase=0.5")[0] == 1  # what does not apply does not pass
    code, _, err = unlearn("eval", "diff", reports / "good", reports / "void", "--fail-under", "erase=0")
    assert code == 1 and err.startswith("error: the report is void: A random direction erases 1.00")


def test_a_diff_names_what_was_run_differently(reports: Path) -> None:
    good = read_report(reports / "good")
    other = replace(good, data={**good.data, "conditions": {**good.data["conditions"], "dtype": "bfloat16"}})
    found = diff_reports(good, other)
    assert found.conditions == {"dtype": ("float32", "bfloat16")} and not found.same_prompts
    assert (
        "paired" not in found.measures["erase"]
        and "run differently: dtype: 'float32', then 'bfloat16'" in found.to_text()
    )
    assert failures(good, {"erase": 1.0, "preserve": 1.0, "motion": 0.9}) == []


def test_wrong_usage_is_one_line(place: Path, reports: Path, tmp_path: Path, unlearn: Callable[..., Outcome]) -> None:
    for arguments, text in (
        (["eval"], "there is no terminal to ask at. Write: unlearn eval shapeworld no-red -o report"),
        (["eval", "shapeworld", place / "no-red"], "Expected a folder for the run: give -o DIR."),
        (["eval", "diff", reports / "good"], "Expected two reports"),
        (["eval", "diff", reports / "good", tmp_path], "Cannot read the report"),
        (["eval", "--rescore", tmp_path], "is not the folder of an evaluation"),
        (
            ["eval", "diff", "a", "b", "--fail-under", "safety=1"],
            "Unknown measure 'safety' of a report. Known: erase",
        ),
        (
            ["eval", "diff", "a", "b", "--fail-under", "erase=high"],
            "Expected --fail-under as NAME=NUMBER, such as erase=0.8, but got 'erase=high'",
        ),
        (["eval", "x", place / "no-red", "-o", tmp_path, "--suite", "nonsense"], "Unknown suite 'nonsense'"),
        (["eval", "x", place / "no-red", "-o", tmp_path, "--suite", "red", "--call", "steps"], "as NAME=VALUE"),
    ):
        code, out, err = unlearn(*arguments)
        assert (code, out, err.count("\n")) == (1, "", 1) and text in err, (arguments, err)


def test_thresholds_are_read() -> None:
    words = ["--fail-under", "erase=0.8", "--fail-under", "worst=0.5"]
    assert parsed("eval", "diff", "a", "b", *words)["fail_under"] == {"erase": 0.8, "worst": 0.5}
    check_thresholds({"erase": 0.8, "worst": 0.5})
    with pytest.raises(EvaluationError, match="Unknown measure 'x' of a report"):
        check_thresholds({"x": 1})
