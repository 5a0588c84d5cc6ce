"""The pages: links lead somewhere, the files and modules that they name exist, tables are those that were measured."""

import ast
import importlib
import re
from pathlib import Path

import pytest

import unlearning_adapters

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "benchmarks/README.md", "models/README.md")]
PAGES += [*sorted((ROOT / "docs").rglob("*.md")), *sorted((ROOT / "fuzz").glob("*.md"))]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
FENCE = re.compile(r"^```.*?^```", re.MULTILINE | re.DOTALL)
ROOMS = [path.name for path in (ROOT / "src" / "unlearning_adapters").iterdir() if (path / "__init__.py").is_file()]
MODULE = re.compile(rf"(?<![\w/.])((?:{'|'.join(ROOMS)})/[\w/]+\.(?:py|json|yaml|html|md))\b")
ENTRY_POINTS = {".detectors", ".prompt_sets"}  # groups of other packages, and no modules
OTHER_FILE = re.compile(r"(?<![\w/.-])((?:tests|benchmarks|examples|docs|models|fuzz|hub_cards)/[\w/.-]+\.\w+)\b")


def anchor(heading: str) -> str:
    """The anchor that GitHub gives to a heading."""
    return re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")


def anchors(text: str) -> set[str]:
    return {anchor(heading) for heading in re.findall(r"^#+ (.+)$", FENCE.sub("", text), re.MULTILINE)}


@pytest.mark.parametrize("name", TEXT)
def test_links_lead_somewhere(name: str) -> None:
    broken = []
    for target in re.findall(r"\]\(([^)\s]+)\)", FENCE.sub("", TEXT[name])):
        path, _, part = target.partition("#")
        if "://" in target or target.startswith("mailto:"):
            continue
        page = ((ROOT / name).parent / path).resolve() if path else ROOT / name
        if not page.exists() or (part and part not in anchors(page.read_text(encoding="utf-8"))):
            broken.append(target)
    assert broken == []


@pytest.mark.parametrize("name", TEXT)
def test_files_that_a_page_names_exist(name: str) -> None:
    text = TEXT[name]
    missing = {path for path in MODULE.findall(text) if not (ROOT / "src" / "unlearning_adapters" / path).is_file()}
    missing |= {path for path in OTHER_FILE.findall(text) if "*" not in path and not (ROOT / path).exists()}
    assert missing == set()


def test_modules_that_a_page_names_exist() -> None:
    missing = set()
    for name, text in TEXT.items():
        for module in set(re.findall(r"\bunlearning_adapters((?:\.[a-z_]+)+)\b", text)) - ENTRY_POINTS:
            path = ROOT / "src" / "unlearning_adapters" / module.strip(".").replace(".", "/")
            public = module.strip(".") in unlearning_adapters.__all__
            if not (path.with_suffix(".py").is_file() or path.is_dir() or public):
                missing.add(f"{name}: {module}")
    assert missing == set()


@pytest.mark.parametrize("name", [name for name, text in TEXT.items() if "```python" in text])
def test_python_of_a_page_imports_what_exists(name: str) -> None:
    for body in re.findall(r"^```python\n(.*?)^```", TEXT[name], re.MULTILINE | re.DOTALL):
        for node in ast.walk(ast.parse(body)):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("unlearning_adapters"):
                module = importlib.import_module(node.module)
                assert [alias.name for alias in node.names if not hasattr(module, alias.name)] == []
            elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "ua":
                assert hasattr(unlearning_adapters, node.attr), node.attr


def test_the_rooms_of_the_architecture_are_those_of_the_package() -> None:
    """In the order of the contract that import-linter checks."""
    text = TEXT["docs/architecture.md"]
    assert len(text.splitlines()) <= 90
    tree = re.search(r"```text\n(.*?)```", text, re.DOTALL)
    rooms = [set(re.findall(r"[a-z_]+(?=/|\.py)", line[:36])) for line in tree[1].splitlines()]
    floors = re.search(r"layers = \[(.*?)\]", (ROOT / "pyproject.toml").read_text(encoding="utf-8"), re.DOTALL)
    layers = [set(layer.split(" | ")) for layer in re.findall(r'"(.*?)"', floors[1]) if layer != "__main__"]
    assert rooms == layers


def test_the_tables_of_results_are_those_that_were_measured() -> None:
    from benchmarks import tables

    names = set()
    for page in tables.PAGES:
        text = page.read_text(encoding="utf-8")
        assert tables.written(text) == text, f"run `python -m benchmarks.tables`, which writes {page.name}"
        names |= {block[2] for block in tables.BLOCK.finditer(text)}
    assert names == set(tables.TABLES)


def test_a_changed_number_is_seen() -> None:
    from benchmarks import tables

    text = tables.PAGES[0].read_text(encoding="utf-8")
    assert tables.written(text.replace("0.00 [0.00, 0.01]", "0.10 [0.00, 0.01]")) == text


@pytest.mark.parametrize("table", ["language", "models", "erasure"])
def test_the_markdown_beside_a_json_file_is_made_from_it(table: str) -> None:
    from benchmarks import tables

    page = (tables.FOLDER / f"{table}.md").read_text(encoding="utf-8")
    assert (tables.TABLES["drifts"] if table == "models" else tables.TABLES[table])().strip() in page
