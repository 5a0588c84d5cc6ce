"""What the page hands out can be made again by the plain commands that it names."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from tiny import CALL as TINY
from tiny import tiny_wan_pipeline

from unlearning_adapters.adapter.file import FILE_NAME
from unlearning_adapters.cli.app.bench import Bench
from unlearning_adapters.cli.app.jobs import Job
from unlearning_adapters.cli.app.session import Session
from unlearning_adapters.cli.app.tabs.forgetting import build
from unlearning_adapters.cli.app.tabs.measuring import Measurement
from unlearning_adapters.cli.app.tabs.sharing import files_of
from unlearning_adapters.cli.open import open_pipeline
from unlearning_adapters.concepts.concept import Concept, load_concept

Unlearn = Callable[..., tuple[int, str, str]]
THINGS = ("car", "dog", "house")
OWN = Concept.from_dict(
    {
        "name": "my-red",
        "words": ["red"],
        "pairs": [{"unsafe": f"a red {thing}", "safe": f"a blue {thing}"} for thing in THINGS],
        "neutral": ["two dogs run on a quiet street", "a tree", "an old man"],
        "evaluation": [f"a small red {thing}" for thing in THINGS],
        "neighbours": [f"a small green {thing}" for thing in THINGS],
    }
)


def brightness(frames):
    """A detector as a user would write it."""
    return frames.mean(axis=(1, 2, 3)) / 255


@pytest.fixture
def session() -> Iterator[Session]:
    opened = Session()
    yield opened
    opened.close()


def done(work: Callable[[Job], Any]) -> Any:
    job = Job(work, "Trying")
    assert job.wait(120) and job.error == "", job.error
    return job.result


def test_an_own_concept_and_its_report_are_made_again(
    session: Session, tmp_path: Path, unlearn: Unlearn, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiny_wan_pipeline().save_pretrained(tmp_path / "base")
    source, taken = str(tmp_path / "base"), tmp_path / "taken"
    bench = Bench(open_pipeline(source), source, TINY)
    settings = {"scope": "word", "method": "ridge", "pairs": 3, "strength": 1.5}
    name = done(lambda job: build(bench, session, OWN, settings, job))["name"]
    measurement = Measurement(bench, session, session.entry(name), 2, [f"{__name__}:brightness"], True)
    done(measurement.run)
    files = files_of(bench, session.entry(name), session, name)
    stem = FILE_NAME.removesuffix(".safetensors")
    assert [file.name for file in files] == [
        FILE_NAME, f"{stem}.reproduce.json", "concept.yaml", "report.json", "index.html", "reproduce.json",
    ]  # fmt: skip
    taken.mkdir()
    for file in files:
        shutil.copy(file, taken)
    monkeypatch.chdir(taken)  # as somebody who downloaded them
    code, out, error = unlearn("reproduce", f"{stem}.reproduce.json")
    assert code == 0 and out.splitlines()[-1] == "the result is the same, bit for bit", (out, error)
    code, out, error = unlearn("reproduce", "reproduce.json")
    assert code == 0 and out.splitlines()[-1] == "the numbers are the same", (out, error)


def test_a_shipped_concept_is_named_and_an_opened_file_has_no_record(
    session: Session, tmp_path: Path, unlearn: Unlearn
) -> None:
    bench = Bench(open_pipeline("shapeworld"), "shapeworld")
    name = done(lambda job: build(bench, session, load_concept("red"), {"pairs": 5, "scope": "word"}, job))["name"]
    adapter, record = files_of(bench, session.entry(name), session, name)
    assert json.loads(record.read_text())["command"][:3] == ["build", "shapeworld", "shapeworld-red"]
    code, out, error = unlearn("reproduce", record)
    assert code == 0 and out.splitlines()[-1] == "the result is the same, bit for bit", (out, error)
    other = Session((str(adapter),))
    try:
        assert [file.name for file in files_of(bench, other.entry(name), other, name)] == [FILE_NAME]
    finally:
        other.close()
