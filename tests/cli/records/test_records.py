"""`reproduce.json` beside a result, running it again, and finding an adapter in a checkpoint."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from unlearning_adapters.adapter.adapter import load_adapter
from unlearning_adapters.cli.records.record import differences, with_output
from unlearning_adapters.shapeworld.models.load import load_shapeworld

Outcome = tuple[int, str, str]
Unlearn = Callable[..., Outcome]


@pytest.fixture
def built(tmp_path: Path, unlearn: Unlearn) -> Path:
    """An adapter of the embedded model."""
    assert unlearn("build", "shapeworld", "red", "-o", tmp_path / "no-red")[0] == 0
    return tmp_path / "no-red"


def test_a_build_is_reproduced_bit_for_bit_and_what_differs_is_said(built: Path, unlearn: Unlearn) -> None:
    record = json.loads((built / "reproduce.json").read_text())
    assert record["command"] == ["build", "shapeworld", "red", "-o", str(built)]
    assert record["base"]["source"] == "shapeworld" and record["seeds"] == {"build": 0}
    assert set(record["hashes"]) == {"pairs", "neutral"} and record["machine"]["device"].startswith("cpu")
    code, out, _ = unlearn("reproduce", built)
    assert code == 0 and out.endswith("the result is the same, bit for bit\n")
    record["versions"]["torch"] = "1.0"
    record["results"]["sha256"] = "0" * 64
    (built / "reproduce.json").write_text(json.dumps(record))
    code, out, _ = unlearn("reproduce", built / "reproduce.json", "--json")
    answer = json.loads(out)
    assert code == 1 and not answer["same"]
    first, second = answer["differences"]
    assert first.startswith("versions.torch: '1.0' then") and second.startswith("results.sha256: '000")


def test_other_seeds_give_another_result(built: Path, tmp_path: Path, unlearn: Unlearn) -> None:
    record = json.loads((built / "reproduce.json").read_text())
    record["command"] += ["--method", "random", "--seed", "5"]
    (built / "reproduce.json").write_text(json.dumps(record))
    code, out, _ = unlearn("reproduce", built, "-o", tmp_path / "again")
    assert code == 1 and "seeds.build: 0 then, 5 now" in out and "results.sha256" in out
    assert load_adapter(tmp_path / "again").info.method == "random"


@pytest.mark.parametrize(
    ("text", "said"),
    [("no json", "Cannot read"), ("[]", "is no reproduce.json"), ('{"schema": "x", "command": ["build"]}', "is no")],
)
def test_a_record_of_another_kind_is_one_line(text: str, said: str, tmp_path: Path, unlearn: Unlearn) -> None:
    (tmp_path / "reproduce.json").write_text(text)
    code, out, error = unlearn("reproduce", tmp_path)
    assert (code, out, error.count("\n")) == (1, "", 1) and said in error


def test_only_commands_that_make_results_are_run_again(built: Path, unlearn: Unlearn) -> None:
    record = json.loads((built / "reproduce.json").read_text())
    (built / "reproduce.json").write_text(json.dumps({**record, "command": ["push", "no-red", "org/name"]}))
    code, _, error = unlearn("reproduce", built)
    assert code == 1 and "'push'" in error


def test_words_and_values() -> None:
    assert with_output(["build", "a", "-o", "x", "--output=y", "--seed", "1"], "z") == [
        "build", "a", "--seed", "1", "-o", "z",
    ]  # fmt: skip
    assert list(differences({"a": [1, {"b": 2}], "c": 3}, {"a": [1, {"b": 4}]})) == [
        "a[1].b: 2 then, 4 now", "c: 3 then, None now",
    ]  # fmt: skip


@pytest.mark.slow
def test_verify_finds_the_adapter_its_strength_and_what_else_differs(
    built: Path, tmp_path: Path, unlearn: Unlearn
) -> None:
    pipe = load_shapeworld()
    pipe.save_pretrained(tmp_path / "base")
    pipe.load_unlearning_adapter(built, strength=1.3)
    pipe.fuse_unlearning_adapters()
    pipe.save_pretrained(tmp_path / "fused")
    code, out, _ = unlearn("verify", tmp_path / "fused", "--adapter", built)
    assert code == 0 and "holds shapeworld-red at strength 1.300, in all 12 layers" in out
    assert "nothing else differs" in out
    code, out, _ = unlearn("verify", tmp_path / "base", "--adapter", built, "--base", tmp_path / "base")
    assert code == 1 and "does not hold shapeworld-red: its 12 layers are those of the base" in out
    with torch.no_grad():
        pipe.transformer.proj_out.weight += 1
        pipe.transformer.get_submodule("blocks.0.attn2.to_k").weight[0] += 1
    pipe.save_pretrained(tmp_path / "tampered")
    code, out, _ = unlearn("verify", tmp_path / "tampered", "--adapter", built, "--json")
    answer = json.loads(out)
    assert code == 1 and answer["unexplained"] == ["transformer.blocks.0.attn2.to_k"]
    assert answer["others"] == ["transformer.proj_out.weight"]
    code, _, error = unlearn("verify", built, "--adapter", built)
    assert code == 1 and "no pipeline in diffusers' layout" in error
