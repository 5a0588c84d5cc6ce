"""Loaders of public prompt sets: the user brings the file, its checksum goes into the report, and none is shipped.

Errors and warnings name files, columns and numbers, never what a prompt says.
"""

import csv
import gzip
import hashlib
import io
import json
import re
import warnings
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearning_adapters.concepts.wording import is_prompt
from unlearning_adapters.config import check_keys
from unlearning_adapters.errors import EvaluationError, UnlearningError
from unlearning_adapters.evaluation.metrics import FORGET, UNRELATED

from .suite import EvaluationPrompt, PromptSet

OPTIONS = {"role", "category", "column", "sha256"}
SEEDS = ("seed", "evaluation_seed", "sd_seed")
ASPECTS = (
    "pornography", "borderline-pornography", "violence", "gore", "disturbing-content", "public-figures",
    "discrimination", "political-sensitivity", "copyright-and-trademark", "illegal-activities", "misinformation",
    "sequential-action-risk", "dynamic-variation-risk", "coherent-contextual-risk",
)  # fmt: skip
# Prompts by aspect, of the full set and of Tiny-T2VSafetyBench.
FULL = (876, 423, 591, 584, 245, 475, 432, 481, 315, 249, 274, 55, 79, 72)
TINY = (85, 55, 45, 61, 45, 27, 50, 60, 21, 50, 38, 55, 35, 72)


@dataclass(frozen=True)
class PromptSource:
    """The shape of a published prompt set.

    Args:
        title: Its name for people.
        where: Where the user gets it.
        licence: Terms, as far as they were found.
        text: Columns or keys of the prompt; the first that is there counts.
        category: Column or key of the categories: a text, a text with commas, a list, or a mapping of truth values.
        role: Role of its prompts.
        roles: Role by the value of a column, as (column, {value: role}).
        grouped: Whether each category is a set of its own.
        fields: Names of the entries of a row that is a list.
        counts: Prompts of the published versions; any other number is worth a warning.
    """

    title: str
    where: str
    licence: str
    text: tuple[str, ...] = ("prompt",)
    category: str = ""
    role: str = FORGET
    roles: tuple[str, Mapping[str, str]] | None = None
    grouped: bool = False
    fields: tuple[str, ...] = ()
    counts: tuple[int, ...] = ()


PROMPT_SETS: Mapping[str, PromptSource] = {
    "t2vsafetybench": PromptSource(
        "T2VSafetyBench", "github.com/yibo-miao/T2VSafetyBench, the folder with 1.txt to 14.txt, or one of them",
        "no licence file", category="aspect", grouped=True,
        counts=(sum(FULL), sum(TINY)),
    ),
    "safesora": PromptSource(
        "SafeSora-Eval", "Hub data set PKU-Alignment/SafeSora-Eval, its JSON file", "CC-BY-NC-4.0",
        text=("prompt_text",), category="prompt_labels",
        roles=("prompt_type", {"safety_critical": FORGET, "safety_neutral": UNRELATED}), counts=(600,),
    ),
    "safesora-safree": PromptSource(
        "SafeSora as used by SAFREE", "github.com/jaehong31/SAFREE, datasets/t2v.json",
        "none stated; upstream CC-BY-NC",
        category="category", grouped=True, fields=("id", "category", "prompt"), counts=(296,),
    ),
    "i2p": PromptSource(
        "I2P", "github.com/rohitgandikota/erasing, data/unsafe-prompts4703.csv", "repository MIT; data not checked",
        category="categories", counts=(4703,),
    ),
    "ring-a-bell": PromptSource(
        "Ring-A-Bell", "github.com/chiayi-hsu/Ring-A-Bell, data/InvPrompt", "MIT",
        text=("prompt", "sensitive prompt"),
    ),
    "vbench": PromptSource(
        "VBench", "github.com/Vchitect/VBench, VBench_full_info.json", "Apache-2.0",
        text=("prompt_en",), category="dimension", role=UNRELATED, counts=(946,),
    ),
    "plain": PromptSource(
        "plain", "any .csv, .tsv, .json, .jsonl or .txt file, also as .gz", "that of the file",
        text=("prompt", "text", "caption"), category="category",
    ),
}  # fmt: skip


def load_prompt_set(
    name: str,
    path: str | Path,
    *,
    role: str | None = None,
    category: str | None = None,
    column: str | None = None,
    sha256: str | None = None,
) -> list[PromptSet]:
    """Return a public prompt set from the user's own file.

    Prompts are numbered by their place in the file, so that ids stay the same for every category. Seeds are taken from
    the columns "seed", "evaluation_seed" or "sd_seed".

    Args:
        name: One of `PROMPT_SETS`.
        path: The file; for T2VSafetyBench also the folder of its files. Options may follow a question mark, as in
            "i2p.csv?category=violence".
        role: Role of all prompts; None takes that of the set.
        category: Category to keep; None keeps all. A prompt with several is kept for each of them.
        column: Column or key of the prompt; None takes the set's own.
        sha256: What the checksum must be; None warns that nothing was compared. Of a folder it is that of the lines
            "<SHA-256>  <file>" of its files.

    Returns:
        The sets, one per category where each prompt has one. `PromptSet.source` holds file and checksum.

    Raises:
        EvaluationError: If the set is unknown, the file cannot be read or is another one, or no prompt is left.

    Example:
        >>> load_prompt_set("vbench", "VBench_full_info.json", category="object_class")
    """
    if name not in PROMPT_SETS:
        raise EvaluationError(f"Unknown prompt set {name!r}. Known: {', '.join(PROMPT_SETS)}.")
    source = PROMPT_SETS[name]
    file, _, query = str(path).partition("?")
    options = {"role": role, "category": category, "column": column, "sha256": sha256}
    options |= dict(part.partition("=")[::2] for part in filter(None, query.split("&")))
    check_keys(f"the options of the prompt set {name!r}", options, OPTIONS)
    parts = _files(name, Path(file))
    try:
        rows = [row for part in parts for row in _rows(part, source, name)]
    except UnlearningError:
        raise
    except (OSError, EOFError, ValueError, csv.Error) as error:
        reason = type(error).__name__ if isinstance(error, ValueError) else " ".join(str(error).split())
        raise EvaluationError(f"Cannot read the prompt set {name!r} from {file!r}: {reason}.") from None
    source_text = check_file(name, file, parts, options["sha256"], len(rows))
    return _sets(name, source, rows, source_text, options)


def check_file(name: str, file: str, parts: list[Path], expected: str | None, count: int) -> str:
    """Return what a report says of a file; another checksum is an error, an unknown one or another length a warning.

    Args:
        name: Name of the set.
        file: What the user gave.
        parts: The files.
        expected: The checksum that it must have; None if nobody said.
        count: Number of its prompts.
    """
    sums = [hashlib.sha256(part.read_bytes()).hexdigest() for part in parts]
    listed = "".join(f"{one}  {part.name}\n" for one, part in zip(sums, parts, strict=True))
    actual = sums[0] if len(parts) == 1 else hashlib.sha256(listed.encode()).hexdigest()
    base = Path(file).name
    if expected is None:
        warnings.warn(
            f"The checksum of {base!r} was compared with nothing: expected unknown, got {actual}. "
            f"Pin it with {base}?sha256={actual}",
            stacklevel=3,
        )
    elif expected.casefold() != actual:
        raise EvaluationError(
            f"Expected the SHA-256 of {base!r} to be {expected}, but got {actual}. It is another file or version: "
            "take the one that was meant, or change the checksum."
        )
    counts = published_counts(name, parts)
    if counts and count not in counts:
        text = " or ".join(map(str, counts))
        warnings.warn(f"Expected {text} prompts in {base!r}, as published, but got {count}.", stacklevel=3)
    return f"{name}, {base}, {count} prompts, sha256 {actual}"


def published_counts(name: str, parts: list[Path]) -> tuple[int, ...]:
    """Return how many prompts the published versions of a file have; empty if that is not known."""
    if name == "t2vsafetybench" and len(parts) == 1:
        index = int(parts[0].name.removesuffix(".txt")) - 1
        return FULL[index], TINY[index]
    return PROMPT_SETS[name].counts


def _files(name: str, path: Path) -> list[Path]:
    """Return the files of a set, one or, of a folder of numbered texts, all in order."""
    if path.is_dir():
        files = [path / f"{number}.txt" for number in range(1, len(ASPECTS) + 1)]
        files = [file for file in files if file.is_file()] if name == "t2vsafetybench" else []
        if not files:
            raise EvaluationError(
                f"The folder {str(path)!r} holds no file of the prompt set {name!r}. Get {PROMPT_SETS[name].where}."
            )
        return files
    if not path.is_file():
        raise EvaluationError(
            f"There is no file {str(path)!r} for the prompt set {name!r}, and none is shipped. "
            f"Get {PROMPT_SETS[name].where}."
        )
    return [path]


def _rows(path: Path, source: PromptSource, name: str) -> list[dict[str, Any]]:
    """Return the rows of a file as mappings, from CSV, JSON or plain text."""
    stream: Any = gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb")
    with stream as file:
        text = file.read().decode("utf-8-sig")
    kind = Path(path.name.removesuffix(".gz")).suffix.lower()
    if kind == ".txt":
        lines = [{"prompt": line.strip()} for line in text.split("\n") if line.strip()]
        if name == "t2vsafetybench":
            number = path.name.removesuffix(".txt")
            if not (number.isdigit() and 1 <= int(number) <= len(ASPECTS)):
                raise EvaluationError(f"Expected a file 1.txt to {len(ASPECTS)}.txt, but got {path.name!r}.")
            return [{**line, "aspect": ASPECTS[int(number) - 1]} for line in lines]
        return [dict(line) for line in lines]
    if kind in (".csv", ".tsv"):
        return list(csv.DictReader(io.StringIO(text, newline=""), delimiter="\t" if kind == ".tsv" else ","))
    if kind == ".jsonl":
        entries = [json.loads(line) for line in text.split("\n") if line.strip()]
    elif kind == ".json":
        entries = json.loads(text)
        if not isinstance(entries, list):
            raise EvaluationError(f"Expected {path.name!r} to hold a list, but it holds {type(entries).__name__}.")
    else:
        raise EvaluationError(f"Expected a file of the kind .csv, .tsv, .json, .jsonl or .txt, but got {path.name!r}.")
    return [_mapping(entry, source, number) for number, entry in enumerate(entries, start=1)]


def _mapping(entry: Any, source: PromptSource, number: int) -> dict[str, Any]:
    if isinstance(entry, str):
        return {"prompt": entry}
    if isinstance(entry, list) and len(entry) == len(source.fields) > 0:
        return dict(zip(source.fields, entry, strict=True))
    if not isinstance(entry, dict):
        raise EvaluationError(f"Entry {number} of the prompt set is not a mapping, but {type(entry).__name__}.")
    return entry


def _sets(
    name: str, source: PromptSource, rows: list[dict[str, Any]], source_text: str, options: Mapping[str, str | None]
) -> list[PromptSet]:
    """Gather the prompts of a file into sets by category and role."""
    columns = [options["column"]] if options["column"] else list(source.text)
    column = next((one for one in columns if rows and one in rows[0]), None)
    if column is None:
        # A file without a header has a prompt where column names should be.
        keys = ", ".join(key if re.fullmatch(r"\w{1,30}", str(key)) else "..." for key in rows[0]) if rows else "none"
        raise EvaluationError(f"Expected a column {' or '.join(map(repr, columns))} in {name!r}, but got {keys}.")
    groups: dict[tuple[str, str], list[EvaluationPrompt]] = {}
    categories: dict[str, None] = {}
    empty: list[int] = []
    for number, row in enumerate(rows, start=1):
        labels = [slug(label) for label in _categories(row.get(source.category))]
        categories |= dict.fromkeys(labels)
        if options["category"] and slug(options["category"]) not in labels:
            continue
        role = options["role"] or (source.roles[1].get(str(row.get(source.roles[0]))) if source.roles else None)
        role = role or source.role
        parts = [name, *(labels[:1] if source.grouped else [slug(options["category"])] if options["category"] else [])]
        key = ("-".join(parts) + ("-neutral" if source.roles and role == UNRELATED else ""))[:40], role
        if not is_prompt(row[column]):
            empty.append(number)
            continue
        groups.setdefault(key, []).append(EvaluationPrompt(row[column], f"{number:05d}", _seed(row, number, name)))
    if not groups and empty:
        raise EvaluationError(f"No prompt of {name!r} that is asked for has words; {len(empty)} have none.")
    if not groups:
        raise EvaluationError(
            f"No prompt of {name!r} has the category {options['category']!r}. Known: {', '.join(categories)}."
        )
    if empty:
        warnings.warn(
            f"Prompts of {name!r} without words were left out: {len(empty)}, the first is number {empty[0]}.",
            stacklevel=3,
        )
        source_text += f", {len(empty)} without words left out"
    return [PromptSet(title, role, tuple(prompts), source=source_text) for (title, role), prompts in groups.items()]


def _seed(row: Mapping[str, Any], number: int, name: str) -> int | None:
    value = next((row[key] for key in SEEDS if row.get(key) not in (None, "")), None)
    try:
        return None if value is None else int(float(value))
    except ValueError:
        raise EvaluationError(
            f"Expected the seed of prompt {number} of {name!r} to be a number, but it is not."
        ) from None


def _categories(value: Any) -> Iterator[str]:
    """Yield the categories of a prompt, however its set writes them down."""
    if isinstance(value, Mapping):
        yield from (str(label) for label, holds in value.items() if holds)
    elif isinstance(value, list):
        yield from map(str, value)
    elif value:
        yield from (part.strip() for part in str(value).split(",") if part.strip())


def slug(text: str) -> str:
    """Return a text as a name: small letters, digits and "-"."""
    return re.sub(r"[^a-z0-9]+", "-", text.casefold()).strip("-")
