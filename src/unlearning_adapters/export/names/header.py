"""The header of any safetensors file: names and shapes of its tensors, and its metadata; imports no torch."""

import json
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.header import EXPORT_KEY, HEADER_KEY
from unlearning_adapters.errors import AdapterFileError, AdapterNotFoundError

MAX_BYTES = 100_000_000  # of a header, as in the safetensors library


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
                record = _json(self.metadata[key])
                kinds = record.get("denoisers")
                name = record.get("denoiser") or (next(iter(kinds.values()), "") if isinstance(kinds, dict) else "")
                return name if isinstance(name, str) and name else None
        return None


def read_any_header(path: Path) -> AnyHeader:
    """Read the header of any safetensors file.

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
        if not 2 <= length <= min(size - 8, MAX_BYTES):
            raise _no_safetensors(name, f"it is cut off, or its header claims {length:,} of {size:,} bytes")
        entries = _json(file.read(length))
    metadata = entries.pop("__metadata__", None)
    texts = metadata if isinstance(metadata, dict) else {}
    entries_of_tensors = {key: _entry(key, value, name) for key, value in entries.items()}
    if not entries_of_tensors:
        raise _no_safetensors(name, "its header names no tensor")
    return AnyHeader(
        {key: entry[0] for key, entry in entries_of_tensors.items()},
        {key: entry[1] for key, entry in entries_of_tensors.items()},
        {key: entry[2] for key, entry in entries_of_tensors.items()},
        {key: value for key, value in texts.items() if isinstance(value, str)},
        8 + length,
    )


def _json(text: bytes | str) -> dict[str, Any]:
    """Return a JSON object, or nothing where the text is none."""
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):
        return {}
    return value if isinstance(value, dict) else {}


def _entry(key: str, entry: Any, name: str) -> tuple[tuple[int, ...], str, tuple[int, int]]:
    try:
        begin, end = entry["data_offsets"]
        return tuple(int(length) for length in entry["shape"]), str(entry["dtype"]), (int(begin), int(end))
    except (KeyError, TypeError, ValueError) as error:
        raise _no_safetensors(name, f"the entry of its tensor {key!r} is malformed") from error


def _no_safetensors(name: str, reason: str) -> AdapterFileError:
    return AdapterFileError(f"{name!r} is not a safetensors file: {reason}. Download it again, or give another file.")
