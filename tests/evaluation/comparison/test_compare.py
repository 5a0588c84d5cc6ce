"""`unlearn compare`: every method built, timed, measured in one run, and put into one table and one plot."""

import json
import re
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from diffusers import UniPCMultistepScheduler
from evaluation_runs import obedient, recoloured, red_suite, synthetic
from tiny import tiny_wan_pipeline

from unlearning_adapters.adapter.adapter import load_adapter
from unlearning_adapters.cli import main as cli
from unlearning_adapters.clips import to_clip
from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.config import METHODS
from unlearning_adapters.errors import ConceptError, EvaluationError
from unlearning_adapters.evaluation.arms.generate import generate_batch
from unlearning_adapters.evaluation.arms.observe import request_of
from unlearning_adapters.evaluation.comparison import compare as comparison
from unlearning_adapters.evaluation.comparison import references
from unlearning_adapters.evaluation.comparison.compare import COMPARED, compare_methods, comparison_of
from unlearning_adapters.evaluation.comparison.esd import EsdSettings
from unlearning_adapters.evaluation.comparison.references import esd_arm, gold_arm
from unlearning_adapters.evaluation.comparison.table import to_plot, to_table
from unlearning_adapters.evaluation.reports.plots import Point, scatter
from unlearning_adapters.evaluation.suites.file import read_suite

SUITE = """
words: [red]
sets:
  forget: [a red car]
  unrelated: [two trees near a house]
generation: {height: 16, width: 16, num_frames: 5, num_inference_steps: 2}
"""
CONCEPT = """
name: tiny-red
pairs:
  - {unsafe: a red circle moves left, safe: a green circle moves left}
  - {unsafe: a red dog moves right, safe: a green dog moves right}
neutral: [a dog walks, a tree on a street]
"""


def brightness(frames: Any) -> Any:
    """A detector as a user would write it."""
    return frames.mean(axis=(1, 2, 3)) / 255


def one_clip(pipe: Any, case: Any, suite: Any) -> Any:
    """The clip of a case, made alone."""
    return to_clip(generate_batch(pipe, [request_of(case)], suite.generation)[0])


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("compare")
    tiny_wan_pipeline().save_pretrained(place / "pipeline")
    (place / "suite.yaml").write_text(SUITE)
    (place / "concept.yaml").write_text(CONCEPT)
    return place


def command(place: Path, *more: str) -> list[str]:
    return ["compare", str(place / "pipeline"), str(place / "concept.yaml"), "--suite", str(place / "suite.yaml"),
            "--detector", f"{__name__}:brightness", "--gate", "0", "--batch", "2", "-o", str(place / "run"),
            *more]  # fmt: skip


@pytest.fixture(scope="module")
def written(place: Path) -> dict[str, Any]:
    """The real command with all methods, on random weights: what it writes, not what it finds."""
    assert cli.main(command(place)) == 0
    return dict(json.loads((place / "run" / "compare.json").read_text()))


def test_each_method_is_a_row_with_its_build_and_its_intervals(written: dict[str, Any], place: Path) -> None:
    arms = ["base", *COMPARED, "negative-prompt", "words-left-out", "random", "destroyed"]
    assert written["conditions"]["batch"] == 2
    assert list(written["rows"]) == arms and set(COMPARED) == set(METHODS) - {"random"}
    for name, row in written["rows"].items():
        assert row["erased"]["count"] == 1 and len(row["erased"]["interval"]) == 2
        assert (row["build_seconds"] is not None) == (name in COMPARED)
        assert name == "base" or row["drift"]["role"] == "unrelated"
    for method in COMPARED:
        adapter = load_adapter(place / "run" / "adapters" / f"{method}.safetensors")
        row = written["rows"][method]
        assert adapter.info.method == method and (row["rank"], row["strength"]) == (adapter.rank, adapter.strength)
        assert row["build_seconds"] > 0
    assert written["rows"]["words-left-out"]["drift"]["value"] == 0  # no word of the concept is in that prompt
    assert written["status"] == "void" and written["reasons"]  # random weights: nothing is to be believed


def test_it_goes_on_where_it_was_stopped_and_builds_nothing_twice(
    written: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = {path: path.stat().st_mtime_ns for path in (place / "run" / "adapters").iterdir()}
    monkeypatch.setattr(comparison, "build_adapter", None)
    assert cli.main(command(place, "--json")) == 0
    again = json.loads(capsys.readouterr().out)
    files = [place / "run" / f"compare.{suffix}" for suffix in ("json", "md", "svg")]
    assert again.pop("files") == [str(file) for file in files] and all(file.is_file() for file in files)
    assert again == written
    assert {path: path.stat().st_mtime_ns for path in kept} == kept


def test_a_folder_of_other_pairs_is_refused(written: dict[str, Any], place: Path) -> None:
    other, suite = load_concept("shapeworld-red"), read_suite(place / "suite.yaml")
    with pytest.raises(EvaluationError, match=r"'run' holds adapters of other pairs than those of 'shapeworld-red'\."):
        compare_methods(tiny_wan_pipeline(), other, suite, place / "run", ["mean"], [brightness], progress=False)


# What the pairs differ in is nothing on average, so that no method that takes a mean can be built; UCE can.
CANCELLING = """
name: tiny-red
pairs:
  - {unsafe: a red circle, safe: a green circle}
  - {unsafe: a green circle, safe: a red circle}
neutral: [a dog walks, a tree on a street]
"""


def test_a_method_that_cannot_be_built_is_left_out_and_says_why(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "concept.yaml").write_text(CANCELLING)
    call = ["compare", str(place / "pipeline"), str(tmp_path / "concept.yaml"), *command(place)[3:],
            "-o", str(tmp_path / "run"), "--methods", "mean,uce"]  # fmt: skip
    for _ in range(2):  # the second call goes on where the first one ended
        assert cli.main(call) == 0
        error = capsys.readouterr().err
        data = json.loads((tmp_path / "run" / "compare.json").read_text())
        reason = data["left_out"]["mean"]
        assert reason.startswith("At the site 'transformer.blocks.0.attn2.to_k': The activations of both sides")
        assert list(data["rows"]) == ["base", "uce", "negative-prompt", "words-left-out", "random", "destroyed"]
        assert list(data["left_out"]) == ["mean"]
        assert f"warning: The method 'mean' cannot be built and is left out: {reason}\n" in error
        table = (tmp_path / "run" / "compare.md").read_text()
        assert f"\nLeft out, since they cannot be built:\n\n- mean: {reason}\n" in table
    assert not (tmp_path / "run" / "adapters" / "mean.safetensors").exists()


def test_if_no_method_can_be_built_nothing_is_measured(place: Path, tmp_path: Path) -> None:
    (tmp_path / "concept.yaml").write_text(CANCELLING)
    concept, suite = load_concept(tmp_path / "concept.yaml"), read_suite(place / "suite.yaml")
    text = r"^None of the methods can be built\. mean: At the site .* pca: At the site [^\n]*$"
    with pytest.raises(EvaluationError, match=text):
        compare_methods(tiny_wan_pipeline(), concept, suite, tmp_path / "new", ["mean", "pca"], [brightness])
    with pytest.raises(ConceptError, match=r"^At the site 'transformer\.blocks\.0\.attn2\.to_k': The activations"):
        compare_methods(tiny_wan_pipeline(), concept, suite, tmp_path / "new", ["mean"], [brightness])
    assert not (tmp_path / "new").exists()


def test_a_comparison_without_methods_that_were_left_out_says_nothing_of_them(written: dict[str, Any]) -> None:
    assert written["left_out"] == {}
    assert "Left out" not in to_table(written)
    before = {name: value for name, value in written.items() if name != "left_out"}
    assert to_table(before) == to_table(written)


@pytest.mark.parametrize("methods", [[], ["ridge", "ridge"], ["random"], ["esd"]])
def test_methods_are_checked_before_anything_is_built(methods: list[str], place: Path, tmp_path: Path) -> None:
    suite, concept = read_suite(place / "suite.yaml"), load_concept("shapeworld-red")
    text = re.escape(f"but got {', '.join(methods) or 'none'}. The random direction is a control, and is always run.")
    with pytest.raises(EvaluationError, match=text):
        compare_methods(None, concept, suite, tmp_path / "new", methods)
    assert not (tmp_path / "new").exists()


def test_the_table_and_the_plot_show_what_the_report_says(tmp_path: Path) -> None:
    """Rendered clips: an arm that paints all red things green erases, and the random direction does not."""
    report = synthetic(tmp_path, {"destroyed": obedient})
    data = comparison_of(report)
    assert data["rows"]["edited"]["erased"]["value"] == 1.0 == data["rows"]["edited"]["preservation"]["value"]
    assert data["rows"]["random"]["erased"]["value"] == 0.0
    table = [line for line in to_table(data).splitlines() if line.startswith("| ")]
    assert len({line.count("|") for line in table}) == 1 and len(table) == 2 + len(data["rows"])
    plot = ElementTree.fromstring(to_plot(data))
    names = [node.text for node in plot.iter("{http://www.w3.org/2000/svg}text")]
    assert {"base", "edited", "random", "destroyed"} <= set(names)
    centres = {node.get("cx") for node in plot.iter("{http://www.w3.org/2000/svg}circle")}
    assert len(centres) == 2  # erased in full, or not at all


def test_names_of_points_in_one_place_do_not_touch() -> None:
    points = [Point(f"arm {number}", (0.5, 0.4, 0.6), (0.9, 0.8, 1.0)) for number in range(4)]
    drawn = ElementTree.fromstring(scatter(points, "t", "x", "y"))
    heights = sorted(float(node.get("y", "")) for node in drawn.iter("text") if (node.text or "").startswith("arm"))
    assert min(b - a for a, b in zip(heights, heights[1:], strict=False)) >= 12


ESD = ("--esd", "--esd-set", "steps=2", "--esd-set", "rank=2", "--esd-set", "learning_rate=0.1")


def test_a_negative_prompt_that_does_nothing_is_said_in_the_table(tmp_path: Path) -> None:
    suite, calls = red_suite(), {"negative-prompt": {"negative_prompt": "red"}}
    idle = "All clips of the arm 'negative-prompt' are those of the base. A negative prompt acts only with guidance"
    for scale, ran in ((1.0, "above 1, and this run has 1:"), (None, "above 1:")):
        kept = {name: value for name, value in suite.generation.items() if name != "guidance_scale"}
        run = replace(suite, generation=kept | ({} if scale is None else {"guidance_scale": scale}))
        report = synthetic(tmp_path / str(scale), {"negative-prompt": obedient}, run, calls=calls)
        (caution,) = [text for text in comparison_of(report)["cautions"] if text.startswith(idle)]
        assert ran in caution and caution in to_table(comparison_of(report))
    acting = synthetic(tmp_path / "acting", {"negative-prompt": recoloured("green")}, suite, calls=calls)
    without = synthetic(tmp_path / "without", {"words-left-out": obedient}, suite)
    assert "negative prompt" not in to_table(comparison_of(acting)) + to_table(comparison_of(without))


@pytest.fixture(scope="module")
def referred(written: dict[str, Any], place: Path) -> dict[str, Any]:
    """The same run, gone on with ESD and a gold model."""
    tiny_wan_pipeline(seed=7).save_pretrained(place / "gold")
    shutil.copytree(place / "run", place / "referred")
    assert cli.main([*command(place), "-o", str(place / "referred"), *ESD, "--gold", str(place / "gold")]) == 0
    return dict(json.loads((place / "referred" / "compare.json").read_text()))


def test_esd_and_the_gold_model_are_references(referred: dict[str, Any], written: dict[str, Any]) -> None:
    rows = referred["rows"]
    assert set(rows) == {*written["rows"], "esd", "gold"}
    assert {name: rows[name] for name in written["rows"]} == written["rows"]  # what was there is not made again
    assert rows["esd"]["part"] == rows["gold"]["part"] == "reference"
    assert rows["esd"]["build_seconds"] > 0 and rows["esd"]["rank"] == 2
    assert rows["gold"]["build_seconds"] is None
    assert rows["esd"]["drift"]["value"] > 0 and rows["gold"]["drift"]["value"] > 0
    text = to_table(referred)
    assert "| ESD (trained) |" in text and "| gold: trained without the concept |" in text


def test_the_gold_model_makes_the_clips_of_its_arm(referred: dict[str, Any], place: Path) -> None:
    suite = read_suite(place / "suite.yaml")
    for case in suite.cases():
        (file,) = (place / "referred" / "clips" / "gold" / case.set).iterdir()
        gold, base = (tiny_wan_pipeline(seed=seed) for seed in (7, 0))
        with np.load(file) as stored:
            assert np.array_equal(stored["clip"], one_clip(gold, case, suite))
            assert not np.array_equal(stored["clip"], one_clip(base, case, suite))


def test_the_lora_of_esd_is_kept_and_not_trained_twice(
    referred: dict[str, Any], place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    pipe, concept, suite = tiny_wan_pipeline(), load_concept(place / "concept.yaml"), read_suite(place / "suite.yaml")
    settings = EsdSettings(steps=2, rank=2, learning_rate=0.1)
    monkeypatch.setattr(references, "train_esd", None)
    (case, *_), before = (
        list(suite.cases()),
        {name: value.clone() for name, value in pipe.transformer.state_dict().items()},
    )
    base = one_clip(pipe, case, suite)
    arm = esd_arm(pipe, concept, suite, settings, place / "referred" / "esd")
    assert arm.details["build_seconds"] == referred["rows"]["esd"]["build_seconds"]
    with arm.enter(pipe):
        assert not np.array_equal(one_clip(pipe, case, suite), base)
    assert np.array_equal(one_clip(pipe, case, suite), base)
    assert all(torch.equal(value, before[name]) for name, value in pipe.transformer.state_dict().items())
    pipe.load_lora_weights(place / "referred" / "esd")  # an ordinary LoRA
    assert not np.array_equal(one_clip(pipe, case, suite), base)
    with pytest.raises(EvaluationError, match=r"^The folder 'esd' holds a LoRA of ESD with another settings: "):
        esd_arm(tiny_wan_pipeline(), concept, suite, EsdSettings(steps=3), place / "referred" / "esd")


def test_a_gold_model_of_another_kind_is_refused_before_anything_is_built(place: Path, tmp_path: Path) -> None:
    pipe, suite, concept = tiny_wan_pipeline(), read_suite(place / "suite.yaml"), load_concept("shapeworld-red")
    with pytest.raises(EvaluationError, match="The gold pipeline is the pipeline itself"):
        compare_methods(pipe, concept, suite, tmp_path / "new", ["mean"], [brightness], gold=pipe)
    gold = tiny_wan_pipeline(seed=7)
    gold.scheduler = UniPCMultistepScheduler.from_config(gold.scheduler.config, use_flow_sigmas=True)
    text = "The gold pipeline has another scheduler: 'UniPCMultistepScheduler', and the pipeline has 'FlowMatch"
    with pytest.raises(EvaluationError, match=text):
        compare_methods(pipe, concept, suite, tmp_path / "new", ["mean"], [brightness], gold=gold)
    assert not (tmp_path / "new").exists()


def test_two_gold_models_are_told_apart_by_their_weights(place: Path) -> None:
    pipe, suite = tiny_wan_pipeline(), read_suite(place / "suite.yaml")
    one, again, other = (gold_arm(pipe, tiny_wan_pipeline(seed=seed), suite).details for seed in (7, 7, 8))
    assert one == again and one["weights"] != other["weights"]


@pytest.mark.parametrize(
    ("options", "text"),
    [
        (("--esd-set", "steps=2"), "--esd-set sets how ESD is trained, and there is no --esd. Add it."),
        (("--esd", "--esd-set", "steps"), "Expected --esd-set as NAME=VALUE, such as steps=400, but got 'steps'."),
        (("--esd", "--esd-set", "step=2"), "Unknown key 'step' in --esd-set. Did you mean 'steps'?"),
        (("--esd", "--esd-set", "steps=x"), "Expected a number for `steps` in --esd-set, but got 'x'."),
        (("--esd", "--esd-set", "steps=0"), "Expected `steps` of ESD to be at least 1, but got 0."),
    ],
)
def test_settings_of_esd_are_checked_before_the_pipeline_is_opened(
    options: tuple[str, ...], text: str, place: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = [str(place / "concept.yaml"), "--suite", str(place / "suite.yaml"), "-o", str(place / "new")]
    assert cli.main(["compare", "nowhere", *files, *options]) == 1
    assert text in capsys.readouterr().err
    assert not (place / "new").exists()
