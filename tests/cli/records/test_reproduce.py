"""Results of a tiny pipeline are made again by `unlearn reproduce`; a time budget ends runs that then go on."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from tiny import tiny_wan_pipeline
from tiny_red import CONCEPT, THINGS

from unlearning_adapters.adapter.adapter import save_adapter
from unlearning_adapters.attacks import budget
from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept, load_concept, save_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.shapeworld.models.generate import GENERATION

Outcome = tuple[int, str, str]
Unlearn = Callable[..., Outcome]
CALL = ("height=16", "width=16", "num_frames=5", "num_inference_steps=2")
SUITE = f"""
words: [red]
sets:
  forget: [{", ".join(f"a red {thing}" for thing in THINGS)}]
  unrelated: [{", ".join(f"an old {thing}" for thing in THINGS)}]
generation: {{height: 16, width: 16, num_frames: 5, num_inference_steps: 2}}
"""
TINY = Budget(
    name="tiny", prompts=2, guidance=(2.0,), seeds=2, etas=(1.0,), tokens=2, soft_steps=2, lora_steps=(0, 1), batch=2,
    strengths=(0.5,),
)  # fmt: skip


def brightness(frames):
    """A detector as a user would write it."""
    return frames.mean(axis=(1, 2, 3)) / 255


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    place = tmp_path_factory.mktemp("again")
    pipe = tiny_wan_pipeline()
    pipe.save_pretrained(place / "pipeline")
    save_concept(Concept.from_dict(CONCEPT), place / "red.yaml")
    (place / "suite.yaml").write_text(SUITE)
    save_adapter(build_adapter(pipe, load_concept(place / "red.yaml"), BuildConfig(), progress=False), place / "no-red")
    return place


def command(name: str, place: Path) -> list[str]:
    """A small run of each command that makes results."""
    pipeline, concept, adapter = (str(place / part) for part in ("pipeline", "red.yaml", "no-red"))
    judged = ["--suite", str(place / "suite.yaml"), "--detector", f"{__name__}:brightness"]
    calls = [word for value in CALL for word in ("--call", value)]
    return {
        "eval": ["eval", pipeline, adapter, *judged, "--gate", "0", "--clips", "2"],
        "search": ["search", pipeline, concept, "--trials", "2", "--height", "16", "--width", "16", "--frames", "5"],
        "compare": ["compare", pipeline, concept, *judged, "--gate", "0", "--clips", "2", "--methods", "ridge"],
        "attack": ["attack", pipeline, adapter, *judged, *calls, "--attack", "guidance", "--attack", "seeds"],
        "demo": ["demo", "--clips", "1"],
    }[name]


@pytest.mark.parametrize("name", ["eval", "search", "compare", "attack", pytest.param("demo", marks=pytest.mark.slow)])
def test_each_result_says_how_it_was_made_and_is_made_again(
    name: str, place: Path, tmp_path: Path, unlearn: Unlearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(budget.BUDGETS, "small", TINY)
    monkeypatch.setitem(GENERATION, "num_inference_steps", 6)  # of the demo: half of what takes the time
    words = [*command(name, place), "-o", str(tmp_path / "first")]
    code, _, error = unlearn(*words)
    assert code == 0, error
    file = tmp_path / "first" / "reproduce.json"
    record = json.loads(file.read_text())
    assert record["command"] == words and record["results"] and record["hashes"] and "seconds" not in file.read_text()
    code, out, error = unlearn("reproduce", file)
    assert code == 0 and out.splitlines()[-1] == "the numbers are the same", (out, error)


@pytest.mark.slow
@pytest.mark.parametrize(("name", "more"), [("eval", ["--clips", "3"]), ("search", ["--trials", "20"])])
def test_a_time_budget_ends_a_run_and_the_same_command_goes_on(
    name: str, more: list[str], place: Path, tmp_path: Path, unlearn: Unlearn
) -> None:
    folder = tmp_path / "run"
    words = [*command(name, place), *more, "-o", str(folder)]
    finished, lines = {"eval": ("report.json", "rows-*"), "search": ("search.json", "trials*")}[name]
    rounds, made = 0, [0]
    while rounds < 12:
        minutes = 0.005 * 2**rounds  # on a slow machine, a short time may be over before anything is made
        code, out, error = unlearn(*words, "--time-budget", minutes)
        assert code == 0, error
        rounds += 1
        made.append(sum(len(path.read_bytes().splitlines()) for path in folder.glob(f"{lines}.jsonl")))
        if (folder / "reproduce.json").is_file():
            break
        assert "the time is over" in out or "interrupted" in out
    assert (folder / finished).is_file() and rounds > 1, "the budget ended nothing"
    assert made == sorted(made), "what was made is made again"
    if name == "eval":
        code, out, _ = unlearn("reproduce", folder)
        assert code == 0 and out.splitlines()[-1] == "the numbers are the same"
    else:  # a search that goes on draws other settings than one in one piece
        record = json.loads((folder / "search.json").read_text())
        assert len(record["trials"]) == 20 and not record["interrupted"]
