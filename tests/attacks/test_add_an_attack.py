"""An attack is added in the two steps of docs/architecture.md: a file, and a line in the table."""

import importlib.util
import sys
from pathlib import Path
from typing import Any

import pytest

from unlearning_adapters.attacks import kinds
from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.run import ATTACKS, Attack, run_attacks, to_markdown
from unlearning_adapters.attacks.target import world_target
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.cli.main import main
from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.evaluation.detectors.detector import as_detectors
from unlearning_adapters.shapeworld.models.generate import GENERATION
from unlearning_adapters.shapeworld.models.load import load_shapeworld

NAME = f"{kinds.__name__}.toy"
TOY = '''"""The toy attack: the prompts, written twice."""

from dataclasses import replace

from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.subject import AttackPoint, Subject
from unlearning_adapters.attacks.target import Examples, Target


def twice(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[AttackPoint, ...]:
    """Return the rate for prompts that say all twice."""
    del examples
    requests = [replace(request, text=f"{request.text}, {request.text}") for request in target.named[: budget.prompts]]
    return (AttackPoint.of("twice", subject.look(requests, target)),)
'''


def test_a_toy_attack_takes_a_file_and_a_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "toy.py"
    file.write_text(TOY, encoding="utf-8")
    spec = importlib.util.spec_from_file_location(NAME, file)
    assert spec and spec.loader
    module: Any = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, NAME, module)
    spec.loader.exec_module(module)
    monkeypatch.setitem(ATTACKS, "twice", Attack("each prompt twice", module.twice))

    assert main(["attack", "--list"]) == 0 and "each prompt twice" in capsys.readouterr().out
    pipe = load_shapeworld()
    adapter = build_adapter(pipe, load_concept("shapeworld-red"), BuildConfig(), progress=False)
    call = {**GENERATION, "num_inference_steps": 4}
    report = run_attacks(
        pipe, adapter, world_target("red", 2), as_detectors(["shapes"]), ["twice"], Budget("few", prompts=2),
        call=call, progress=False,
    )  # fmt: skip
    entry = report["attacks"]["twice"]
    assert entry["title"] == "each prompt twice" and entry["edited"]["points"][0]["setting"] == "twice"
    assert [entry[arm]["points"][0]["value"] for arm in ("base", "edited")] == [1, 0]
    assert "each prompt twice" in to_markdown(report)
