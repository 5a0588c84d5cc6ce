"""The README is executed: every Python fence in order, as one program, and every `unlearn` line."""

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
README = (ROOT / "README.md").read_text(encoding="utf-8")
FENCE = re.compile(r"^```(\w*)\n(.*?)^```", re.MULTILINE | re.DOTALL)


def fences(language: str) -> list[str]:
    return [body for found, body in FENCE.findall(README) if found == language]


def command_lines() -> list[str]:
    """The `unlearn` commands of all shell fences, without the set-up before them."""
    lines = [line for body in fences("bash") for line in body.splitlines() if line and not line.startswith("#")]
    return [re.sub(r"^.*?\.venv/bin/unlearn", "unlearn", line) for line in lines if "unlearn " in line]


def test_readme_has_only_fences_that_are_executed() -> None:
    assert {language for language, _ in FENCE.findall(README)} <= {"python", "bash"}
    assert len(fences("python")) >= 3


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One working folder for all of the README, since its commands use what its Python wrote."""
    return tmp_path_factory.mktemp("readme")


def test_python_fences_run_in_order(folder: Path) -> None:
    program = "\n".join(fences("python"))
    run = subprocess.run([sys.executable, "-c", program], cwd=folder, capture_output=True, text=True, check=False)
    assert run.returncode == 0, run.stderr[-2000:]
    assert (folder / "no-red" / "pytorch_lora_weights.safetensors").is_file()


@pytest.mark.parametrize("line", command_lines())
def test_commands_run(line: str, folder: Path) -> None:
    arguments = shlex.split(line)[1:]
    if arguments[0] == "demo":
        arguments += ["--clips", "2"]
    run = subprocess.run(
        [sys.executable, "-m", "unlearning_adapters", *arguments],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )
    assert run.returncode == 0, run.stderr[-2000:]
    assert run.stdout.strip()


def test_set_up_commands_are_those_that_are_promised() -> None:
    lines = [line for body in fences("bash") for line in body.splitlines()]
    assert "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt . && .venv/bin/unlearn demo" in lines
    assert "python3 -m venv .venv && .venv/bin/pip install -q -c constraints.txt '.[test]' && .venv/bin/pytest" in lines


def test_links_and_pictures_exist() -> None:
    targets = [target for target in re.findall(r"\]\(([^)#]+)\)", README) if "://" not in target]
    assert targets
    assert [target for target in targets if not (ROOT / target).exists()] == []


def test_result_table_is_the_one_that_was_measured() -> None:
    measured = (ROOT / "benchmarks" / "erasure.md").read_text(encoding="utf-8")
    assert measured.strip() in README
