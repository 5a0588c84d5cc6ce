"""The tab Share: the card as it will look, the files, a line for each engine, and the push."""

import re
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.adapter import save_adapter
from unlearning_adapters.cli.app.bench import Bench
from unlearning_adapters.cli.app.session import Entry, Session
from unlearning_adapters.cli.records.record import FILE
from unlearning_adapters.errors import ConfigError, UnlearningError
from unlearning_adapters.evaluation.reports.page import PAGE
from unlearning_adapters.export.engines import ENGINES
from unlearning_adapters.export.for_engine import export_for_engine
from unlearning_adapters.hub.card import PLACEHOLDER, render_card
from unlearning_adapters.hub.hub import push_adapter

from .plain import concept_files, record_build

REPORT_FILES = ("report.json", PAGE, FILE)
HIDDEN = "***"


def card(entry: Entry, repository: str) -> tuple[str, str]:
    """Return the front matter and the body of the card as a push would write it.

    Args:
        entry: The adapter.
        repository: Where it will be, "org/name"; "" takes a placeholder.
    """
    text = render_card(
        entry.adapter.info,
        repository.strip() or PLACEHOLDER,
        sites=len(entry.adapter.sites),
        gains=tuple(entry.adapter.gains.values()),
        shrinkage=entry.adapter.shrinkage,
        result=measured(entry),
        concept=entry.concept,
    )
    _, front, body = text.split("---\n", 2)
    return front, re.sub(r"<!--.*?-->\n?", "", body, flags=re.DOTALL)


def measured(entry: Entry) -> Mapping[str, Any] | None:
    """Return the report for the card; None if nothing was measured, or the report is void."""
    return entry.report.data if entry.report is not None and entry.report.status == "ok" else None


def files_of(bench: Bench, entry: Entry, session: Session, name: str) -> list[Path]:
    """Write the files of an adapter and return their paths.

    They are the adapter; how to build it again, with its concept if the package does not ship that; and the last
    report, with its page and how to measure again. Nothing is left if one cannot be written.
    """
    folder = session.folder / "files" / (re.sub(r"[^\w.-]+", "-", name).strip("-.") or "adapter")
    try:
        file = save_adapter(entry.adapter, folder)
        files = [file, *record_build(bench, entry, file), *concept_files(entry, folder)]
    except BaseException:
        shutil.rmtree(folder, ignore_errors=True)
        raise
    return [*files, *(entry.report_folder / part for part in REPORT_FILES if entry.report_folder)]


def engine_names() -> list[tuple[str, str]]:
    """Return title and name of each engine."""
    return [(f"{engine.title} {engine.version}", name) for name, engine in ENGINES.items()]


def for_engine(entry: Entry, session: Session, engine: str, strength: float | None = None) -> tuple[list[Path], str]:
    """Write the LoRA of an engine; return its files and the lines that load them there, with the names of the files.

    Args:
        entry: The adapter.
        session: The page.
        engine: Name of the engine.
        strength: Strength that is written; None is the adapter's own.

    Raises:
        EngineError: If the engine would not read all of it.
    """
    folder = session.folder / "export" / re.sub(r"\W+", "-", engine)
    export = export_for_engine(entry.adapter, folder, engine=engine, strengths=strength, force=False)
    files = [Path(lora.file) for lora in export.loras]
    return files, export.instructions.replace(f"{folder}/", "").replace(str(folder), ".")


def push(entry: Entry, repository: str, token: str, private: bool) -> str:
    """Push the adapter with its card; return the URL of the commit.

    The token is given to the Hub's client alone: it is in no result, no error and no file.

    Raises:
        ConfigError: If the repository is no "org/name".
        HubError: If the Hub refuses, or cannot be reached.
    """
    secret = token.strip()
    if not repository.strip():
        raise ConfigError("No repository is named. Give one as org/name.")
    try:
        return push_adapter(
            entry.adapter, repository.strip(), token=secret or None, private=private or None, result=measured(entry)
        )
    except UnlearningError as error:
        text = str(error).replace(secret, HIDDEN) if secret else str(error)
        raise type(error)(text) from None
