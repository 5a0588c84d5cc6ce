"""`run.json`: what a run says of itself, its suite, its conditions and its arms."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.draft import write_whole
from unlearning_adapters.errors import EvaluationError

from .conditions import UNSAID

RECORD = "run.json"
KEYS = ("conditions", "suite", "detectors", "seeds", "gate", "arms")


def check_same(folder: Path, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise `EvaluationError` if the run in a folder has other conditions, detectors or seeds that this one lacks."""
    conditions = {**UNSAID, **before["conditions"]}
    for name, value in now["conditions"].items():
        if name not in ("hash", "versions") and conditions.get(name) != value:
            raise EvaluationError(
                f"The folder {folder.name!r} holds a run with another {name.replace('_', ' ')}: "
                f"{conditions.get(name)!r}, now {value!r}. Choose another folder, or remove that one."
            )
    if before["seeds"] != now["seeds"] and not (before["seeds"] and set(before["seeds"]) <= set(now["seeds"] or ())):
        raise EvaluationError(
            f"The folder {folder.name!r} holds a run with other seeds: {before['seeds']}, now {now['seeds']}. "
            "Choose another folder, or remove that one."
        )
    old, new = before["detectors"], now["detectors"]
    if [_identity(item) for item in old] != [_identity(item) for item in new]:
        raise EvaluationError(
            f"The folder {folder.name!r} holds a run with other detectors: {[item['name'] for item in old]}, now "
            f"{[item['name'] for item in new]}. Take these, and change them afterwards with --rescore."
        )


def _identity(detector: Mapping[str, Any]) -> tuple[Any, ...]:
    return detector["name"], detector["settings"], detector["version"]


def read_record(folder: str | Path) -> dict[str, Any]:
    """Return what a run says of itself.

    Raises:
        EvaluationError: If the folder holds no run.
    """
    try:
        record = json.loads((Path(folder) / RECORD).read_text(encoding="utf-8"))
        missing = [name for name in KEYS if not isinstance(record, dict) or name not in record]
        if missing:
            raise ValueError(f"its {RECORD} says nothing of {', '.join(missing)}")
        return dict(record)
    except (OSError, ValueError) as error:
        raise EvaluationError(
            f"{str(folder)!r} is not the folder of an evaluation: {error}. Give the folder of a run."
        ) from error


def write_record(folder: Path, record: Mapping[str, Any]) -> None:
    """Write what a run says of itself, whole or not at all."""
    text = json.dumps(record, indent=1, allow_nan=False, default=str)
    write_whole(folder / RECORD, f"{text}\n".encode())
