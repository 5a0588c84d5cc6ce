"""`unlearn attack`: what it writes and prints, on a pipeline that is not ShapeWorld, with a detector of its own."""

import json
from collections.abc import Callable
from pathlib import Path

import click
import pytest
from command_line import parsed
from tiny import tiny_wan_pipeline

from unlearning_adapters.adapter.adapter import save_adapter
from unlearning_adapters.attacks import budget
from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.run import ATTACKS
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept, Pair, save_concept
from unlearning_adapters.config import BuildConfig

Outcome = tuple[int, str, str]
SIZE = ["--call", "height=16", "--call", "width=16", "--call", "num_frames=5", "--call", "num_inference_steps=2"]
TINY = Budget(
    name="tiny", prompts=2, guidance=(2.0,), seeds=2, etas=(1.0,), tokens=2, soft_steps=2, lora_steps=(0, 1), batch=2,
    strengths=(0.5,),
)  # fmt: skip


def brightness(frames):
    """A detector as a user would write it; random weights give grey clips, which it takes for the concept."""
    return frames.mean(axis=(1, 2, 3)) / 255 > 0.1


@pytest.fixture(autouse=True)
def tiny_budget(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(budget.BUDGETS, "small", TINY)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny pipeline, an adapter of it, and its concept."""
    place = tmp_path_factory.mktemp("command")
    pipe = tiny_wan_pipeline()
    pipe.save_pretrained(place / "pipeline")
    pairs = (Pair("a red circle moves left", "a green circle moves left"),)
    concept = Concept("tiny-red", pairs, ("a dog walks",), evaluation=("a red car", "a red boat"), words=("red",))
    save_concept(concept, place / "red.yaml")
    save_adapter(build_adapter(pipe, concept, BuildConfig(strength=1.0), progress=False), place / "no-red")
    return place


def test_the_command_knows_every_attack() -> None:
    call = ["attack", "x", "y", "-o", "z", *(word for name in ATTACKS for word in ("--attack", name))]
    assert parsed(*call)["attacks"] == tuple(ATTACKS)
    with pytest.raises(click.BadParameter, match="'magic' is not one of 'paraphrase', .*'stack'"):
        parsed("attack", "x", "y", "-o", "z", "--attack", "magic")


def test_the_attacks_are_listed_with_their_titles(unlearn: Callable[..., Outcome]) -> None:
    code, out, _ = unlearn("attack", "--list")
    assert code == 0
    assert [tuple(line.split(maxsplit=1)) for line in out.splitlines()] == [
        (name, attack.title) for name, attack in ATTACKS.items()
    ]


def test_attack_runs_all_that_suit_and_says_what_does_not(place: Path, unlearn: Callable[..., Outcome]) -> None:
    call = ["attack", place / "pipeline", place / "no-red", "--suite", place / "red.yaml", *SIZE]
    detector = [
        "--detector",
        f"{__name__}:brightness",
        "--second",
        place / "no-red",
        "--second-suite",
        place / "red.yaml",
    ]
    code, out, err = unlearn(*call, *detector, "-o", place / "run", "--reference", place / "red.yaml", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert [Path(file).name for file in found["files"]] == ["attacks.json", "attacks.md"]
    refused = {name for name, entry in found["attacks"].items() if "refused" in entry["edited"]}
    assert refused >= {"paraphrase", "together"} and "soft-prompt" not in refused and "resurrection" not in refused
    assert found["generation"] == {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2}
    assert {key: value for key, value in found.items() if key != "files"} == json.loads(
        Path(found["files"][0]).read_text(encoding="utf-8")
    )
    text = Path(found["files"][1]).read_text(encoding="utf-8")
    assert "has no paraphrases" in text and "Gold: not measured." in text


def test_a_named_attack_that_does_not_suit_is_an_error(place: Path, unlearn: Callable[..., Outcome]) -> None:
    call = ["attack", place / "pipeline", place / "no-red", "--suite", place / "red.yaml", *SIZE, "-o", place / "x"]
    code, out, err = unlearn(*call)
    assert (code, out) == (1, "") and "No detector was given for the suite 'tiny-red'" in err
    code, out, err = unlearn(*call, "--detector", f"{__name__}:brightness", "--attack", "paraphrase")
    assert (code, out) == (1, "") and "error: The suite of 'tiny-red' has no paraphrases" in err
    assert not (place / "x").exists()
