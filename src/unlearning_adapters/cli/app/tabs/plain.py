"""The plain command that makes what the page made, and its `reproduce.json`."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.file import FILE_NAME
from unlearning_adapters.cli.app.bench import Bench
from unlearning_adapters.cli.app.session import Entry
from unlearning_adapters.cli.records.record import file_digest, write_record
from unlearning_adapters.concepts.concept import Concept, list_concepts, load_concept, save_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.evaluation.suites.worlds import find_value

CONCEPT = "concept.yaml"
WORD_ARGUMENTS = ("max_sequence_length",)  # what a build of words takes of a call


def build_command(bench: Bench, concept: Concept, settings: Mapping[str, Any]) -> list[str]:
    """Return the words of `unlearn` that build the same adapter.

    Args:
        bench: The pipeline.
        concept: What is forgotten; one that is not shipped is named as the file that `concept_files` writes.
        settings: Fields of `BuildConfig`.
    """
    options = [word for name, value in settings.items() for word in (f"--{name}", str(value))]
    whole = settings.get("scope") == "concept"
    call = {name: value for name, value in bench.raw_call.items() if whole or name in WORD_ARGUMENTS}
    name = concept.name if is_shipped(concept) else CONCEPT
    return ["build", bench.source, name, "-o", "adapter", *options, *_calls(call)]


def eval_command(bench: Bench, entry: Entry, clips: int, detectors: Sequence[str], controls: bool) -> list[str]:
    """Return the words of `unlearn` that measure the same, with the adapter's file in the folder where they are run.

    Args:
        bench: The pipeline.
        entry: The adapter.
        clips: Prompts of each set.
        detectors: Names of detectors.
        controls: Whether the controls run.
    """
    words = ["eval", bench.source, FILE_NAME, "-o", "report", "--clips", str(clips)]
    own = entry.concept is not None and not is_shipped(entry.concept)
    words += ["--suite", CONCEPT] if own and not find_value(entry.adapter.info.concept) else []
    words += [word for name in detectors for word in ("--detector", name)]
    return [*words, *([] if controls else ["--no-controls"]), *_calls(bench.raw_call)]


def _calls(call: Mapping[str, Any]) -> list[str]:
    return [word for name, value in call.items() for word in ("--call", f"{name}={json.dumps(value)}")]


def is_shipped(concept: Concept) -> bool:
    """Whether the package ships this concept, as it is."""
    return concept.name in list_concepts() and load_concept(concept.name) == concept


def concept_files(entry: Entry, folder: Path) -> list[Path]:
    """Write the concept if the package does not ship it; return what was written."""
    if entry.concept is None or is_shipped(entry.concept):
        return []
    return [save_concept(entry.concept, folder / CONCEPT)]


def record_build(bench: Bench, entry: Entry, file: Path) -> list[Path]:
    """Write the record beside an adapter that was built here; return what was written."""
    if entry.concept is None or not entry.command:
        return []
    adapter = entry.adapter
    facts = {"strength": adapter.strength, "rank": adapter.rank, "sites": len(adapter.sites)}
    record = write_record(
        file,
        bench.pipe,
        bench.source,
        prompts={"pairs": [entry.concept.pairs_hash], "neutral": entry.concept.neutral},
        seeds={"build": BuildConfig().seed},
        results={"sha256": file_digest(file), **facts},
        command=entry.command,
    )
    return [record] if record else []
