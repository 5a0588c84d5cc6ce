"""The house: imports go down the floors of pyproject.toml, functions, files and folders stay short, no junk."""

import ast
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "src" / "unlearning_adapters"
MAX_FUNCTION = 60  # lines, without the docstring
MAX_FILE = 360
MAX_BYTES = 12_000_000
MAX_MODEL_BYTES = 25_000_000  # trained models beside the package, which no wheel holds
MAX_FILES_IN_A_FOLDER = 15
MAX_TOP = 19  # files and folders at the top of the package
LINT = [sys.executable, "-c", "from importlinter.cli import lint_imports_command as lint; lint(['--no-cache'])"]
JUNK = re.compile(
    r"(^|/)(__pycache__|\.DS_Store|Thumbs\.db|\.(pytest|mypy|ruff)_cache|\.hypothesis|\.venv|node_modules|dist|build|runs)(/|$)"
    r"|\.(pyc|pyo|pt|pth|ckpt|bin|pkl|log|tmp|bak|orig|rej|swp|whl|zip|gz)$|\.egg-info(/|$)|~$"
)
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|home|root|Users|opt|mnt|tmp)/\w|\b[A-Z]:\\\\?Users\b")
TEXT = (".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".jsonl", ".cfg", ".run", "")

SOURCES = sorted(PACKAGE.rglob("*.py"))
PYTHON = [*SOURCES, *sorted((ROOT / "tests").rglob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]
PYTHON += [path for folder in ("benchmarks", "fuzz") for path in sorted((ROOT / folder).rglob("*.py"))]
Function = ast.FunctionDef | ast.AsyncFunctionDef


@cache  # and not for all at once: each worker of pytest imports this file, and few run its tests
def tree(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def functions(path: Path) -> Iterator[tuple[Function, tuple[str, ...]]]:
    """Yield each function of a file with the names of the classes and functions around it."""

    def walk(node: ast.AST, around: tuple[str, ...]) -> Iterator[tuple[Function, tuple[str, ...]]]:
        for child in ast.iter_child_nodes(node):
            inside = around
            if isinstance(child, Function):
                yield child, around
            if isinstance(child, (Function, ast.ClassDef)):
                inside = (*around, child.name)
            yield from walk(child, inside)

    yield from walk(tree(path), ())


def repository_files() -> list[str]:
    """Return the files that belong to the repository; in a copy without git, all that look like sources."""
    listing = subprocess.run(
        ["git", "-c", "safe.directory=*", "ls-files", "-z", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    if listing.returncode == 0 and listing.stdout:
        return [name for name in listing.stdout.split("\0") if name and (ROOT / name).is_file()]
    found = (path.relative_to(ROOT).as_posix() for path in ROOT.rglob("*") if path.is_file())
    return [name for name in found if not JUNK.search(name) and not name.startswith(".git/")]


def test_imports_go_down_the_floors() -> None:
    """The contracts of pyproject.toml hold."""
    done = subprocess.run(LINT, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-4000:]


def test_the_contracts_see_an_upward_import(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "src", tmp_path / "src", ignore=shutil.ignore_patterns("*.safetensors", "__pycache__"))
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    with (tmp_path / "src/unlearning_adapters/adapter/source.py").open("a", encoding="utf-8") as file:
        file.write("from unlearning_adapters.runtime import verbs\n")
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "src")}
    done = subprocess.run(LINT, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1 and "unlearning_adapters.adapter.source -> " in done.stdout


def test_rooms_are_small() -> None:
    folders = {path.parent for path in SOURCES}
    files = {folder: sum(1 for path in SOURCES if path.parent == folder) for folder in folders}
    assert {name_of(folder): count for folder, count in files.items() if count > MAX_FILES_IN_A_FOLDER} == {}
    top = [path.name for path in PACKAGE.iterdir() if path.name != "__pycache__"]
    assert len(top) <= MAX_TOP, top


def test_functions_are_short() -> None:
    long = []
    for path in PYTHON:
        for function, _ in functions(path):
            first = function.body[0]
            documented = ast.get_docstring(function) is not None
            start = (first.end_lineno or first.lineno) + 1 if documented else first.lineno
            lines = (function.end_lineno or start) - start + 1
            if lines > MAX_FUNCTION:
                long.append(f"{path.relative_to(ROOT)}:{function.lineno} {function.name} has {lines} lines")
    assert long == []


def test_files_are_short() -> None:
    lines = {name_of(path): len(path.read_text(encoding="utf-8").splitlines()) for path in SOURCES}
    assert {name: count for name, count in lines.items() if count > MAX_FILE} == {}


def test_no_file_is_a_drawer() -> None:
    drawer = re.compile(r"(^|_)(utils?|helpers?|common|manager|misc)$")
    assert [name_of(path) for path in SOURCES if drawer.search(path.stem)] == []


def test_public_functions_are_documented_and_typed() -> None:
    missing = []
    for path in SOURCES:
        for function, around in functions(path):
            nested = any(not part[:1].isupper() for part in around)
            if nested or function.name.startswith("_") or any(part.startswith("_") for part in around):
                continue
            where = f"{name_of(path)}:{function.lineno} {function.name}"
            missing += [f"{where}: docstring"] if not ast.get_docstring(function) else []
            missing += [f"{where}: return annotation"] if function.returns is None else []
    assert missing == []


def test_every_file_says_what_it_is() -> None:
    examples = [path for path in PYTHON if path.parent.name == "examples"]
    assert [path.name for path in [*SOURCES, *examples] if not ast.get_docstring(tree(path))] == []


def test_the_tree_holds_no_junk() -> None:
    assert [name for name in repository_files() if JUNK.search(name)] == []


def test_no_file_is_large() -> None:
    def limit(name: str) -> int:
        return MAX_MODEL_BYTES if name.startswith("models/") else MAX_BYTES

    assert [name for name in repository_files() if (ROOT / name).stat().st_size > limit(name)] == []


def test_no_path_of_a_machine_is_written_down() -> None:
    found = []
    for name in repository_files():
        if Path(name).suffix not in TEXT:
            continue
        for number, line in enumerate((ROOT / name).read_text(encoding="utf-8").splitlines(), start=1):
            found += [f"{name}:{number}: {match.group()}" for match in MACHINE_PATH.finditer(line)]
    assert found == []


@pytest.mark.parametrize("line", ["/home" + "/ann/x", "'/work" + "/main'", "C:" + "\\Users\\ann"])
def test_a_path_of_a_machine_is_seen(line: str) -> None:
    assert MACHINE_PATH.search(line)


@pytest.mark.parametrize("line", ["https://x.org/home/page", "a/root/b", "src/work/c", "docs/tmp/x"])
def test_other_paths_are_not(line: str) -> None:
    assert not MACHINE_PATH.search(line)
