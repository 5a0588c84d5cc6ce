"""A run of many files: the target, the counts, and the files that showed a defect."""

import hashlib
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path

from .seeds import live_pipeline, valid_files
from .target import DefectError, Target
from .watch import Watch, limit_address_space

EVERY = 5000  # files between two reports


class Session:
    """A live pipeline, the valid files, and what came of every changed one.

    Args:
        folder: An empty folder to write to.
        kept: Where files that show a defect are kept; made if there is one.
        limited: Whether this process may be given its memory limit, which stays.
        seconds: After how long to stop.
    """

    def __init__(self, folder: Path, kept: Path, *, limited: bool = True, seconds: float = float("inf")) -> None:
        pipe = live_pipeline()
        self.seeds = valid_files(pipe, folder)
        self.watch = Watch(folder)
        self.target = Target(pipe, folder, self.watch)
        self.outcomes: Counter[str] = Counter()
        self.defects: list[dict[str, str]] = []
        self.kept = kept
        self.report: Callable[[], None] = lambda: None  # called now and then, for runs that are cut short
        for seed in self.seeds:  # also imports all that is imported late
            self.try_file(seed)
        if self.defects:
            raise DefectError(f"A valid file shows a defect: {self.defects}")
        self.outcomes.clear()
        self.start = time.perf_counter()
        self.end = self.start + seconds
        if limited:
            limit_address_space()

    @property
    def count(self) -> int:
        """Number of files so far."""
        return sum(self.outcomes.values()) + len(self.defects)

    @property
    def over(self) -> bool:
        """Whether the time is over."""
        return time.perf_counter() > self.end

    def try_file(self, blob: bytes) -> None:
        """Try one file, and count what came of it."""
        try:
            self.outcomes[self.target.run(blob)] += 1
            if self.count % EVERY == 0:
                self.report()
        except DefectError as error:
            name = hashlib.sha256(blob).hexdigest()[:16] + ".safetensors"
            self.kept.mkdir(parents=True, exist_ok=True)
            (self.kept / name).write_bytes(blob)
            self.defects.append({"file": name, "what": str(error)})
