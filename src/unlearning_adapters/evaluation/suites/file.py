"""Suites from files: YAML, JSONL and CSV, and prompt sets of other packages by name."""

import csv
import json
from collections.abc import Iterator, Mapping
from importlib.metadata import entry_points
from pathlib import Path
from typing import Any

import yaml

from unlearning_adapters.adapter.missing import why_unreadable
from unlearning_adapters.concepts.concept import list_concepts, load_concept
from unlearning_adapters.concepts.wording import show
from unlearning_adapters.config import check_keys
from unlearning_adapters.errors import EvaluationError, UnlearningError
from unlearning_adapters.evaluation.metrics import FORGET, ROLES

from .public import PROMPT_SETS, load_prompt_set
from .suite import EvaluationPrompt, PromptSet, Suite
from .world import SEED
from .worlds import find_value

GROUP = "unlearning_adapters.prompt_sets"  # of entry points: a callable of a path that returns prompt sets
# Names that published CSV files have for the same thing.
COLUMNS = {
    "text": ("prompt", "text", "caption"),
    "seed": ("seed", "evaluation_seed", "sd_seed"),
    "id": ("id", "case_number"),
}
SUITE_KEYS = {"name", "sets", "target", "generation", "words", "sides", "sensitive"}
SET_KEYS = {"name", "role", "prompts", "held_out", "file", "loader", "source"}
PROMPT_KEYS = {"text", "prompt", "id", "seed", "truth", "image", "call"}
CLIPS = 24  # prompts of each larger set of an embedded world
TRUTH = "truth."  # columns such as truth.colour


def read_suite(source: str | Path, role: str = FORGET) -> Suite:
    """Return a suite by name or from a file.

    Args:
        source: A value or concept of ShapeWorld or CastWorld ("red", "shapeworld-red", "castworld-otto"), another
            shipped concept, a concept file, a suite file (YAML with `sets`), a `.jsonl` or `.csv` file of prompts, or
            "<loader>:<path>" with one of `PROMPT_SETS` or a loader of the entry-point group
            `unlearning_adapters.prompt_sets`.
        role: Role of the prompts of a file that names none.

    Raises:
        EvaluationError: If there is no such suite, or it cannot be read.

    Example:
        >>> read_suite("shapeworld-red").target
        {'colour': 'red'}
    """
    if not isinstance(source, (str, Path)):
        raise EvaluationError(f"Expected the name of a suite or a file, but got {show(source)}.")
    text, path = str(source), Path(source)
    if known := find_value(text):
        world, value = known
        return world.suite(value, CLIPS, SEED)
    loader, colon, rest = text.partition(":")
    if colon and loader in PROMPT_SETS:
        return Suite(loader, tuple(load_prompt_set(loader, rest)))
    loaders = {point.name: point for point in entry_points(group=GROUP)}
    if colon and loader in loaders:
        return Suite(loader, tuple(loaders[loader].load()(Path(rest))))
    suffix = path.suffix.lower()
    if suffix in (".csv", ".tsv", ".jsonl", ".yaml", ".yml") and (reason := why_unreadable(path)):
        raise EvaluationError(f"Cannot read the suite {text!r}: {reason}. Check the file.")
    try:
        if suffix in (".csv", ".tsv"):
            return Suite(path.stem, tuple(sets_from_csv(path, role)))
        if suffix == ".jsonl" and not is_concept_file(path):
            return Suite(path.stem, tuple(sets_from_jsonl(path, role)))
        if suffix in (".yaml", ".yml") and not is_concept_file(path):
            content = yaml.safe_load(path.read_text(encoding="utf-8"))
            return suite_from_dict(
                {"name": path.stem, **content} if isinstance(content, dict) else content, path.parent
            )
    except (OSError, ValueError, yaml.YAMLError) as error:
        if isinstance(error, UnlearningError):
            raise type(error)(f"{path}: {error}") from error
        raise EvaluationError(
            f"Cannot read the suite {text!r}: {' '.join(str(error).split())}. Check the file."
        ) from error
    if text in list_concepts() or not why_unreadable(path):
        return Suite.from_concept(load_concept(source))
    raise EvaluationError(
        f"Unknown suite {text[:100]!r}. Give a shipped concept ({', '.join(list_concepts()[:4])}, ...), "
        "castworld-VALUE, or a file: .yaml with `sets`, .jsonl, .csv, or a concept file."
    )


def suite_from_dict(values: Any, folder: Path | None = None) -> Suite:
    """Make a suite of the contents of a file.

    Args:
        values: A mapping with "sets", a list of sets or a mapping of sets by name. A set has a "role", and "prompts", a
            list of texts or of mappings, or a "file" with prompts. A plain list stands for the prompts of a set that is
            named after its role.
        folder: Folder to which the paths of files are relative.
    """
    if not isinstance(values, Mapping) or "sets" not in values:
        raise EvaluationError(f"Expected a suite to be a mapping with `name` and `sets`, but got {show(values)}.")
    check_keys("a suite", values, SUITE_KEYS)
    listing = values["sets"]
    entries = [_named(name, part) for name, part in listing.items()] if isinstance(listing, Mapping) else listing
    if not isinstance(entries, list):
        raise EvaluationError(f"Expected `sets` to be a list or a mapping, but got {show(listing)}.")
    sets = [part for index, entry in enumerate(entries, start=1) for part in _sets(index, entry, folder)]
    others = {name: values[name] for name in ("target", "generation", "sensitive") if name in values}
    words, sides = (tuple(values.get(name, ())) for name in ("words", "sides"))
    return Suite(str(values.get("name", "suite")), tuple(sets), words=words, sides=sides, **others)


def sets_from_jsonl(path: Path, role: str = FORGET) -> list[PromptSet]:
    """Read a file with one JSON object per line: `prompt`, and optionally `role`, `set`, `id`, `seed`, `truth`, ..."""
    entries = []
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), start=1):
        if line.strip():
            entry = json.loads(line)
            if not isinstance(entry, dict):
                raise EvaluationError(f"Line {number} is not a JSON object: {show(entry)}.")
            entries.append(entry)
    return _grouped(entries, role)


def sets_from_csv(path: Path, role: str = FORGET) -> list[PromptSet]:
    """Read a table with a column "prompt" (or "text", "caption").

    Columns "seed" (or "evaluation_seed", "sd_seed"), "id" (or "case_number"), "role", "set", and "truth.<factor>" are
    read if they are there; others are left alone, since published files have many.
    """
    with path.open(encoding="utf-8-sig", newline="") as file:
        reader = csv.DictReader(file, delimiter="\t" if path.suffix.lower() == ".tsv" else ",")
        columns = list(reader.fieldnames or [])
        if not any(name in columns for name in COLUMNS["text"]):
            raise EvaluationError(f"Expected a column {' or '.join(COLUMNS['text'])}, but the columns are {columns}.")
        return _grouped([dict(_plain_columns(line)) for line in reader], role)


def _plain_columns(line: Mapping[str, str]) -> Iterator[tuple[str, Any]]:
    for name, aliases in COLUMNS.items():
        cell = next((line[alias] for alias in aliases if line.get(alias)), None)
        if cell is not None:
            yield name, int(float(cell)) if name == "seed" else cell
    for name in ("role", "set"):
        if line.get(name):
            yield name, line[name]
    truth = {
        name.removeprefix(TRUTH): value for name, value in line.items() if name and name.startswith(TRUTH) and value
    }
    if truth:
        yield "truth", truth


def _grouped(entries: list[dict[str, Any]], role: str) -> list[PromptSet]:
    """Gather prompts of one file into sets by their `set` and `role`."""
    groups: dict[tuple[str, str], list[EvaluationPrompt]] = {}
    for number, entry in enumerate(entries, start=1):
        own_role = str(entry.pop("role", role))
        name = str(entry.pop("set", own_role))
        group = groups.setdefault((name, own_role), [])
        group.append(_prompt(entry, number))
    return [PromptSet(name, own_role, tuple(prompts)) for (name, own_role), prompts in groups.items()]


def _named(name: Any, part: Any) -> Any:
    """Return a set of a mapping by name; a plain list stands for its prompts."""
    if isinstance(part, list):
        return {"name": name, "prompts": part}
    return {"name": name, **part} if isinstance(part, Mapping) else part


def _sets(index: int, entry: Any, folder: Path | None) -> list[PromptSet]:
    if not isinstance(entry, Mapping):
        raise EvaluationError(f"Expected set {index} to be a mapping with `role` and `prompts`, but got {show(entry)}.")
    check_keys(f"set {index}", entry, SET_KEYS)
    name = str(entry.get("name", entry.get("role", index)))
    role = str(entry.get("role", name if name in ROLES else FORGET))
    held_out = bool(entry.get("held_out", True))
    if "loader" in entry:
        set_role = entry.get("role", name if name in ROLES else None)
        return load_prompt_set(str(entry["loader"]), (folder or Path()) / str(entry.get("file", "")), role=set_role)
    if "file" in entry:
        path = (folder or Path()) / str(entry["file"])
        read = sets_from_jsonl if path.suffix.lower() == ".jsonl" else sets_from_csv
        prompts = tuple(prompt for part in read(path, role) for prompt in part.prompts)
    else:
        texts = entry.get("prompts", ())
        if isinstance(texts, (str, Mapping)):
            raise EvaluationError(f"Expected `prompts` of the set {name!r} to be a list, but got {show(texts)}.")
        prompts = tuple(_prompt(text, number) for number, text in enumerate(texts, start=1))
    return [PromptSet(name, role, prompts, held_out, str(entry.get("source", "")))]


def _prompt(entry: Any, number: int) -> EvaluationPrompt:
    """Make a prompt of a text or a mapping; it is named by its number unless it has an id."""
    if isinstance(entry, str):
        return EvaluationPrompt(entry, f"{number:04d}")
    if not isinstance(entry, Mapping):
        raise EvaluationError(f"Expected prompt {number} to be a text or a mapping, but got {show(entry)}.")
    check_keys(f"prompt {number}", entry, PROMPT_KEYS)
    plain = {name: value for name, value in entry.items() if name not in ("prompt", "text", "id")}
    text = entry.get("text", entry.get("prompt", ""))
    return EvaluationPrompt(text, str(entry.get("id", f"{number:04d}")), **plain)


def is_concept_file(path: Path) -> bool:
    """Tell whether a file is one of a concept, which has pairs, and not one of prompts."""
    if not path.is_file():
        return False
    text = path.read_text(encoding="utf-8")
    if path.suffix.lower() == ".jsonl":
        return '"unsafe"' in text
    content = yaml.safe_load(text)
    return isinstance(content, Mapping) and "pairs" in content
