"""What one open page has: its adapters, its files and its running job. Two pages know nothing of each other."""

import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.errors import ConfigError

from .jobs import Job

MOST = 6  # adapters that Compare shows
PATIENCE = 10  # seconds that a page waits for its job when it is closed


@dataclass
class Entry:
    """An adapter of a page.

    Args:
        adapter: The adapter.
        concept: What it was built from here; None if it came from a file.
        warnings: What the build warned of.
        report: What was measured of it last; None if nothing was.
        command: Words of `unlearn` that build it again; none if it came from a file.
        report_folder: Folder of the last report; None if there is none.
    """

    adapter: UnlearningAdapter
    concept: Concept | None = None
    warnings: list[str] = field(default_factory=list)
    report: Any = None
    command: list[str] = field(default_factory=list)
    report_folder: Path | None = None


class Session:
    """An open page.

    Args:
        sources: Adapter files that it starts with.
    """

    def __init__(self, sources: tuple[str, ...] = ()) -> None:
        self.folder = Path(tempfile.mkdtemp(prefix="unlearn-app-"))
        self.entries: dict[str, Entry] = {}
        self.job: Job | None = None
        self.shown = 0  # adapters that the page has rows for
        self.built = 0  # adapters that came, those that left included
        for source in sources:
            self.add(Entry(load_adapter(source)))

    def add(self, entry: Entry) -> str:
        """Keep an adapter under its concept's name, numbered if that is taken; return the name.

        Raises:
            ConfigError: If there are `MOST` already.
        """
        if len(self.entries) >= MOST:
            raise ConfigError(f"This page holds {MOST} adapters, which is the most. Take one off, or open another tab.")
        stem = name = entry.adapter.info.concept
        number = 2
        while name in self.entries:
            name, number = f"{stem} ({number})", number + 1
        self.entries[name] = entry
        self.built += 1
        return name

    def entry(self, name: str | None) -> Entry:
        """Return an adapter of this page.

        Raises:
            ConfigError: If there is none of this name.
        """
        if not name or name not in self.entries:
            raise ConfigError("There is no adapter yet. Build one in the tab Forget, or open a file in Compare.")
        return self.entries[name]

    def start(self, work: Callable[[Job], Any], text: str, over: str = "") -> Job:
        """Start a job.

        Args:
            work: What it does.
            text: The same for people.
            over: Text of a job that may run and is then stopped, such as clips at a strength that is no longer asked.

        Raises:
            ConfigError: If another one is running.
        """
        if self.job and self.job.text == over:
            self.job.replaced = True
            self.job.stop()
        elif self.job and not self.job.wait(0):
            raise ConfigError(f"Still {self.job.text}. Wait for it, or press Stop.")
        self.job = Job(work, text)
        return self.job

    def stop(self) -> None:
        """End the running job, if there is one."""
        if self.job:
            self.job.stop()

    def close(self) -> None:
        """End the job and remove all files, also those that the job writes until its next step."""
        self.stop()
        if self.job:
            self.job.wait(PATIENCE)
        shutil.rmtree(self.folder, ignore_errors=True)


class Sessions:
    """All open pages, by the key that the browser's connection has."""

    def __init__(self, sources: tuple[str, ...] = ()) -> None:
        self._sources, self._open = sources, dict[str, Session]()
        self._lock = threading.Lock()

    def of(self, key: str) -> Session:
        """Return the page of a key; a new one is opened."""
        with self._lock:
            if key not in self._open:
                self._open[key] = Session(self._sources)
            return self._open[key]

    def close(self, key: str) -> None:
        """Close the page of a key, if it is open."""
        with self._lock:
            session = self._open.pop(key, None)
        if session:
            session.close()

    def close_all(self) -> None:
        """Close all pages."""
        for key in list(self._open):
            self.close(key)
