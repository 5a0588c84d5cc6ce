"""The plain values of a concept file: strict YAML and JSONL, and the packs that ship with the package.

Every scalar is text, so that the prompt `no` stays "no" and nothing but texts, lists and mappings can come out of a
file. What the values mean is checked by `Concept.from_dict`.
"""

import json
from collections.abc import Hashable, Sequence
from functools import lru_cache
from importlib import resources
from pathlib import Path
from typing import Any

import yaml

from unlearning_adapters.adapter.missing import why_unreadable
from unlearning_adapters.errors import ConceptError

PACKS = resources.files(__package__) / "packs"
SUFFIXES = (".yaml", ".yml", ".jsonl")
MAX_BYTES = 1_000_000  # a concept holds prompts, and ten thousand of them fit
LINE_KEYS = {
    "neutral": "neutral", "evaluation": "evaluation", "neighbour": "neighbours", "word": "words",
    "neutral_image": "neutral_images",
}  # fmt: skip
PAIR_KEYS = ("unsafe", "safe", "unsafe_image", "safe_image")


class StrictLoader(yaml.BaseLoader):
    """A YAML loader that knows texts, lists and mappings only: no tags, no aliases, no key twice."""

    def compose_node(self, parent: yaml.Node | None, index: int) -> yaml.Node | None:
        """Compose the next node; an alias or a tag is an error."""
        event = self.peek_event()
        if isinstance(event, yaml.AliasEvent) or getattr(event, "tag", None):
            what = "alias" if isinstance(event, yaml.AliasEvent) else f"tag {event.tag!r}"
            problem = f"found the {what}; write the text itself, in quotes if it starts with * or !"
            raise yaml.MarkedYAMLError(problem=problem, problem_mark=event.start_mark)
        return super().compose_node(parent, index)

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        """Construct a mapping; a key that comes twice, or is not a text, is an error."""
        names = set()
        for key, _ in node.value:
            name = key.value if isinstance(key, yaml.ScalarNode) else None
            if name is None or name in names:
                problem = "found a key that is no text" if name is None else f"found the key {name!r} twice"
                raise yaml.MarkedYAMLError(problem=problem, problem_mark=key.start_mark)
            names.add(name)
        return super().construct_mapping(node, deep)


class TextDumper(yaml.SafeDumper):
    """A YAML dumper that escapes what is not printable; PyYAML folds some of it into spaces (U+0085, for one)."""


def _write_text(dumper: yaml.SafeDumper, text: str) -> yaml.Node:
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=None if text.isprintable() else '"')


TextDumper.add_representer(str, _write_text)


def read_values(path: Path) -> Any:
    """Return what a YAML or JSONL file of a concept holds, as texts, lists and mappings.

    Args:
        path: File of at most `MAX_BYTES` bytes with a suffix of `SUFFIXES`.

    Returns:
        For YAML the document; for JSONL a mapping with the lists of a concept.

    Raises:
        ConceptError: The file is missing, too large, or not strict YAML or JSONL; the text names the file and the line.
    """
    if path.suffix.lower() not in SUFFIXES:
        raise ConceptError(f"{path}: expected a .yaml, .yml or .jsonl file, but got the suffix {path.suffix!r}.")
    if reason := why_unreadable(path):
        raise ConceptError(f"{path}: {reason}. Check the path, or use a name of `unlearn concepts`.")
    try:
        with path.open("rb") as file:
            data = file.read(MAX_BYTES + 1)
        text = data.decode("utf-8-sig")
    except OSError as error:
        raise ConceptError(f"{path}: the file cannot be read ({error.strerror}).") from error
    except UnicodeDecodeError as error:
        raise ConceptError(f"{path}: byte {error.start} is not UTF-8. Save the file as UTF-8 text.") from error
    if len(data) > MAX_BYTES:
        size = path.stat().st_size
        raise ConceptError(f"{path}: the file has {size:,} bytes, but at most {MAX_BYTES:,} are read. Shorten it.")
    try:
        return parse_jsonl(text) if path.suffix.lower() == ".jsonl" else parse_yaml(text)
    except ConceptError as error:
        raise ConceptError(f"{path}: {error}") from error


def parse_yaml(text: str) -> Any:
    """Return the one document of a YAML text; an error names the line."""
    try:
        # A subclass of BaseLoader, which is safer than SafeLoader: it has no constructors.
        return yaml.load(text, Loader=StrictLoader)  # noqa: S506
    except RecursionError:
        raise ConceptError("Not a concept: lists or mappings are nested too deeply.") from None
    except yaml.MarkedYAMLError as error:
        mark = error.problem_mark
        where = f"Line {mark.line + 1}, column {mark.column + 1}: " if mark else ""
        raise ConceptError(f"{where}not strict YAML, {error.problem}.") from error
    except yaml.YAMLError as error:
        raise ConceptError(f"Not YAML: {' '.join(str(error).split())}.") from error


def parse_jsonl(text: str) -> dict[str, list[Any]]:
    """Return the lists of a concept from a text with one JSON object per line; an error names the line."""
    values: dict[str, list[Any]] = {"pairs": []}
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            entry = json.loads(line, object_pairs_hook=_strict_object)
        except ConceptError as error:
            raise ConceptError(f"Line {number}: {error}") from None
        except (ValueError, RecursionError) as error:
            raise ConceptError(f"Line {number}: not JSON ({error}). Write one object per line.") from error
        keys = tuple(entry) if isinstance(entry, dict) else ()
        if keys and set(keys) <= set(PAIR_KEYS):
            values["pairs"].append(entry)
        elif len(keys) == 1 and keys[0] in LINE_KEYS:
            values.setdefault(LINE_KEYS[keys[0]], []).append(entry[keys[0]])
        else:
            what = f"the keys {', '.join(keys)}" if keys else "no object with keys"
            raise ConceptError(
                f"Line {number}: expected a pair with `unsafe` and `safe`, or one of {', '.join(LINE_KEYS)}, "
                f"but got {what}."
            )
    return values


def _strict_object(items: list[tuple[str, Any]]) -> dict[str, Any]:
    values = dict(items)
    if len(values) < len(items):
        keys = [key for key, _ in items]
        twice = next(key for key in keys if keys.count(key) > 1)
        raise ConceptError(f"found the key {twice!r} twice. Remove one of them.")
    return values


@lru_cache(maxsize=1)
def pack_names() -> tuple[str, ...]:
    """Return the names of all packs, concepts and neutral sets, sorted."""
    files = (Path(item.name) for item in PACKS.iterdir())
    return tuple(sorted(file.stem for file in files if file.suffix == ".yaml" and not file.stem.startswith("_")))


def neutral_names() -> tuple[str, ...]:
    """Return the names of the shared neutral sets, sorted."""
    return tuple(name for name in pack_names() if f"-{name}".endswith("-neutral"))


def read_pack(name: str) -> Any:
    """Return what the YAML file of a pack holds."""
    return parse_yaml((PACKS / f"{name}.yaml").read_text("utf-8"))


@lru_cache(maxsize=8)
def neutral_prompts(name: str) -> tuple[str, ...]:
    """Return all prompts of a shared neutral set."""
    prompts: Sequence[str] = read_pack(name)["prompts"]
    return tuple(prompts)


def template() -> str:
    """Return the text of the commented template, with CONCEPT_NAME where the name goes."""
    return (PACKS / "_template.yaml").read_text("utf-8")
