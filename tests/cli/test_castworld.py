"""The command line on CastWorld, with random weights in place of its model: what runs, and what is said of it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tiny import tiny_text_encoder, tiny_wan_pipeline
from transformers import T5Tokenizer

from unlearning_adapters.adapter.adapter import save_adapter
from unlearning_adapters.attacks import budget
from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.shapeworld.cast.concepts import training_sentences
from unlearning_adapters.shapeworld.models import cast
from unlearning_adapters.shapeworld.models.generate import CAST_GENERATION

Outcome = tuple[int, str, str]
FEW = Budget(
    name="few", prompts=1, denoising_steps=1, guidance=(2.0,), seeds=1, etas=(1.0,), tokens=1, soft_steps=1,
    lora_steps=(0, 1), batch=2, strengths=(1.0,),
)  # fmt: skip


def untrained_castworld() -> Any:
    """Return a tiny Wan pipeline with random weights, and a token for each word of the world's sentences."""
    words = sorted({word.strip(",") for text in training_sentences() for word in text.split()})
    pieces = [("<pad>", 0.0), ("</s>", 0.0), ("<unk>", 0.0), *((f"▁{word}", -2.0) for word in words)]
    pipe = tiny_wan_pipeline()
    tokenizer = T5Tokenizer(vocab=pieces, extra_ids=0)
    pipe.register_modules(tokenizer=tokenizer, text_encoder=tiny_text_encoder(len(tokenizer)))
    pipe.register_to_config(_name_or_path=cast.NAME)
    return pipe


@pytest.fixture(scope="module")
def pipe() -> Any:
    return untrained_castworld()


@pytest.fixture(autouse=True)
def castworld(pipe: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cast, "load_castworld", lambda dtype: pipe)
    monkeypatch.setitem(CAST_GENERATION, "num_inference_steps", 1)


@pytest.fixture(scope="module")
def adapter(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("no-hat")
    built = build_adapter(
        pipe, load_concept("castworld-hat"), BuildConfig(strength=1.0), progress=False,
        call_kwargs={"max_sequence_length": 48},
    )  # fmt: skip
    save_adapter(built, folder)
    return folder


def test_a_hat_is_built_and_evaluated(adapter: Path, unlearn: Callable[..., Outcome], tmp_path: Path) -> None:
    call = ["eval", "castworld", adapter, "-o", tmp_path, "--clips", "1", "--gate", "0", "--batch", "16"]
    code, out, err = unlearn(*call, "--json")
    assert code == 0, err
    report = json.loads(out)
    assert report["concept"] == "castworld-hat" and [d["name"] for d in report["detectors"]][0] == "cast"
    names = ["forget", "other-words", "neighbours", "elsewhere", "implied", "negated"]
    assert list(report["arms"]["edited"]["sets"]) == names
    generation = report["conditions"]["generation"]
    assert (generation["height"], generation["max_sequence_length"]) == (64, 48)
    assert "| implied | generic | base | " in (tmp_path / "report.md").read_text(encoding="utf-8")


def test_methods_are_compared_on_a_character(unlearn: Callable[..., Outcome], tmp_path: Path) -> None:
    call = ["compare", "castworld", "castworld-otto", "-o", tmp_path, "--methods", "mean", "--clips", "1"]
    code, out, err = unlearn(*call, "--gate", "0", "--batch", "16", "--json")
    assert code == 0, err
    assert {"mean", "negative-prompt", "words-left-out"} < set(json.loads(out)["rows"])


def test_attacks_run_with_their_controls(
    adapter: Path, unlearn: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(budget.BUDGETS, "small", FEW)
    call = ["attack", "castworld", adapter, "-o", tmp_path]
    code, out, err = unlearn(*call, "--attack", "paraphrase", "--attack", "stack", "--json")
    assert code == 0, err
    found = json.loads(out)
    assert found["reference"] == "castworld-umbrella" and found["generation"]["max_sequence_length"] == 48
    stacked = [point["setting"] for point in found["attacks"]["stack"]["edited"]["points"]]
    assert stacked == ["first, castworld-hat", "second, castworld-otto"]
    code, out, err = unlearn(*call, "--attack", "together")
    assert (code, out) == (1, "")
    assert "error: The suite of 'castworld-hat' has no set named 'together', of prompts with two things." in err


def test_a_search_judges_the_front(unlearn: Callable[..., Outcome], tmp_path: Path) -> None:
    call = ["search", "castworld", "castworld-star", "-o", tmp_path, "--trials", "1", "--clips", "1", "--json"]
    code, out, err = unlearn(*call)
    assert code == 0, err
    found = json.loads(out)
    assert found["generation"]["clips"] == 1 and len(found["generation"]["front"]) == 1
    assert found["concept"] == "castworld-star"


def test_without_the_files_there_is_one_line(
    adapter: Path, unlearn: Callable[..., Outcome], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.undo()
    monkeypatch.setattr(cast, "WEIGHTS", tmp_path / "castworld")
    code, out, err = unlearn("eval", "castworld", adapter, "-o", tmp_path / "run")
    assert (code, out) == (1, "") and len(err.splitlines()) == 1
    assert err.startswith("error: CastWorld's weights are not in 'castworld': missing: transformer, vae. Train them")


def test_help_and_lists_name_the_world(unlearn: Callable[..., Outcome]) -> None:
    for command in ("eval", "compare", "attack", "search", "build"):
        assert "castworld" in unlearn(command, "--help")[1]
    assert "castworld-VALUE" in unlearn("concepts", "--help")[1]
    assert "wearing a hat" in unlearn("concepts", "show", "castworld-hat")[1]
    assert unlearn("concepts", "lint", "castworld-hat", "castworld-otto")[0] == 0
