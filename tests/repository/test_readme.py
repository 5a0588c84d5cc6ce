"""The README is short, and it is executed: every Python fence in order as one program, and every `unlearn` line."""

import re
import shlex
from collections.abc import Callable
from pathlib import Path

import pytest
from fresh import in_copy

from unlearning_adapters.shapeworld.models.generate import GENERATION

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)
MAX_LINES, MAX_BYTES, MAX_LINE, MAX_ROWS = 130, 8000, 140, 6


def fences(language: str) -> list[str]:
    return [body for name, body in FENCE.findall(README) if name == language]


def command_lines() -> list[str]:
    """The `unlearn` commands of all shell fences, without the set-up before them."""
    lines = [line for body in fences("bash") for line in body.splitlines() if line and not line.startswith("#")]
    return [re.sub(r"^.*?\.venv/bin/unlearn", "unlearn", line) for line in lines if "unlearn " in line]


def test_readme_is_short() -> None:
    lines = README.splitlines()
    assert len(lines) <= MAX_LINES and len(README.encode()) <= MAX_BYTES
    assert [line for line in lines if len(line) > MAX_LINE] == []
    tables = [block.splitlines() for block in re.findall(r"(?:^\|.*\n)+", README, re.MULTILINE)]
    assert len(tables) == 1 and all(len(table) - 2 <= MAX_ROWS for table in tables)


def test_readme_has_only_fences_that_are_executed() -> None:
    assert {language for language, _ in FENCE.findall(README)} == {"python", "bash"}
    assert len(fences("python")) >= 3
    set_up = [line for body in fences("bash") for line in body.splitlines() if line.startswith("python3 -m venv")]
    lines = [line for body in fences("bash") for line in body.splitlines() if line]
    assert {*lines} - {*set_up} == {line for line in lines if line.startswith("unlearn ")}


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder in which the Python of the README has run; its commands use what that wrote."""
    folder = tmp_path_factory.mktemp("readme")
    program = "\n".join(fences("python"))
    in_copy("-c", program, cwd=folder)
    return folder


@pytest.mark.slow
def test_python_fences_run_in_order(folder: Path) -> None:
    assert (folder / "no-red" / "pytorch_lora_weights.safetensors").is_file()
    assert (folder / "edited-model" / "model_index.json").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("line", command_lines())
def test_commands_run(
    line: str, folder: Path, monkeypatch: pytest.MonkeyPatch, unlearn: Callable[..., tuple[int, str, str]]
) -> None:
    monkeypatch.setitem(GENERATION, "num_inference_steps", 6)  # half of what takes the time
    arguments = shlex.split(line, comments=True)[1:]
    if arguments[0] == "demo":
        arguments += ["--clips", "2"]
    monkeypatch.chdir(folder)
    code, out, error = unlearn(*arguments)
    assert code == 0, error[-2000:]
    assert out.strip()


def test_set_up_commands_are_those_that_are_promised() -> None:
    lines = [line for body in fences("bash") for line in body.splitlines()]
    assert "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt . && .venv/bin/unlearn demo" in lines
    assert "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt '.[test]' && .venv/bin/pytest" in lines
