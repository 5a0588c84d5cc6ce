"""`evaluate` on the embedded model: paired, resumable, the same in one process and in two, and without a trace."""

import json
import socket
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from fresh import Copy, python

from unlearning_adapters import load_shapeworld
from unlearning_adapters.adapter.adapter import UnlearningAdapter, save_adapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConfigError, EvaluationError
from unlearning_adapters.evaluation.arms import observe
from unlearning_adapters.evaluation.arms.processes import Process, this_process
from unlearning_adapters.evaluation.arms.store import Store
from unlearning_adapters.evaluation.detectors.detector import as_detector
from unlearning_adapters.evaluation.evaluate import as_suite, default_detectors, evaluate, rescore
from unlearning_adapters.evaluation.reports.report import Report, read_report
from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite
from unlearning_adapters.evaluation.suites.suite import Suite
from unlearning_adapters.hub import card

STEPS = 6


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_shapeworld()


@pytest.fixture(scope="module")
def adapter(pipe: Any) -> UnlearningAdapter:
    concept = load_concept("red")
    concept = replace(concept, neutral=concept.neutral[:24])
    return build_adapter(pipe, concept, BuildConfig(pairs=5, strength=1.2), progress=False)


def tiny_suite(count: int, steps: int = STEPS) -> Suite:
    suite = shapeworld_suite("red", count, paraphrases=False)
    return replace(suite, generation={**suite.generation, "num_inference_steps": steps})


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("evaluation") / "run"


@pytest.fixture(scope="module")
def report(pipe: Any, adapter: UnlearningAdapter, folder: Path) -> Report:
    before = {name: value.clone() for name, value in pipe.transformer.state_dict().items()}
    found = evaluate(pipe, adapter, tiny_suite(3), output=folder, features="random", progress=False)
    assert all(torch.equal(value, before[name]) for name, value in pipe.transformer.state_dict().items())
    return found


def test_the_adapter_erases_and_the_controls_fail(report: Report) -> None:
    assert (report.status, report.reasons, report.edited) == ("ok", [], "edited")
    edited = report.data["arms"]["edited"]
    assert edited["counts"]["concept_rate"] == [0, 3] and report.value("erase") >= 2 / 3  # a colour may be "unknown"
    assert report.value("preserve") == 1.0 and report.value("context") == 1.0
    assert report.value("erase", "random") == 0.0 and report.value("preserve", "random") == 1.0
    assert report.value("erase", "destroyed") == 0.0 and report.value("valid", "destroyed") == 0.0
    assert report.data["arms"]["base"]["concept_rate"] == 1.0
    assert report.data["repeat"]["identical"] == {"value": 1.0, "hits": 2, "count": 2, "interval": [0.3424, 1.0]}
    drift = [
        report.data["arms"][name]["drift"]["all"]["difference"]["value"] for name in ("random", "edited", "destroyed")
    ]
    assert 0 < drift[0] < drift[1] < drift[2]


def test_the_report_holds_what_is_needed_to_repeat_it(report: Report, folder: Path, adapter: UnlearningAdapter) -> None:
    assert read_report(report.save(folder)).data == json.loads(json.dumps(report.data))
    conditions = report.data["conditions"]
    assert conditions["pipeline"] == "WanPipeline" and conditions["model"] == "shapeworld"
    assert conditions["scheduler_config"] and conditions["generation"]["num_inference_steps"] == STEPS
    assert conditions["suite"] == tiny_suite(3).sha256 and set(conditions["versions"]) >= {"torch", "diffusers"}
    about = report.data["arms"]["edited"]["about"]
    assert about["strength"] == 1.2 and about["pairs_hash"] == adapter.info.pairs_hash and len(about["sha256"]) == 64
    assert report.data["arms"]["edited"]["distance"]["error"].startswith("Expected at least 8 clips")


def test_nothing_is_made_twice(pipe: Any, adapter: UnlearningAdapter, report: Report, folder: Path) -> None:
    rows, times = Store(folder).rows(), [path.stat().st_mtime_ns for path in sorted(folder.rglob("*.npz"))]
    again = evaluate(pipe, adapter, tiny_suite(3), output=folder, progress=False)
    assert Store(folder).rows() == rows
    assert [path.stat().st_mtime_ns for path in sorted(folder.rglob("*.npz"))] == times
    assert again.data["arms"].keys() == report.data["arms"].keys() and again.value("erase") == report.value("erase")


def test_a_run_that_was_cut_goes_on_to_the_same_rows(
    pipe: Any, adapter: UnlearningAdapter, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    suite, options = tiny_suite(1, 2), {"gate": 0.0, "controls": False, "progress": False}
    whole = evaluate(pipe, adapter, suite, output=tmp_path / "whole", **options)
    made = []

    def dies(*arguments: Any) -> Any:
        made.append(arguments)
        if len(made) == 4:
            raise KeyboardInterrupt
        return generate_batch(*arguments)

    generate_batch = observe.generate_batch
    monkeypatch.setattr(observe, "generate_batch", dies)
    with pytest.raises(KeyboardInterrupt):
        evaluate(pipe, adapter, suite, output=tmp_path / "cut", **options)
    partial = rescore(tmp_path / "cut", progress=False)
    assert list(partial.data["arms"]) == ["base"]  # what is complete can be looked at
    monkeypatch.undo()
    cut = Store(tmp_path / "cut")
    assert len(cut.rows()) == 3
    cut.file.write_bytes(cut.file.read_bytes()[:-9])
    again = evaluate(pipe, adapter, suite, output=tmp_path / "cut", **options)
    assert without_times(again.data) == without_times(whole.data)
    for row in Store(tmp_path / "whole").rows().values():
        other = Store(tmp_path / "cut")
        assert np.array_equal(Store(tmp_path / "whole").load_clip(row), other.load_clip(other.rows()[row.key]))


def without_times(data: Any) -> Any:
    arms = {name: {**arm, "seconds_per_clip": None} for name, arm in data["arms"].items()}
    return json.loads(json.dumps({**data, "arms": arms}))


EVAL = "import sys; from unlearning_adapters.cli.main import main; sys.exit(main(sys.argv[1:]))"


def command(folder: Path, adapter: Path, suite: Path) -> list[str]:
    return [
        "eval", "shapeworld", str(adapter), "-o", str(folder), "--suite", str(suite),
        "--gate", "0", "--no-controls", "--device", "cpu", "--detector", "shapes", "--detector", "motion", "--json",
    ]  # fmt: skip


def workers(*given: Path) -> list[Copy]:
    """Two processes of one run, as a launcher starts them."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        meeting = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free.getsockname()[1]), "WORLD_SIZE": "2"}
    return [Copy("-c", EVAL, *command(*given), **meeting, RANK=rank, LOCAL_RANK=rank) for rank in ("0", "1")]


@pytest.mark.slow
def test_two_processes_survive_a_kill_and_give_the_numbers_of_one(
    pipe: Any, adapter: UnlearningAdapter, tmp_path: Path
) -> None:
    suite = tiny_suite(2, 4)
    (tmp_path / "suite.json").write_text(json.dumps(suite.to_dict()))
    (tmp_path / "suite.yaml").write_text((tmp_path / "suite.json").read_text())  # JSON is YAML
    save_adapter(adapter, tmp_path / "no-red")
    folder = tmp_path / "two"
    given = folder, tmp_path / "no-red", tmp_path / "suite.yaml"
    running = workers(*given)
    deadline = time.monotonic() + 240
    while not (rows := sum(path.read_bytes().count(b"\n") for path in folder.glob("rows-*"))):
        dead = [each for each in running if each.poll() is not None]
        assert not dead and time.monotonic() < deadline, [each.communicate()[2][-2000:] for each in dead]
        time.sleep(0.05)
    for each in reversed(running):  # as a launcher does when one of them dies
        each.kill()
        each.communicate()
    assert 0 < rows < 9
    launcher = ("-m", "accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--main_process_port", "0")
    out = python(*launcher, "-m", "unlearning_adapters", *command(*given))
    assert len(out.splitlines()) == 1  # of the main process alone
    assert len(list(folder.glob("rows-*.jsonl"))) == 2
    one = evaluate(
        pipe, adapter, suite, ["shapes", "motion"], output=tmp_path / "one", gate=0.0, controls=False, progress=False
    )
    assert without_times(read_report(folder).data) == without_times(one.data)


@pytest.mark.parametrize("seeds", [None, [5, 3]])
def test_the_numbers_do_not_depend_on_the_order_in_which_rows_were_written(
    pipe: Any, adapter: UnlearningAdapter, tmp_path: Path, seeds: list[int] | None
) -> None:
    settings = {"seeds": seeds, "controls": False, "gate": 0.0, "progress": False}
    report = evaluate(pipe, adapter, tiny_suite(4, 2), output=tmp_path / "run", **settings)
    store = Store(tmp_path / "run")
    rows = list(store.rows().values())
    shuffled = [rows[index] for index in torch.randperm(len(rows), generator=torch.Generator().manual_seed(0))]
    store.replace(shuffled)
    found = rescore(tmp_path / "run")
    assert list(store.rows()) == [row.key for row in shuffled] != [row.key for row in rows]
    assert found.data["arms"]["edited"]["drift"] == report.data["arms"]["edited"]["drift"]
    assert without_times(found.data)["arms"] == without_times(report.data)["arms"]


def test_processes_share_all_cases_once() -> None:
    cases = list(range(11))
    shares = [Process(index, 3).share(cases) for index in range(3)]
    assert sorted(item for share in shares for item in share) == cases
    assert max(map(len, shares)) - min(map(len, shares)) <= 1 and this_process().count == 1


def test_thresholds_and_detectors_change_without_the_model(report: Report, folder: Path) -> None:
    redness = as_detector(lambda frames: float((frames[..., 0] > 180).mean()), "redness", threshold=0.01)
    added = rescore(folder, ["shapes", "motion", redness], progress=False)
    assert added.value("erase") == report.value("erase")
    assert [item["name"] for item in added.data["detectors"]] == ["shapes", "motion", "redness", "validity"]
    first = added.data["arms"]["base"]["detectors"]["redness"]["concept_rate"]
    stricter = rescore(folder, thresholds={"redness": 2.0}, progress=False)
    assert (
        first["value"] == 1.0 and stricter.data["arms"]["base"]["detectors"]["redness"]["concept_rate"]["value"] == 0.0
    )
    with pytest.raises(EvaluationError, match="No detector of this run is named 'nude'. Its detectors: shapes"):
        rescore(folder, thresholds={"nude": 0.1}, progress=False)
    back = rescore(folder, default_detectors(tiny_suite(1)), progress=False)
    assert (
        without_times(back.data)["arms"]["edited"]["details"] == without_times(report.data)["arms"]["edited"]["details"]
    )


def test_a_report_enters_a_card(report: Report, adapter: UnlearningAdapter) -> None:
    text = card.render_card(adapter.info, "org/no-red", sites=len(adapter.sites), result=report.data)
    other = card.render_card(adapter.info, result={**report.data, "neighbours": 7})
    assert "Measured at strength 1.2 on 3 held-out prompts that name the concept and 7 that name its" in other
    assert "that name the concept and 3 that name its" in text and "0.00 [0.00, 0.56] (0/3)" in text
    with pytest.raises(ConfigError, match="is void and cannot go on a card: No control"):
        card.render_card(adapter.info, result={**report.data, "status": "void", "reasons": ["No control."]})


def test_a_base_without_the_concept_ends_the_run(pipe: Any, adapter: UnlearningAdapter) -> None:
    found = evaluate(pipe, adapter, tiny_suite(1, 1), progress=False)
    assert found.status == "void" and list(found.data["arms"]) == ["base"] and found.data["gate_failures"]
    assert found.reasons[-1] == "No other arm was run."


@pytest.mark.slow
def test_seeds_are_added_to_a_run(pipe: Any, adapter: UnlearningAdapter, tmp_path: Path) -> None:
    folder, suite, options = tmp_path / "run", tiny_suite(2, 1), {"gate": 0.0, "progress": False}
    evaluate(pipe, adapter, suite, seeds=[7], output=folder, **options)
    first = {key: row for key, row in Store(folder).rows().items() if key[0] == "edited"}
    more = evaluate(pipe, adapter, suite, seeds=[7, 8], output=folder, **options)
    fresh = evaluate(pipe, adapter, suite, seeds=[7, 8], output=tmp_path / "fresh", **options)
    rows = Store(folder).rows()
    assert len(first) > 2 and all(rows[key] == row for key, row in first.items())  # not made again
    assert {key[3] for key in rows} == {7, 8}
    for name in ("base", "edited", "random"):
        arm, expected = more.data["arms"][name], fresh.data["arms"][name]
        for part in ("shown", "concept_rate", "drift"):
            assert arm.get(part) == expected.get(part), (name, part)


@pytest.mark.usefixtures("report")  # the run that the folder holds
def test_what_an_evaluation_refuses(pipe: Any, adapter: UnlearningAdapter, folder: Path) -> None:
    suite = tiny_suite(1)
    wrong = replace(suite, generation={"frames": 9})
    with pytest.raises(EvaluationError, match="WanPipeline takes no `frames`"):
        evaluate(pipe, adapter, wrong)
    with pytest.raises(EvaluationError, match="`generator` is set by the evaluation itself"):
        evaluate(pipe, adapter, replace(suite, generation={"generator": 1}))
    with pytest.raises(EvaluationError, match="No detector was given for the suite 'other'"):
        evaluate(pipe, adapter, replace(suite, name="other"))
    with pytest.raises(
        EvaluationError,
        match="No clip of the arm 'base' could be made. The last error: .* by itself, with the suite",
    ):
        evaluate(pipe, adapter, replace(suite, generation={**suite.generation, "height": 7}), progress=False)
    with pytest.raises(EvaluationError, match="Several processes need a folder"):
        evaluate(pipe, adapter, suite, process=Process(0, 2))
    with pytest.raises(EvaluationError, match="Expected a suite"):
        as_suite(None, None)
    with pytest.raises(EvaluationError, match="is not the folder of an evaluation"):
        rescore(folder / "clips")
    with pytest.raises(EvaluationError, match="holds a run with other seeds: None, now \\[1\\]"):
        evaluate(pipe, adapter, tiny_suite(3), seeds=[1], output=folder)
    with pytest.raises(EvaluationError, match="holds a run with other detectors"):
        evaluate(pipe, adapter, tiny_suite(3), ["shapes"], output=folder)
