"""The header of an adapter file: strict JSON, checked in full before a tensor is read; imports no torch."""

import re
import struct
from codecs import BOM_UTF8
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from types import MappingProxyType
from typing import Any, BinaryIO

from unlearning_adapters.config import MAX_RANK

from .missing import FETCH, POINTER, is_lfs_pointer
from .record import (
    ADDITIVE,
    INFO_KEYS,
    MAX_SITES,
    MIXED,
    SHRINKAGE,
    bad_file,
    canonical_json,
    check_record,
    shorten,
    strict_json,
)

HEADER_KEY = "unlearning_adapter"
WRITES = "unlearning.lora_V."  # start of the names of tensors that no other file has
EXPORT_KEY = "unlearning_export"  # of a plain LoRA that was made of adapters
MAX_FILE_BYTES = 512 * 2**20
MAX_HEADER_BYTES = 8 * 2**20

_ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
_GZIP = b"\x1f\x8b"
_TEXT = re.compile(rb"(\xef\xbb\xbf)?[ -~\t\r\n]{9,}")
_PICKLE = re.compile(rb"PK\x03\x04|\x80[\x01-\x05]|\(dp|\(lp|c[a-z_]+\n")


@dataclass(frozen=True)
class FileHeader:
    """What a valid header says.

    Args:
        info: The fields of `AdapterInfo`.
        edit: "projection", "additive" or "mixed".
        sites: Names of the sites, in the order of the adapter.
        gains: By what sites multiply the strength, for those that do not take it as it is.
        additive: Names of the sites whose directions are additive.
        shrinkage: Of all directions; 0 in files without one.
        shapes: Shape (rows, columns) of each tensor by name.
        rank: Number of rows of every read, zero padding included.
        size: Bytes before the tensor data.
    """

    info: Mapping[str, Any]
    edit: str
    sites: tuple[str, ...]
    gains: Mapping[str, float]
    additive: frozenset[str]
    shrinkage: float
    shapes: Mapping[str, tuple[int, int]]
    rank: int
    size: int

    def describe_site(self, site: str) -> dict[str, Any]:
        """Return a site's name, widths, whether it writes what it reads, and its gain."""
        return {
            "name": site,
            "in_features": self.shapes[read_key(site)][1],
            "out_features": self.shapes[factor_key(site)][0],
            "orthogonal": write_key(site) not in self.shapes,
            "gain": self.gains.get(site, 1.0),
        }


def read_key(site: str) -> str:
    """Name of the tensor of a site's reads, which stock loaders know as `lora_A`."""
    return f"{site}.lora_A.weight"


def factor_key(site: str) -> str:
    """Name of the tensor `-strength * gain * W @ write.T` of a site, which stock loaders know as `lora_B`."""
    return f"{site}.lora_B.weight"


def write_key(site: str) -> str:
    """Name of the tensor of a site's writes; it contains "lora", or stock loaders would refuse the file."""
    return f"{WRITES}{site}"


def encode_header(
    info: Mapping[str, Any],
    edit: str,
    sites: Sequence[str],
    shapes: Mapping[str, tuple[int, int]],
    gains: Mapping[str, float] = MappingProxyType({}),
    additive: Sequence[str] = (),
    shrinkage: float = 0.0,
) -> bytes:
    """Return all bytes before the data of float32 tensors that follow in the order of their names.

    `safetensors.serialize` is not used: it writes the two metadata keys in an order that changes from run to run.
    """
    record = {**info, "strength": float(info["strength"]), "edit": edit, "sites": list(sites)}
    if gains:  # without any, the file is one of the first version
        record["gains"] = {site: float(gain) for site, gain in gains.items()}
    if edit == MIXED:
        record[ADDITIVE] = list(additive)
    if shrinkage:
        record[SHRINKAGE] = float(shrinkage)
    return _encode(HEADER_KEY, record, shapes)


def encode_lora_header(record: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]) -> bytes:
    """Return the same for a plain LoRA, with a record of the adapters that it was made of."""
    return _encode(EXPORT_KEY, record, shapes)


def _encode(key: str, record: Mapping[str, Any], shapes: Mapping[str, tuple[int, int]]) -> bytes:
    entries: dict[str, Any] = {"__metadata__": {"format": "pt", key: canonical_json(record)}}
    begin = 0
    for name in sorted(shapes):
        rows, columns = shapes[name]
        end = begin + _ITEM_BYTES["F32"] * rows * columns
        entries[name] = {"dtype": "F32", "shape": [rows, columns], "data_offsets": [begin, end]}
        begin = end
    text = canonical_json(entries).encode()
    text += b" " * (-len(text) % 8)
    return struct.pack("<Q", len(text)) + text


def read_header(file: BinaryIO, size: int, name: str) -> FileHeader:
    """Read and check everything before the data of a file of `size` bytes; no tensor is read.

    Args:
        file: The file, at its first byte.
        size: Its length in bytes.
        name: What errors call it.

    Raises:
        AdapterFileError: If anything at all is not as docs/format.md says.
    """
    text = _read_text(file, size, name)
    entries = strict_json(text, name, "header")
    record = _metadata(entries, name)
    sites, gains, additive = check_record(record, name)
    shrinkage = float(record.get(SHRINKAGE, 0.0))
    tensors = {key: value for key, value in entries.items() if key != "__metadata__"}
    length = 8 + len(text.encode())
    shapes = _check_layout(tensors, size - length, name)
    rank = _check_sites(shapes, sites, name)
    info = {key: value for key, value in record.items() if key in INFO_KEYS}
    return FileHeader(info, record["edit"], sites, gains, additive, shrinkage, shapes, rank, size=length)


def _read_text(file: BinaryIO, size: int, name: str) -> str:
    if size > MAX_FILE_BYTES:
        raise bad_file(name, f"it has {size:,} bytes, and the limit is {MAX_FILE_BYTES:,}", "Adapters have a few MB.")
    start = file.read(8)
    if len(start) < 8:
        raise bad_file(name, f"it is truncated: it has {len(start)} bytes, and a header starts with 8")
    more = start + file.read(len(POINTER) + 40)
    if is_lfs_pointer(more.removeprefix(BOM_UTF8)):
        raise bad_file(name, "it is a Git LFS pointer, a few lines of text in place of the file", FETCH)
    file.seek(8)
    length = struct.unpack("<Q", start)[0]
    if length > size - 8 and _PICKLE.match(start):
        raise bad_file(
            name,
            "its content is a pickle or a zip archive, which can run code when it is opened",
            "Only safetensors files are read; ask its author for one.",
        )
    if length > size - 8 and _TEXT.fullmatch(more):
        text = " ".join(more.removeprefix(BOM_UTF8).decode("ascii").split())
        raise bad_file(name, f"it is a text, such as a page or a pointer in place of the file: it starts with {text!r}")
    if length > size - 8 and start.startswith(_GZIP):
        raise bad_file(name, "it is compressed by gzip", "Unpack it first.")
    if length > MAX_HEADER_BYTES:
        raise bad_file(name, f"its header claims {length:,} bytes, and the limit is {MAX_HEADER_BYTES:,}")
    if length > size - 8:
        raise bad_file(
            name, f"it is truncated or not safetensors: its header claims {length:,} bytes, and {size - 8:,} follow"
        )
    raw = file.read(length)
    if not raw.startswith(b"{"):
        raise bad_file(name, f"it is not safetensors: its header starts with {shorten(raw[:8])}, not with '{{'")
    try:
        return raw.decode()
    except UnicodeDecodeError as error:
        raise bad_file(name, f"it is not safetensors: its header is not UTF-8 at byte {error.start}") from error


def _metadata(entries: Mapping[str, Any], name: str) -> dict[str, Any]:
    metadata = entries.get("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise bad_file(name, "the `__metadata__` of its header is not an object of texts")
    if HEADER_KEY not in metadata:
        if EXPORT_KEY in metadata:
            raise bad_file(
                name,
                f"it is a LoRA that was exported from {_exported_from(metadata[EXPORT_KEY], name)}, for one base at "
                "fixed strengths",
                "Load it with pipe.load_lora_weights, or load the adapters that it was made of.",
            )
        if any(key.startswith(WRITES) for key in entries):
            raise bad_file(
                name,
                f"it was an unlearning adapter, but its record is gone: its header has no {HEADER_KEY!r}, which tools "
                "drop that write the tensors of a file again",
                "Get the original file, or build the adapter again with build_adapter.",
            )
        lora = sum("lora" in key.lower() for key in entries)
        if lora:
            raise bad_file(
                name,
                f"it is a plain LoRA ({lora} LoRA tensors, no {HEADER_KEY!r} in its header)",
                "Load it with pipe.load_lora_weights.",
            )
        raise bad_file(
            name, f"its header has no {HEADER_KEY!r}", "Build an adapter with build_adapter; other files are not read."
        )
    unknown = sorted(set(metadata) - {"format", HEADER_KEY})
    if unknown:
        reason = " (stock loaders execute it)" if unknown[0] == "lora_adapter_metadata" else ""
        raise bad_file(name, f"unknown key {shorten(unknown[0])} in its metadata{reason}")
    if metadata.get("format") != "pt":
        raise bad_file(name, f"the `format` of its metadata is {shorten(metadata.get('format'))}, not 'pt'")
    return strict_json(metadata[HEADER_KEY], name, "record")


def _exported_from(text: str, name: str) -> str:
    """Return the concepts that the record of an exported LoRA names; nobody has checked it."""
    adapters = strict_json(text, name, "record").get("adapters")
    concepts = (
        [item.get("concept") for item in adapters if isinstance(item, dict)] if isinstance(adapters, list) else []
    )
    return shorten(concepts[0]) if len(concepts) == 1 else shorten(concepts) if concepts else "an adapter"


def _check_layout(tensors: Mapping[str, Any], data_bytes: int, name: str) -> dict[str, tuple[int, int]]:
    """Check each tensor's entry, and that the tensors fill the data without a gap or an overlap."""
    if len(tensors) > 3 * MAX_SITES:
        raise bad_file(name, f"it has {len(tensors):,} tensors, and the limit is {3 * MAX_SITES:,}")
    spans: list[tuple[int, int, str]] = []
    shapes: dict[str, tuple[int, int]] = {}
    for key, entry in tensors.items():
        if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
            raise bad_file(name, f"the entry of the tensor {shorten(key)} is {shorten(entry)}")
        dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
        if dtype not in tuple(_ITEM_BYTES):
            raise bad_file(name, f"the tensor {shorten(key)} has dtype {shorten(dtype)}, not F32, F16 or BF16")
        if not _is_pair(shape, 1):
            raise bad_file(name, f"the tensor {shorten(key)} has shape {shorten(shape)}, not two lengths of at least 1")
        if not _is_pair(offsets, 0) or offsets[1] - offsets[0] != shape[0] * shape[1] * _ITEM_BYTES[dtype]:
            raise bad_file(
                name, f"the tensor {shorten(key)} of shape {shorten(shape)} lies at the bytes {shorten(offsets)}"
            )
        spans.append((offsets[0], offsets[1], key))
        shapes[key] = (shape[0], shape[1])
    end = 0
    for begin, stop, key in sorted(spans):
        if begin != end:
            raise bad_file(
                name, f"the tensor {shorten(key)} starts at byte {begin:,}, and the one before ends at {end:,}"
            )
        end = stop
    if end != data_bytes:
        raise bad_file(name, f"it is truncated or has bytes of no tensor: {data_bytes:,} follow, {end:,} are described")
    return shapes


def _is_pair(value: Any, low: int) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(type(item) is int and item >= low for item in value)


def _check_sites(shapes: Mapping[str, tuple[int, int]], sites: Sequence[str], name: str) -> int:
    """Check that every site has its tensors, in shapes that fit, and that there are no others; return the rank."""
    keys = {key(site) for site in sites for key in (read_key, factor_key, write_key)}
    unknown = next((key for key in shapes if key not in keys), None)
    if unknown is not None:
        raise bad_file(name, f"the tensor {shorten(unknown)} belongs to no site of its record")
    ranks = set()
    for site in sites:
        for key in (read_key(site), factor_key(site)):
            if key not in shapes:
                raise bad_file(name, f"the site {site!r} lacks the tensor {key!r}")
        read, factor, write = shapes[read_key(site)], shapes[factor_key(site)], shapes.get(write_key(site))
        if read[0] > MAX_RANK:
            raise bad_file(name, f"the site {site!r} has rank {read[0]:,}, and the limit is {MAX_RANK}")
        if factor[1] != read[0] or (write is not None and write != read):
            raise bad_file(name, f"the tensors of the site {site!r} do not fit: A {read}, B {factor}, V {write}")
        ranks.add(read[0])
    if len(ranks) > 1:
        raise bad_file(name, f"its sites have the ranks {sorted(ranks)}, and stock loaders need one rank")
    return ranks.pop()
