"""A type checker reads the annotations of the installed wheel: what a user's file gets right, and what is refused."""

import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PROGRAM = """
from typing import Any, assert_type

import unlearning_adapters as ua
from unlearning_adapters import BuildConfig, Concept, Pair


def forget(pipe: Any) -> tuple[str, float]:
    concept = Concept("no-red", pairs=[Pair("a red car", "a blue car")], neutral=["a dog"])
    adapter = ua.build_adapter(pipe, concept, BuildConfig(pairs=1))
    assert_type(adapter, ua.UnlearningAdapter)
    assert_type(adapter.info.concept, str)
    assert_type(adapter.strength, float)
    assert_type(adapter.sites, tuple[str, ...])
    ua.load_adapter("org/name", revision="v1", token=False, subfolder=None)
    return ua.load_unlearning_adapter(pipe, adapter, strength=1.2), adapter.strength
"""
WRONG = {
    'ua.load_unlearning_adapter(None, "no-red", strength="1")': "arg-type",
    'ua.load_unlearning_adapter(None, "no-red", power=1)': "call-arg",
    'ua.load_adapter("no-red").strengths': "attr-defined",
    'ua.load_adapter("org/name", revison="v1")': "call-arg",
    'ua.load_adapter("org/name", local_files_only="yes")': "arg-type",
    "ua.unlearn_everything": "attr-defined",
    'ua.Concept("red", pairs="red")': "arg-type",
    "ua.BuildConfig(rank=1.5)": "arg-type",
}


@pytest.fixture(scope="module")
def python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment that holds the wheel, without its dependencies."""
    folder = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "--quiet", "--disable-pip-version-check"]
    build = [*pip, "wheel", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run(build, check=True, capture_output=True, text=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        assert "unlearning_adapters/py.typed" in archive.namelist()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / ("Scripts/python.exe" if sys.platform == "win32" else "bin/python")
    install = [*pip, "--python", python, "install", "--no-deps", "--no-index", wheel]
    subprocess.run(install, check=True, capture_output=True, text=True)
    return python


def check(python: Path, folder: Path, program: str) -> subprocess.CompletedProcess[str]:
    """Run mypy on a user's file as if it ran in that environment, far from the sources."""
    file = folder / "program.py"
    file.write_text(program, encoding="utf-8")
    command = [
        sys.executable,
        "-m",
        "mypy",
        "--strict",
        "--config-file",
        "",
        "--cache-dir",
        str(python.parents[2] / "cache"),
    ]
    command += ["--python-executable", str(python), file.name]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, env={"PATH": ""})


@pytest.mark.slow
def test_a_users_file_is_checked_against_the_installed_wheel(python: Path, tmp_path: Path) -> None:
    right = check(python, tmp_path, PROGRAM)
    assert right.returncode == 0, right.stdout + right.stderr
    first = PROGRAM.count("\n") + 1
    wrong = check(python, tmp_path, PROGRAM + "\n".join(WRONG) + "\n")
    assert wrong.returncode == 1
    for number, (line, code) in enumerate(WRONG.items(), start=first):
        assert f"program.py:{number}: error: " in wrong.stdout and f"[{code}]" in wrong.stdout, line + wrong.stdout


def test_without_its_marker_the_wheel_has_no_types(python: Path, tmp_path: Path) -> None:
    """Otherwise the test above would pass without py.typed."""
    (marker,) = python.parents[1].rglob("unlearning_adapters/py.typed")
    marker.unlink()
    try:
        refused = check(python, tmp_path, PROGRAM)
    finally:
        marker.touch()
    assert refused.returncode == 1 and "missing library stubs or py.typed marker" in refused.stdout
