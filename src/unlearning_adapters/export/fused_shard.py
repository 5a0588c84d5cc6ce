"""One safetensors file with edits in some of its weights: written and compared tensor by tensor."""

import hashlib
import os
from collections.abc import Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor, nn

from unlearning_adapters.errors import FuseError
from unlearning_adapters.runtime.fusing.fuse import fuse_edit
from unlearning_adapters.runtime.joint.joint_edit import StackedEdit, weight_factor

from .names.header import AnyHeader, read_any_header

ShardEdit = Mapping[str, StackedEdit]  # the edit of a weight by the name of its tensor

CHUNK = 2**22  # bytes that are copied at once
ROWS = 2**22  # elements that are compared at once
DTYPES = {"F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F64": torch.float64}
# One unit in the last place of the largest number of a weight, and what float32 sums add.
ROUNDING = {torch.float64: 1e-6, torch.float32: 2e-6, torch.float16: 2e-3, torch.bfloat16: 1.6e-2}


def copy_file(source: Path, target: Path) -> None:
    """Copy a file, whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.draft")
    with source.open("rb") as reader, draft.open("wb") as writer:
        while chunk := reader.read(CHUNK):
            writer.write(chunk)
        _flush(writer)
    draft.replace(target)


def fuse_shard(source: Path, target: Path, edits: ShardEdit) -> dict[str, str]:
    """Write a file with its edits, whole or not at all: the header and all other tensors are the same bytes.

    Args:
        source: A safetensors file.
        target: Where the edited one goes.
        edits: The edit of each weight in it that has one.

    Returns:
        SHA-256 of each tensor as it was meant to be written.

    Raises:
        FuseError: If a weight is quantised, or not finite.
    """
    header = read_any_header(source)
    target.parent.mkdir(parents=True, exist_ok=True)
    draft = target.with_name(f".{target.name}.draft")
    digests: dict[str, str] = {}
    with source.open("rb") as reader, draft.open("wb") as writer:
        writer.write(reader.read(header.size))
        for name, (begin, end) in sorted(header.offsets.items(), key=lambda item: item[1]):
            reader.seek(header.size + begin)
            writer.seek(header.size + begin)
            if name in edits:
                weight = _fused(_tensor(reader, header, name), edits[name], name)
                data = weight.view(torch.uint8).numpy().tobytes()
                writer.write(data)
                digests[name] = hashlib.sha256(data).hexdigest()
            else:
                digests[name] = _copy(reader, writer, end - begin)
        _flush(writer)
    draft.replace(target)
    return digests


def verify_shard(source: Path, target: Path, edits: ShardEdit, digests: Mapping[str, str]) -> float:
    """Read a written file again: each tensor is what was meant, and each edit near the exact one.

    Args:
        source: The file of the base.
        target: The written file.
        edits: The edit of each weight in it that has one.
        digests: What `fuse_shard` returned.

    Returns:
        Largest distance of an edited weight from `W - (W mix) read`, as a share of the largest number of W.

    Raises:
        FuseError: If a tensor is not as it was meant, or an edit is further off than the weight's number type rounds.
    """
    header, deviation = read_any_header(target), 0.0
    if target.stat().st_size != source.stat().st_size or dict(header.offsets) != dict(read_any_header(source).offsets):
        raise FuseError(f"{target.name} was not written as a whole. Check the disk, and export again.")
    with source.open("rb") as before, target.open("rb") as after:
        for name, (begin, end) in header.offsets.items():
            after.seek(header.size + begin)
            if _digest(after, end - begin) != digests[name]:
                raise FuseError(f"{name} in {target.name} is not what was written. Check the disk, and export again.")
            if name in edits:
                old, new = (_tensor(file, header, name) for file in (before, after))
                share = _distance(old, new, edits[name])
                if share > ROUNDING[old.dtype]:
                    raise FuseError(
                        f"{name} in {target.name} is {share:.1e} off its edit, more than {old.dtype} rounds. "
                        "Report this, with the adapter."
                    )
                deviation = max(deviation, share)
    return deviation


def _fused(weight: Tensor, edit: StackedEdit, name: str) -> Tensor:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False, device="meta")
    layer.weight = nn.Parameter(weight, requires_grad=False)
    fuse_edit(layer, edit, name.removesuffix(".weight"))
    return layer.weight.detach()


def _distance(old: Tensor, new: Tensor, edit: StackedEdit) -> float:
    factor, largest, distance = weight_factor(old, edit), 0.0, 0.0
    step = max(1, ROWS // max(1, old.shape[1]))
    for start in range(0, len(old), step):
        rows = slice(start, start + step)
        exact = old[rows].double() - factor[rows].double() @ edit.read.double()
        distance = max(distance, float((new[rows].double() - exact).abs().max()))
        largest = max(largest, float(exact.abs().max()), float(old[rows].abs().max()))
    return distance / largest if largest else distance


def _tensor(reader: BinaryIO, header: AnyHeader, name: str) -> Tensor:
    begin, end = header.offsets[name]
    dtype = DTYPES.get(header.dtypes[name])
    if dtype is None:
        raise FuseError(
            f"{name} is quantised ({header.dtypes[name]}), so that an edit of it would not be exact. "
            "Give the base in full or half precision."
        )
    reader.seek(header.size + begin)
    data = bytearray(reader.read(end - begin))
    return torch.frombuffer(data, dtype=dtype).view(header.shapes[name])


def _copy(reader: BinaryIO, writer: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    while size:
        chunk = reader.read(min(CHUNK, size))
        if not chunk:
            raise FuseError("A file of the base ends before its last tensor. Download it again.")
        writer.write(chunk)
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _digest(reader: BinaryIO, size: int) -> str:
    digest = hashlib.sha256()
    while size:
        chunk = reader.read(min(CHUNK, size))
        if not chunk:
            return ""
        digest.update(chunk)
        size -= len(chunk)
    return digest.hexdigest()


def _flush(writer: BinaryIO) -> None:
    writer.flush()
    os.fsync(writer.fileno())
