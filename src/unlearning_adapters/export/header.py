"""The header of any safetensors file: names and shapes of its tensors, and its metadata; imports no torch."""

import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.header import EXPORT_KEY, HEADER_KEY, MAX_HEADER_BYTES
from unlearning_adapters.adapter.record import bad_file, strict_json
from unlearning_adapters.errors import AdapterFileError, AdapterNotFoundError


@dataclass(frozen=True)
class AnyHeader:
    """What the header of a safetensors file says, none of it trusted.

    Args:
        shapes: Shape of each tensor by its name.
        dtypes: Number type of each tensor, as safetensors writes it.
        offsets: First and last byte of each tensor, from the end of the header.
        metadata: Texts by key.
        size: Bytes before the tensor data.
    """

    shapes: Mapping[str, tuple[int, ...]]
    dtypes: Mapping[str, str]
    offsets: Mapping[str, tuple[int, int]]
    metadata: Mapping[str, str]
    size: int

    @property
    def denoiser(self) -> str | None:
        """Class of the denoiser that our own record names, None in the files of others."""
        for key in (EXPORT_KEY, HEADER_KEY):
            if key in self.metadata:
                record = strict_json(self.metadata[key], "the file", "record")
                kinds = record.get("denoisers")
                named = record.get("denoiser") or (next(iter(kinds.values()), "") if isinstance(kinds, dict) else "")
                return named if isinstance(named, str) and named else None
        return None


def read_any_header(path: Path) -> AnyHeader:
    """Read the header of a safetensors file of whatever kind.

    Raises:
        AdapterNotFoundError: If there is no such file.
        AdapterFileError: If it is not safetensors.
    """
    name = str(path)
    if not path.is_file():
        raise AdapterNotFoundError(f"No file at {name!r}. Give a .safetensors file.")
    size = path.stat().st_size
    with path.open("rb") as file:
        start = file.read(8)
        length = struct.unpack("<Q", start)[0] if len(start) == 8 else size
        if not 2 <= length <= min(size - 8, 16 * MAX_HEADER_BYTES):
            raise bad_file(name, f"it is truncated or not safetensors: its header claims {length:,} of {size:,} bytes")
        text = file.read(length)
    try:
        entries = strict_json(text.decode(), name, "header")
    except UnicodeDecodeError as error:
        raise bad_file(name, f"it is not safetensors: its header is not UTF-8 at byte {error.start}") from error
    metadata = entries.pop("__metadata__", None) or {}
    known = {key: _entry(key, value, name) for key, value in entries.items()}
    return AnyHeader(
        {key: entry[0] for key, entry in known.items()},
        {key: entry[1] for key, entry in known.items()},
        {key: entry[2] for key, entry in known.items()},
        {key: value for key, value in metadata.items() if isinstance(value, str)} if isinstance(metadata, dict) else {},
        8 + length,
    )


def _entry(key: str, entry: Any, name: str) -> tuple[tuple[int, ...], str, tuple[int, int]]:
    try:
        begin, end = entry["data_offsets"]
        return tuple(int(length) for length in entry["shape"]), str(entry["dtype"]), (int(begin), int(end))
    except (KeyError, TypeError, ValueError) as error:
        raise bad_file(name, f"the entry of the tensor {key!r} is {entry!r}") from error


__all__ = ["AdapterFileError", "AnyHeader", "read_any_header"]
