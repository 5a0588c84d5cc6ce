"""The file of results: cells by part and name, written one by one, so that a run that stops goes on where it was."""

import hashlib
import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.draft import write_whole

Cell = dict[str, Any]


class Store:
    """Results in a JSON file.

    Args:
        path: The file; None keeps results in memory.
        settings: What all cells share; a file of other settings is refused.
        fresh: Whether to start anew where the file has other settings.
    """

    def __init__(self, path: Path | None, settings: Mapping[str, Any], fresh: bool = False) -> None:
        self.path = path
        self.data: dict[str, Any] = {"settings": dict(settings), "parts": {}}
        if path is None or not path.is_file():
            return
        held = json.loads(path.read_text(encoding="utf-8"))
        other = differences(held.get("settings", {}), settings)
        if not other:
            self.data = held
        elif not fresh:
            raise SystemExit(
                f"{path} holds results of other settings: {'; '.join(other)}. Give these, another --output, or --fresh "
                "to measure all anew in its place."
            )

    def part(self, name: str) -> dict[str, Cell]:
        """Return the cells of a part."""
        cells: dict[str, Cell] = self.data["parts"].setdefault(name, {})
        return cells

    def cell(self, part: str, name: str, make: Callable[[], Cell]) -> Cell:
        """Return a cell: the one that is there, or a new one, which is written at once."""
        if name not in self.part(part):
            self.put(part, name, make())
        return self.part(part)[name]

    def put(self, part: str, name: str, cell: Cell) -> None:
        """Take a cell, in place of what was there, and write the file at once."""
        self.part(part)[name] = cell
        self.write()

    def join(self, path: Path) -> None:
        """Take the cells of another file of the same settings, of a run beside this one, that are not here."""
        other = json.loads(path.read_text(encoding="utf-8"))
        if found := differences(other["settings"], self.data["settings"]):
            raise SystemExit(f"{path} holds results of other settings: {'; '.join(found)}. It cannot be joined.")
        for part, cells in other["parts"].items():
            mine = self.part(part)
            mine.update({name: cell for name, cell in cells.items() if name not in mine})
        self.write()

    def write(self) -> None:
        """Write the file whole."""
        if self.path is not None:
            write_whole(self.path, (json.dumps(self.data, indent=1) + "\n").encode())


def differences(held: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return what two settings differ in, in words; notes for people do not count."""
    names = [name for name in dict.fromkeys([*held, *wanted]) if name != "label"]
    return [
        f"{name} is {held.get(name)!r} there and {wanted.get(name)!r} here"
        for name in names
        if held.get(name) != wanted.get(name)
    ]


def digest_of(folder: Path) -> str:
    """Return what tells one model from another: the start of the SHA-256 of its weights."""
    digest = hashlib.sha256()
    for path in sorted(folder.glob("*/*.safetensors")):
        if path.parent.name in ("transformer", "vae"):
            digest.update(path.read_bytes())
    return digest.hexdigest()[:16]
