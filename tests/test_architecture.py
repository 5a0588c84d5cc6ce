"""The house: imports only go down the levels of docs/architecture.md, functions and files stay short, no junk."""

import ast
import re
import subprocess
from collections.abc import Iterator
from pathlib import Path, PurePosixPath

import pytest

ROOT = Path(__file__).resolve().parent.parent
PACKAGE = ROOT / "src" / "unlearning_adapters"
DOC = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
MAX_FUNCTION = 60  # lines, without the docstring
MAX_FILE = 360
MAX_BYTES = 12_000_000
MAX_MODEL_BYTES = 25_000_000  # trained models beside the package, which no wheel holds
HEAVY = {"torch", "diffusers", "transformers", "peft", "accelerate", "imageio", "PIL", "numpy", "huggingface_hub"}
# What `unlearn --help`, `unlearn inspect` and `import unlearning_adapters` load.
LIGHT = (
    "__init__.py", "__main__.py", "cli.py", "commands.py", "errors.py", "config.py", "prompts.py", "concept_file.py",
    "pictures.py", "pairs.py", "concepts.py", "adapter_file.py", "adapter_header.py", "adapter_record.py",
    "adapter_source.py", "concept_lint.py", "lint_command.py", "evaluate_command.py", "export_command.py",
    "pipelines_command.py", "compare_command.py", "search_command.py", "attack_command.py",
)  # fmt: skip
JUNK = re.compile(
    r"(^|/)(__pycache__|\.DS_Store|Thumbs\.db|\.(pytest|mypy|ruff)_cache|\.hypothesis|\.venv|node_modules|dist|build|runs)(/|$)"
    r"|\.(pyc|pyo|pt|pth|ckpt|bin|pkl|log|tmp|bak|orig|rej|swp|whl|zip|gz)$|\.egg-info(/|$)|~$"
)
MACHINE_PATH = re.compile(r"(?<![\w.])/(work|home|root|Users|opt|mnt|tmp)/\w|\b[A-Z]:\\\\?Users\b")
TEXT = (".py", ".md", ".toml", ".txt", ".yaml", ".yml", ".json", ".jsonl", ".cfg", ".run", "")

SOURCES = sorted(PACKAGE.rglob("*.py"))
PYTHON = [*SOURCES, *sorted((ROOT / "tests").glob("*.py")), *sorted((ROOT / "examples").glob("*.py"))]
PYTHON += [path for folder in ("benchmarks", "fuzz", "tests/hostile") for path in sorted((ROOT / folder).rglob("*.py"))]
TREES = {path: ast.parse(path.read_text(encoding="utf-8")) for path in PYTHON}
Function = ast.FunctionDef | ast.AsyncFunctionDef


def name_of(path: Path) -> str:
    return path.relative_to(PACKAGE).as_posix()


def levels() -> dict[str, int]:
    rows = re.findall(r"^\| (\d+) \| (`[^|]+`) \|", DOC, flags=re.MULTILINE)
    listed = [(file, int(level)) for level, files in rows for file in re.findall(r"`([^`]+)`", files)]
    assert len(dict(listed)) == len(listed), "a file is listed twice"
    assert [int(level) for level, _ in rows] == list(range(len(rows))), "the levels are not in order"
    return dict(listed)


def exceptions() -> set[tuple[str, str]]:
    (line,) = re.findall(r"^The one exception, inside of functions: (.+)$", DOC, flags=re.MULTILINE)
    source, *targets = re.findall(r"`(\w+\.py)`", line)
    return {(source, target) for target in targets}


def imported(path: Path) -> Iterator[tuple[ast.Import | ast.ImportFrom, str]]:
    """Yield each import of a file of the package, as statement and file name; `__init__.py` for the package itself."""
    folder = PurePosixPath("unlearning_adapters") / PurePosixPath(name_of(path)).parent
    for node in ast.walk(TREES[path]):
        if isinstance(node, ast.Import):
            dotted = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            base = list(folder.parts[: len(folder.parts) + 1 - node.level]) if node.level else []
            module = ".".join([*base, *(node.module or "").split(".")]).strip(".")
            dotted = [f"{module}.{alias.name}" for alias in node.names]
        else:
            continue
        for name in dotted:
            if name.split(".")[0] == "unlearning_adapters":
                yield node, file_of(name.split(".")[1:])


def file_of(parts: list[str]) -> str:
    """Return the file that a dotted name below the package is in."""
    for length in range(len(parts), 0, -1):
        path = "/".join(parts[:length])
        if (PACKAGE / f"{path}.py").is_file():
            return f"{path}.py"
        if (PACKAGE / path / "__init__.py").is_file():
            return f"{path}/__init__.py"
    return "__init__.py"


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

    yield from walk(TREES[path], ())


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


def test_the_document_lists_every_file() -> None:
    files = {name_of(path) for path in SOURCES if path.name != "__init__.py"}
    assert set(levels()) == files


def test_imports_only_go_down() -> None:
    known, allowed, upward = levels(), exceptions(), []
    for path in SOURCES:
        name = name_of(path)
        for node, target in imported(path):
            if path.name == "__init__.py" and name != "__init__.py":
                upward.append(f"{name}:{node.lineno} imports {target}")
            elif name == "__init__.py" or (name, target) in allowed:
                continue
            elif target == "__init__.py" and [alias.name for alias in node.names] == ["__version__"]:
                continue
            elif known.get(target, len(known)) >= known.get(name, -1):
                upward.append(f"{name}:{node.lineno} imports {target}")
    assert upward == []


def test_exceptions_are_inside_of_functions_and_are_needed() -> None:
    for source, target in exceptions():
        path = PACKAGE / source
        inner = {id(node) for function, _ in functions(path) for node in ast.walk(function)}
        nodes = [node for node, found in imported(path) if found == target]
        assert nodes and all(id(node) in inner for node in nodes)


def test_the_walk_sees_an_upward_import(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = "from . import demo\nfrom .builder import x\nimport unlearning_adapters.verbs\n"
    text += "from unlearning_adapters import y\n"
    path = PACKAGE / "errors.py"
    monkeypatch.setitem(TREES, path, ast.parse(text))
    assert [target for _, target in imported(path)] == ["demo.py", "builder.py", "verbs.py", "__init__.py"]


def test_light_files_import_nothing_heavy_at_their_top() -> None:
    found = []
    for name in LIGHT:
        for node in TREES[PACKAGE / name].body:
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            modules += [node.module or ""] if isinstance(node, ast.ImportFrom) and not node.level else []
            found += [f"{name}: {module}" for module in modules if module.split(".")[0] in HEAVY]
            if isinstance(node, ast.ImportFrom) and node.level:
                inner = file_of((node.module or node.names[0].name).split("."))
                found += [f"{name}: {inner}"] if inner not in LIGHT else []
    assert found == []


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
    assert [path.name for path in [*SOURCES, *examples] if not ast.get_docstring(TREES[path])] == []


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
