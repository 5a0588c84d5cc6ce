"""The rows of a run on disk: one line of JSON per clip, appended as it is made, so that a kill loses one clip.

Each process appends to a file of its own, `rows-<process>.jsonl`; reading merges them by (arm, set, prompt, seed).
Clips are stored as arrays, without loss, before any encoding.
"""

import json
import os
import zipfile
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from unlearning_adapters.adapter.draft import draft_of, write_whole
from unlearning_adapters.clips import Clip, check_clip
from unlearning_adapters.config import check_keys
from unlearning_adapters.errors import EvaluationError

Key = tuple[str, str, str, int]
BROKEN = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)  # of a clip


@dataclass(frozen=True)
class Row:
    """What is known of one clip.

    Args:
        arm: Name of the arm.
        set: Name of the prompt set.
        prompt: Id of the prompt in it.
        seed: Seed of the noise.
        conditions: Hash of all that decides what is generated; rows of different conditions are never merged.
        clip: Path of the clip in the run's folder; "" if there is none.
        shape: Frames, height and width of the clip.
        seconds: Time that generating took.
        found: What each detector saw, by its name; {"error": text} if it failed.
        drift: How far the clip is from that of the base: "difference" (mean absolute, 0 to 1), "psnr" in decibels (None
            if they are equal), "ssim" (None without torchmetrics; rows of before it was taken have none) and
            "identical".
        error: Why there is no clip; "" if there is one.
    """

    arm: str
    set: str
    prompt: str
    seed: int
    conditions: str
    clip: str = ""
    shape: tuple[int, ...] = ()
    seconds: float = 0.0
    found: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    drift: Mapping[str, Any] = field(default_factory=dict)
    error: str = ""

    @property
    def key(self) -> Key:
        """What tells clips of a run apart."""
        return self.arm, self.set, self.prompt, self.seed

    def to_json(self) -> str:
        """Return the row as one line."""
        return json.dumps({name: value for name, value in asdict(self).items() if value or name == "seed"})

    @classmethod
    def from_json(cls, line: str) -> "Row":
        """Read one line; an unknown key is an error."""
        values = json.loads(line)
        check_keys("a row", values, set(cls.__dataclass_fields__))
        return cls(**{**values, "shape": tuple(values.get("shape", ()))})


class Store:
    """The folder of a run.

    Args:
        folder: Where rows and clips are; made if it is missing.
        process: Index of this process, which appends to a file of its own.
    """

    def __init__(self, folder: str | Path, process: int = 0) -> None:
        self.folder = Path(folder)
        self.process = process
        self._whole = False
        self._base: dict[Key, Row] | None = None
        try:
            (self.folder / "clips").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            reason = error.strerror or str(error)
            raise EvaluationError(f"Cannot make the folder {str(folder)!r}: {reason}. Choose another one.") from error

    @property
    def file(self) -> Path:
        """The file to which this process appends."""
        return self.folder / f"rows-{self.process}.jsonl"

    def append(self, row: Row) -> None:
        """Write a row and make sure that it is on disk."""
        if not self._whole:
            cut_torn_line(self.file)
            self._whole = True
        with self.file.open("ab") as file:
            file.write(row.to_json().encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())

    def rows(self) -> dict[Key, Row]:
        """Return all rows of all processes; of two with one key the one without an error, or the last."""
        merged: dict[Key, Row] = {}
        for path in sorted(self.folder.glob("rows-*.jsonl")):
            for row in read_rows(path):
                if row.key not in merged or not row.error or merged[row.key].error:
                    merged[row.key] = row
        return merged

    def rows_of_base(self) -> dict[Key, Row]:
        """Return the rows of the base, read once: that arm is complete before another begins."""
        if self._base is None:
            self._base = {key: row for key, row in self.rows().items() if key[0] == "base"}
        return self._base

    def replace(self, rows: Iterable[Row]) -> None:
        """Write all rows anew as one file, at once, and remove those of the other processes."""
        target = self.folder / "rows-0.jsonl"
        write_whole(target, "".join(row.to_json() + "\n" for row in rows).encode())
        for path in self.folder.glob("rows-*.jsonl"):
            if path != target:
                path.unlink()

    def save_clip(self, key: Key, clip: Clip) -> str:
        """Write a clip without loss and return its path in the folder; it is complete or not there."""
        arm, name, prompt, seed = key
        path = self.folder / "clips" / arm / name / f"{prompt}-{seed}.npz"
        with draft_of(path) as draft, draft.open("wb") as file:
            np.savez_compressed(file, clip=check_clip(clip))
        return path.relative_to(self.folder).as_posix()

    def load_clip(self, row: Row) -> Clip:
        """Return the clip of a row.

        Raises:
            EvaluationError: If there is none, or it cannot be read.
        """
        path = self.folder / row.clip
        try:
            if not row.clip:
                raise FileNotFoundError("the row has none")
            with np.load(path, allow_pickle=False) as archive:
                return check_clip(archive["clip"])
        except BROKEN as error:
            raise EvaluationError(
                f"Cannot read the clip of {'/'.join(map(str, row.key))}: {' '.join(str(error).split())}. Remove "
                "its row and its file to make it anew."
            ) from error


def read_rows(path: Path) -> Iterator[Row]:
    """Yield the rows of a file; a last line that a kill cut short is left out.

    Raises:
        EvaluationError: If another line is no row.
    """
    try:
        whole = path.read_bytes().decode("utf-8", "replace").split("\n")
    except OSError as error:
        raise EvaluationError(
            f"Cannot read {path.name}, the rows of an evaluation: {error.strerror}. Move it away."
        ) from error
    for number, line in enumerate(whole[:-1], start=1):  # behind the last line feed is nothing, or a torn line
        try:
            yield Row.from_json(line)
        except (ValueError, TypeError, AttributeError) as error:
            raise EvaluationError(
                f"Line {number} of {path.name} is not a row of an evaluation: {error}. Remove the line to make it anew."
            ) from error


def cut_torn_line(path: Path) -> None:
    """Cut off a last line without a line feed, which a kill left behind."""
    data = path.read_bytes() if path.exists() else b""
    if data and not data.endswith(b"\n"):
        with path.open("rb+") as file:
            file.truncate(data.rfind(b"\n") + 1)
