"""Rows on disk: they survive a kill, merge over processes, and hold clips without loss."""

import json
from pathlib import Path

import numpy as np
import pytest

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.store import Row, Store

CLIP = np.random.default_rng(0).integers(0, 256, (3, 8, 8, 3), dtype=np.uint8)


def row(prompt: str, arm: str = "base", **others: object) -> Row:
    return Row(arm, "forget", prompt, 0, "h", **others)  # type: ignore[arg-type]


def test_a_row_survives_its_line() -> None:
    full = row("a", clip="x.npz", shape=(3, 8, 8), seconds=0.5, found={"d": {"scores": [0.5]}}, drift={"psnr": None})
    assert Row.from_json(full.to_json()) == full and "\n" not in full.to_json()
    assert Row.from_json(row("a").to_json()) == row("a")


def test_a_torn_line_costs_one_row(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.append(row("a"))
    store.append(row("b"))
    store.file.write_bytes(store.file.read_bytes()[:-7])  # what a kill leaves behind
    assert [key[2] for key in Store(tmp_path).rows()] == ["a"]
    again = Store(tmp_path)
    again.append(row("c"))
    assert [key[2] for key in again.rows()] == ["a", "c"]


def test_another_broken_line_is_an_error(tmp_path: Path) -> None:
    store = Store(tmp_path)
    store.file.write_text(f'{{"arm": "base"\n{row("a").to_json()}\n')
    with pytest.raises(EvaluationError, match="Line 1 of rows-0.jsonl is not a row"):
        store.rows()
    store.file.write_text(json.dumps({"arm": "base", "speed": 1}) + "\n")
    with pytest.raises(EvaluationError, match="Unknown key 'speed' in a row"):
        store.rows()


def test_processes_merge_and_a_row_without_an_error_wins(tmp_path: Path) -> None:
    one, other = Store(tmp_path, 0), Store(tmp_path, 1)
    one.append(row("a", error="RuntimeError: no"))
    other.append(row("a", clip="x.npz"))
    other.append(row("b"))
    one.append(row("b", error="RuntimeError: later"))
    assert {key[2]: found.error for key, found in one.rows().items()} == {"a": "", "b": ""}
    one.replace(one.rows().values())
    assert [path.name for path in tmp_path.glob("rows-*")] == ["rows-0.jsonl"] and len(one.rows()) == 2


def test_clips_are_kept_bit_for_bit(tmp_path: Path) -> None:
    store = Store(tmp_path)
    path = store.save_clip(("base", "forget", "a", 0), CLIP)
    assert np.array_equal(store.load_clip(row("a", clip=path)), CLIP)
    still = np.repeat(CLIP[:1], 5, axis=0)  # equal frames stay as many as they are
    assert store.load_clip(row("b", clip=store.save_clip(("base", "forget", "b", 0), still))).shape[0] == 5
    with pytest.raises(EvaluationError, match="Cannot read the clip of base/forget/a/0: the row has none"):
        store.load_clip(row("a"))
    (tmp_path / path).write_bytes(b"PK")
    with pytest.raises(EvaluationError, match="Cannot read the clip"):
        store.load_clip(row("a", clip=path))
    assert not list(tmp_path.rglob("*.new"))


def test_a_folder_that_cannot_be_made_is_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(EvaluationError, match=r"Cannot make the folder '.*file/run': Not a directory\. Choose another"):
        Store(tmp_path / "file" / "run")
