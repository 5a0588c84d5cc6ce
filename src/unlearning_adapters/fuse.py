"""Fused edits: `W' = W - (W mix) read`, written into a weight and taken out again bit for bit.

A sum that was rounded cannot be undone by a difference: 1 to 10 % of the elements end one unit in the last place off.
So fusing tries the way back at once, and keeps the original values of just those elements that it misses.

Everything runs in blocks of rows that fit the cache. Each rank-1 term is formed by a multiplication of its own and
taken off by a subtraction, which IEEE 754 rounds once per element. Matrix products and fused multiply-adds round
otherwise with another number of threads, size of block or device, and the way back would miss other elements than those
that are kept. The one matrix product, `W mix`, is computed once and kept.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import isfinite
from typing import Literal

import numpy as np
import torch
from torch import Tensor, nn

from .errors import FuseError
from .stacking import StackedEdit
from .weights import is_plain, kept_weight

# Elements per block: 2 MB in float32 on a CPU. Smaller blocks cost calls, larger ones leave the cache.
BLOCK_ELEMENTS = 2**19
BLOCK_ELEMENTS_ON_DEVICE = 2**24
SAME_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}


@dataclass(frozen=True)
class FusedWeight:
    """What it takes to restore a fused weight, all on the CPU; about 6 % of a bfloat16 weight at rank 1.

    Args:
        left: `W mix`, shape (out_features, m), float32 (float64 for a weight in float64).
        right: `read`, shape (m, in_features), in the dtype of `left`.
        index: Flat positions, ascending, of the elements that adding the edit back does not restore.
        value: Their original values.
        before: Sum of each row of the original weight's bits, read as integers; shape (out_features,).
        after: The same of the fused weight.
        columns: Sum of each column of the fused weight's bits.
    """

    left: Tensor
    right: Tensor
    index: Tensor
    value: Tensor
    before: Tensor
    after: Tensor
    columns: Tensor

    @property
    def nbytes(self) -> int:
        """Memory that the record takes."""
        return sum(part.nbytes for part in vars(self).values())


def fuse_edit(linear: nn.Module, edit: StackedEdit, name: str = "the layer") -> FusedWeight:
    """Write an edit into a weight in place, `W' = round(W - (W mix) read)`, computed in float32 and rounded once.

    Args:
        linear: A Linear layer with a plain floating-point weight of shape (out_features, in_features).
        edit: The joint edit of its site.
        name: Name of the layer for error texts.

    Returns:
        The record with which `unfuse_edit` restores the weight.

    Raises:
        FuseError: If the weight is quantised, offloaded, of another width, or not finite before or after; then it is
            as it was.

    Example:
        >>> record = fuse_edit(linear, edit)
        >>> unfuse_edit(linear, record)  # the same bits as before
    """
    weight = check_fusable(linear, edit, name)
    block = _Block(weight)
    mix, right = (part.to(weight.device, block.work.dtype) for part in (edit.mix, edit.read))
    trace = _Trace(weight, right)
    with _writable(weight):
        try:
            for rows in block.rows_of(weight):
                block.load(weight, rows)
                left = block.work @ mix
                block.add(left, right, -1)
                trace.see(left, block.source, block.result)
                if not block.result_is_finite():
                    raise FuseError(_not_finite(block, name))
                block.try_back(left, right)
                trace.keep(block, rows)
                weight[rows].copy_(block.result)
        except BaseException:  # also Ctrl-C: half a weight would be edited
            _turn(weight, trace.record(), back=True)
            raise
    return trace.record()


def unfuse_edit(linear: nn.Module, record: FusedWeight, name: str = "the layer") -> None:
    """Restore a fused weight in place, bit for bit.

    Args:
        linear: The layer that was fused.
        record: What `fuse_edit` returned for it.
        name: Name of the layer for error texts.

    Raises:
        FuseError: If the weight is not, bit for bit, the fused one any more; then it is as it was.
    """
    restore_weight(check_fused(linear, record, name), record, name)


def restore_weight(weight: Tensor, record: FusedWeight, name: str) -> None:
    """Restore a weight that `check_fused` has just returned."""
    with _writable(weight):
        try:
            restored = _turn(weight, record, back=True)
        except BaseException:
            _turn(weight, record, back=False)
            raise
        if not restored:
            _turn(weight, record, back=False)
            raise FuseError(
                f"The weight of {name} cannot be restored: the arithmetic here rounds otherwise than where it was "
                "fused. Nothing was changed. Load the base model again."
            )


def check_fusable(linear: nn.Module, edit: StackedEdit, name: str) -> Tensor:
    """Return the weight of a layer, or raise `FuseError` if an edit cannot be written into it."""
    weight = kept_weight(linear)
    if not isinstance(linear, nn.Linear) or weight is None:
        raise FuseError(f"{name} is a {type(linear).__name__}, not a plain Linear. Attach the adapter, do not fuse it.")
    if not is_plain(weight):
        raise FuseError(
            f"The weight of {name} is quantised ({type(weight).__name__}, {weight.dtype}), so that an edit of it would "
            "not be exact. Attach the adapter, do not fuse it."
        )
    if weight.is_meta:
        raise FuseError(f"The weight of {name} is offloaded. Fuse before offloading is enabled, or attach the adapter.")
    if weight.shape[1] != edit.in_features:
        raise FuseError(f"{name} reads {weight.shape[1]} features, but the edit is for {edit.in_features}.")
    if not bool(torch.isfinite(edit.read).all() and torch.isfinite(edit.mix).all()):
        raise FuseError(f"The edit of {name} holds numbers that are not finite. Load the adapter again.")
    return weight


def check_fused(linear: nn.Module, record: FusedWeight, name: str) -> Tensor:
    """Return the weight of a layer if it is what fusing made of it, bit for bit; else raise `FuseError`."""
    weight = kept_weight(linear)
    cure = "Nothing was changed. Undo that first, or load the base model again."
    shape, dtype = (record.left.shape[0], record.right.shape[1]), record.value.dtype
    if weight is None or tuple(weight.shape) != shape or weight.dtype != dtype:
        now = f"{tuple(weight.shape)} {weight.dtype}" if weight is not None else f"of a {type(linear).__name__}"
        raise FuseError(f"The weight of {name} was {shape} {dtype} when it was fused, and now it is {now}. {cure}")
    if weight.is_meta:
        raise FuseError(
            f"The weight of {name} is offloaded and cannot be restored. Call pipe.remove_all_hooks() first."
        )
    block, sums, columns = _Block(weight), [], torch.zeros((), dtype=torch.int64, device=weight.device)
    with torch.no_grad():
        for rows in block.rows_of(weight):
            block.load(weight, rows, work=False)
            sums.append(_bits(block.source).sum(1))
            columns = columns + _bits(block.source).sum(0)
    if not (torch.equal(torch.cat(sums).cpu(), record.after) and torch.equal(columns.cpu(), record.columns)):
        raise FuseError(
            f"The weight of {name} changed after it was fused (training, a fused LoRA, or a cast to another dtype and "
            f"back), so that it cannot be restored exactly. {cure}"
        )
    return weight


class _Block:
    """One block of rows at a time, in buffers that are allocated once."""

    def __init__(self, weight: Tensor) -> None:
        limit = BLOCK_ELEMENTS if weight.device.type == "cpu" else BLOCK_ELEMENTS_ON_DEVICE
        self.height = max(1, min(weight.shape[0], limit // max(1, weight.shape[1])))
        wide = torch.promote_types(weight.dtype, torch.float32)
        self._buffers = [
            torch.empty(self.height, weight.shape[1], dtype=dtype, device=weight.device)
            for dtype in (weight.dtype, weight.dtype, weight.dtype, wide, wide)
        ]
        self.source, self.result, self.trial, self.work, self.term = self._buffers

    def rows_of(self, weight: Tensor) -> Iterator[slice]:
        """Yield the blocks of a weight, or of its first rows."""
        for start in range(0, weight.shape[0], self.height):
            yield slice(start, min(start + self.height, weight.shape[0]))

    def load(self, weight: Tensor, rows: slice, work: bool = True) -> None:
        """Read a block of the weight; from a copy if its strides or alignment forbid to read it as integers."""
        if rows.stop - rows.start != len(self.source):
            self.source, self.result, self.trial, self.work, self.term = (
                buffer[: rows.stop - rows.start] for buffer in self._buffers
            )
        block = weight[rows]
        if block.is_contiguous() and block.data_ptr() % 8 == 0:
            self.source = block
        else:
            self.source = self._buffers[0][: len(block)].copy_(block)
        if work:
            self.work.copy_(self.source)

    def add(self, left: Tensor, right: Tensor, sign: Literal[1, -1]) -> None:
        """Form `result = round(source + sign * left @ right)`, term by term."""
        for column, row in zip(left.T, right, strict=True):
            torch.mul(column[:, None], row, out=self.term)
            self.work.add_(self.term, alpha=sign)
        self.result.copy_(self.work)

    def try_back(self, left: Tensor, right: Tensor) -> None:
        """Form `trial = round(result + left @ right)` with the same roundings as restoring will."""
        for column, row in zip(left.T, right, strict=True):
            if len(right) > 1:  # the only term is still there
                torch.mul(column[:, None], row, out=self.term)
            self.work.add_(self.term)
        self.trial.copy_(self.work)

    def result_is_finite(self) -> bool:
        """Whether all of the result is finite; leaves it in `work`."""
        self.work.copy_(self.result)
        # A sum is ten times as fast, and finite only if all of its terms are.
        return isfinite(self.work.sum()) or bool(torch.isfinite(self.work).all())


class _Trace:
    """What fusing leaves behind, collected block by block."""

    def __init__(self, weight: Tensor, right: Tensor) -> None:
        self.right, self.dtype, self.width = right, weight.dtype, weight.shape[1]
        self.lefts: list[Tensor] = []
        self.before: list[Tensor] = []
        self.after: list[Tensor] = []
        self.index: list[Tensor] = []
        self.value: list[Tensor] = []
        self.columns = torch.zeros((), dtype=torch.int64, device=weight.device)
        self.index_dtype = torch.int32 if weight.numel() < 2**31 else torch.int64

    def see(self, left: Tensor, source: Tensor, result: Tensor) -> None:
        """Take note of a block that is about to be written."""
        bits = _bits(result)
        self.lefts.append(left)
        self.before.append(_bits(source).sum(1))
        self.after.append(bits.sum(1))
        self.columns = self.columns + bits.sum(0)

    def keep(self, block: _Block, rows: slice) -> None:
        """Keep the elements of a block that its trial missed."""
        index, value = _missed(block.source, block.trial)
        self.index.append((index + rows.start * self.width).to(self.index_dtype))
        self.value.append(value)

    def record(self) -> FusedWeight:
        """Return the record of the blocks so far."""
        none = torch.empty(0, self.right.shape[0], dtype=self.right.dtype, device=self.right.device)
        sums = torch.empty(0, dtype=torch.int64, device=self.right.device)
        return FusedWeight(
            left=torch.cat([none, *self.lefts]).cpu(),
            right=self.right.cpu(),
            index=torch.cat([torch.empty(0, dtype=self.index_dtype), *self.index]),
            value=torch.cat([torch.empty(0, dtype=self.dtype), *self.value]),
            before=torch.cat([sums, *self.before]).cpu(),
            after=torch.cat([sums, *self.after]).cpu(),
            columns=self.columns.cpu(),
        )


def _turn(weight: Tensor, record: FusedWeight, back: bool) -> bool:
    """Restore (or fuse again) all blocks that are not yet so; False at the first result that is not the known one."""
    left, right, target = (
        part.to(weight.device) for part in (record.left, record.right, record.before if back else record.after)
    )
    block = _Block(weight)
    starts = torch.arange(0, left.shape[0] + block.height, block.height) * weight.shape[1]
    edges = torch.searchsorted(record.index, starts.to(record.index.dtype)).tolist()
    for number, rows in enumerate(block.rows_of(left)):
        block.load(weight, rows)
        if torch.equal(_bits(block.source).sum(1), target[rows]):
            continue
        block.add(left[rows], right, 1 if back else -1)
        if back:
            here = slice(edges[number], edges[number + 1])
            index = record.index[here].to(weight.device, torch.int64) - rows.start * weight.shape[1]
            block.result.view(-1)[index] = record.value[here].to(weight.device)
        if not torch.equal(_bits(block.result).sum(1), target[rows]):
            return False
        weight[rows].copy_(block.result)
    return True


def _bits(block: Tensor) -> Tensor:
    """Return rows as the widest integers that fill them: the fewer, the faster their sums."""
    row_bytes = block.shape[1] * block.element_size()
    return block.view(next(kind for size, kind in sorted(SAME_SIZE.items(), reverse=True) if row_bytes % size == 0))


def _missed(source: Tensor, trial: Tensor) -> tuple[Tensor, Tensor]:
    """Return where two blocks differ in any bit, as flat positions, and what the first one has there."""
    kind = SAME_SIZE[source.element_size()]
    if source.device.type != "cpu":
        index = torch.nonzero(source.view(kind).view(-1) != trial.view(kind).view(-1)).view(-1)
        return index.cpu(), source.view(-1)[index].cpu()
    # numpy: comparing and searching 16-bit integers is 7 times as fast as in torch 2.13 on a CPU.
    bits, others = source.view(kind).view(-1).numpy(), trial.view(kind).view(-1).numpy()
    places = np.flatnonzero(bits != others)
    return torch.from_numpy(places), torch.from_numpy(bits[places]).view(source.dtype)


def _not_finite(block: _Block, name: str) -> str:
    if not bool(torch.isfinite(block.source).all()):
        return (
            f"The weight of {name} holds numbers that are not finite, so that it cannot be fused. Nothing was changed."
        )
    limit = torch.finfo(block.source.dtype).max
    return (
        f"Fusing would take the weight of {name} beyond {limit:g}, the largest {block.source.dtype}. Nothing was "
        "changed. Attach the adapter, do not fuse it."
    )


@contextmanager
def _writable(weight: Tensor) -> Iterator[None]:
    """Allow changes in place: of a leaf that requires gradients, and of a weight made in inference mode."""
    with torch.inference_mode(weight.is_inference()), torch.no_grad():  # in this order: the first resets the second
        yield
