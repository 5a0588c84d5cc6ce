"""Adapters with planted directions, and files that are wrong in exactly one way."""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.adapter.adapter import UnlearningAdapter, save_adapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.adapter.file import FILE_NAME

SITE = "transformer.blocks.0.attn2.to_k"
OTHER = "transformer.blocks.0.attn2.to_v"
INFO = {
    "concept": "red",
    "method": "ridge",
    "strength": 1.25,
    "settings": {"rank": 1, "sites": "text", "blocks": None, "pairs": [1, 2]},
    "base_model": "org/base",
    "denoisers": {"transformer": "WanTransformer3DModel"},
}


def planted_direction(rank: int, in_features: int, *, oblique: bool, seed: int = 0) -> Direction:
    """A direction with `read @ write.T` the identity; oblique ones also write what they do not read."""
    maker = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(in_features, in_features, generator=maker, dtype=torch.float64))[0]
    read = basis[:rank]
    if not oblique:
        return Direction(read.float(), read.float())
    return Direction(read.float(), (read + 0.5 * basis[rank : 2 * rank]).float())


def planted_adapter(
    weights: Mapping[str, Tensor], *, rank: int = 1, oblique: bool = True, shared: bool = False, **info: Any
) -> UnlearningAdapter:
    """An adapter with the exact stock factors for these weights; `shared` gives all sites one direction."""
    record = AdapterInfo(**{**INFO, **info})
    directions, factors = {}, {}
    for seed, (site, weight) in enumerate(weights.items()):
        if shared and directions:
            directions[site] = next(iter(directions.values()))
        else:
            directions[site] = planted_direction(rank, weight.shape[1], oblique=oblique, seed=seed)
        factors[site] = (-record.strength * weight.double() @ directions[site].write.double().T).float()
    return UnlearningAdapter(record, directions, factors)


def small_weights(*sites: str, in_features: int = 8, out_features: int = 6) -> dict[str, Tensor]:
    """A seeded weight per site."""
    maker = torch.Generator().manual_seed(7)
    return {site: torch.randn(out_features, in_features, generator=maker) for site in sites or (SITE, OTHER)}


def file_bytes(adapter: UnlearningAdapter, folder: Path) -> bytes:
    """The bytes of an adapter's file."""
    return save_adapter(adapter, folder / "whole").read_bytes()


def split(blob: bytes) -> tuple[dict[str, Any], bytes]:
    """The header of a file and its data."""
    length = struct.unpack("<Q", blob[:8])[0]
    return json.loads(blob[8 : 8 + length]), blob[8 + length :]


def join(header: dict[str, Any] | str | bytes, data: bytes = b"") -> bytes:
    """A file of any header, well-formed or not, and any data."""
    if isinstance(header, dict):
        header = json.dumps(header)
    raw = header.encode() if isinstance(header, str) else header
    return struct.pack("<Q", len(raw)) + raw + data


def with_header(blob: bytes, change: Callable[[dict[str, Any]], object]) -> bytes:
    """The file with its header changed in place by a function."""
    header, data = split(blob)
    change(header)
    return join(header, data)


def with_record(blob: bytes, **changes: Any) -> bytes:
    """The file with some keys of its record replaced."""
    header, data = split(blob)
    record = json.loads(header["__metadata__"]["unlearning_adapter"])
    header["__metadata__"]["unlearning_adapter"] = json.dumps({**record, **changes})
    return join(header, data)


def with_values(blob: bytes, tensor: str, change: Callable[[Tensor], object]) -> bytes:
    """The file with the values of one float32 tensor changed in place by a function."""
    header, data = split(blob)
    begin, end = header[tensor]["data_offsets"]
    values = torch.frombuffer(bytearray(data[begin:end]), dtype=torch.float32).reshape(header[tensor]["shape"])
    change(values)
    return blob[: len(blob) - len(data) + begin] + values.numpy().tobytes() + data[end:]


def written(folder: Path, blob: bytes, name: str = FILE_NAME) -> Path:
    """Write bytes to a file of a folder."""
    path = folder / name
    path.write_bytes(blob)
    return path
