"""Engines in environments of their own: where they are, how a job is run there, and the file of what was found."""

from __future__ import annotations

import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

HERE = Path(__file__).parent
RESULTS = HERE / "results.json"
FOLDER = "UNLEARNING_ENGINES"
WITH_STUBS = ("comfyui", "diffsynth")  # they import torchvision and torchaudio, which have no CPU build here
# Without environments these tests are not collected, whatever `-m` says.
collect_ignore_glob = [] if os.environ.get(FOLDER) else ["test_*.py"]


class Engine:
    """The environment of one engine."""

    def __init__(self, name: str) -> None:
        folder = os.environ.get(FOLDER)
        assert folder, f"make the environments with tests/engines/setup.py, and name their folder in {FOLDER}"
        self.name, self.place = name, Path(folder) / name
        self.facts: dict[str, Any] = json.loads((self.place / "engine.json").read_text(encoding="utf-8"))
        self.environment = {
            **os.environ,
            "PYTHONPATH": str(HERE / "stubs") if name in WITH_STUBS else "",
            "HF_HUB_OFFLINE": "1",
            "PYTHONSAFEPATH": "1",  # runners are named as the packages that they run
            "CUDA_VISIBLE_DEVICES": "",
            "OMP_NUM_THREADS": "1",
        }

    def run(self, jobs: list[dict[str, Any]], folder: Path) -> list[dict[str, Any]]:
        """Run jobs in one process of the engine, and return what it says of each."""
        file = folder / f"jobs-{self.name}-{len(list(folder.iterdir()))}.json"
        file.write_text(json.dumps(jobs), encoding="utf-8")
        command = [
            self.place / "bin" / "python",
            HERE / "runners" / f"{self.name}.py",
            self.facts["source"] or "",
            file,
        ]
        done = subprocess.run(command, env=self.environment, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, f"{done.stdout[-2000:]}\n{done.stderr[-4000:]}"
        return json.loads(file.with_suffix(".result.json").read_text(encoding="utf-8"))


@pytest.fixture(scope="session")
def engine() -> Callable[[str], Engine]:
    known: dict[str, Engine] = {}
    return lambda name: known.setdefault(name, Engine(name))


@pytest.fixture(scope="session")
def record() -> Iterator[Callable[..., None]]:
    """Note what was found; the file of results is written at the end, with what other runs found kept."""
    found: dict[str, dict[str, dict[str, Any]]] = {}

    def note(engine: str, family: str, **facts: Any) -> None:
        found.setdefault(engine, {}).setdefault(family, {}).update(facts)

    yield note
    known = json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}
    for name, families in found.items():
        for family, facts in families.items():
            known.setdefault(name, {}).setdefault(family, {}).update(facts)
    RESULTS.write_text(json.dumps(known, indent=1, sort_keys=True) + "\n", encoding="utf-8")
