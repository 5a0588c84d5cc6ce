"""Fused edits: `W' = W - (W mix) read`, written into a weight and taken out again bit for bit.

Everything runs in blocks of rows that fit the cache. Each rank-1 term is formed by a multiplication of its own and
taken off by a subtraction, which IEEE 754 rounds once per element. Matrix products and fused multiply-adds round
otherwise with another number of threads, size of block or device, and the way back would miss other elements than those
that are kept. The one matrix product, `W mix`, is computed once and kept.

Large weights are cut into parts, one per thread. Operators that share out each block by themselves wait for the slowest
thread after each of a thousand steps: beside a busy process that took four times as long.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from functools import partial
from math import isfinite
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn

from unlearning_adapters.errors import FuseError
from unlearning_adapters.pipelines.weights import is_plain, kept_weight

from .fused_weight import FusedWeight, Trace, bits_of
from .joint_edit import StackedEdit
from .weight_copy import WeightCopy

# Elements per block: 2 MB in float32 on a CPU. Smaller blocks cost calls, larger ones leave the cache.
BLOCK_ELEMENTS = 2**19
BLOCK_ELEMENTS_ON_DEVICE = 2**24
# A thread per so many elements at least, or starting it costs more than it saves; more would wait for the interpreter.
PART_ELEMENTS = 2**20
MAX_PARTS = 8
ROWS_COMPARED = 8  # of each fused weight, before a call
T = TypeVar("T")
_UNDO = "Nothing was changed. Undo that first, or load the base model again."


def fuse_edit(
    linear: nn.Module, edit: StackedEdit, name: str = "the layer", *, copy: bool = False
) -> FusedWeight | WeightCopy:
    """Write an edit into a weight in place, `W' = round(W - (W mix) read)`, computed in float32 and rounded once.

    Args:
        linear: A Linear layer with a plain floating-point weight of shape (out_features, in_features).
        edit: The joint edit of its site.
        name: Name of the layer for error texts.
        copy: Whether the record is a copy of the weight; otherwise it is compact.

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
    wide = torch.promote_types(weight.dtype, torch.float32)
    mix, right = (part.to(weight.device, wide) for part in (edit.mix, edit.read))
    if copy:
        return _fuse_with_copy(weight, mix, right, name)
    trace = Trace(weight, right)
    try:
        _at_once([partial(_fuse_rows, weight, rows, mix, trace, name) for rows in _parts(weight)])
    except BaseException:  # also Ctrl-C: half a weight would be edited
        _turn(weight, trace.record(), trace.rows, back=True)
        raise
    return trace.record()


def _fuse_with_copy(weight: Tensor, mix: Tensor, right: Tensor, name: str) -> WeightCopy:
    original = weight.detach().to("cpu", copy=True)
    try:
        lefts = _at_once([partial(_edit_rows, weight, rows, mix, right, name) for rows in _parts(weight)])
        sums, columns = zip(*_at_once([partial(_sums, weight, part) for part in _parts(weight)]), strict=True)
    except BaseException:  # also Ctrl-C: half a weight would be edited
        with _writable(weight):
            weight.copy_(original)
        raise
    return WeightCopy(original, torch.cat(lefts).cpu(), right.cpu(), torch.cat(sums), torch.stack(columns).sum(0))


def _edit_rows(weight: Tensor, part: slice, mix: Tensor, right: Tensor, name: str) -> Tensor:
    """Edit a part of the rows; return their `W mix`."""
    block, lefts = _Block(weight), []
    with _writable(weight):
        for rows in block.rows_of(part):
            block.load(weight, rows)
            lefts.append(block.work @ mix)
            block.add(lefts[-1], right, -1)
            if not block.result_is_finite():
                raise FuseError(_not_finite(block, name))
            weight[rows].copy_(block.result)
    return torch.cat(lefts)


def unfuse_edit(linear: nn.Module, record: FusedWeight | WeightCopy, name: str = "the layer") -> None:
    """Restore a fused weight in place, bit for bit.

    Args:
        linear: The layer that was fused.
        record: What `fuse_edit` returned for it.
        name: Name of the layer for error texts.

    Raises:
        FuseError: If the weight is not, bit for bit, the fused one any more; then it is as it was.
    """
    restore_weight(check_fused(linear, record, name), record, name)


def restore_weight(weight: Tensor, record: FusedWeight | WeightCopy, name: str) -> None:
    """Restore a weight that `check_fused` has just returned."""
    if isinstance(record, WeightCopy):
        with _writable(weight):
            weight.copy_(record.original)
        return
    blocks, done = _Block(weight), list[slice]()
    try:
        parts = [blocks.rows_of(part) for part in _parts(weight)]
        restored = all(_at_once([partial(_turn, weight, record, rows, True, done) for rows in parts]))
    except BaseException:
        _turn(weight, record, done, back=False)
        raise
    if not restored:
        _turn(weight, record, done, back=False)
        raise FuseError(
            f"The weight of {name} cannot be restored: the arithmetic here rounds otherwise than where it was "
            "fused. Nothing was changed. Load the base model again."
        )


def original_of(linear: nn.Module, record: FusedWeight | WeightCopy, name: str) -> Tensor:
    """Return what a fused weight was before, bit for bit, as a copy.

    Raises:
        FuseError: If the weight is not, bit for bit, the fused one any more.
    """
    weight = check_fused(linear, record, name).detach().clone()
    restore_weight(weight, record, name)
    return weight


def sample_rows(weight: Tensor) -> Tensor:
    """Return a few rows of a weight, as a view."""
    return weight.detach()[:: max(1, weight.shape[0] // ROWS_COMPARED)]


def looks_fused(linear: nn.Module, sample: Tensor) -> bool:
    """Whether a few rows, all of which a LoRA would change, are as fusing left them; True if none can be compared."""
    weight = kept_weight(linear)
    if weight is None or not is_plain(weight) or weight.is_meta or weight.dtype != sample.dtype:
        return True
    rows = sample_rows(weight)
    return rows.shape != sample.shape or torch.equal(rows, sample.to(rows.device))


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


def check_fused(linear: nn.Module, record: FusedWeight | WeightCopy, name: str) -> Tensor:
    """Return the weight of a layer if it is what fusing made of it, bit for bit; else raise `FuseError`."""
    weight = kept_weight(linear)
    shape, dtype = record.shape, record.dtype
    if weight is None or tuple(weight.shape) != shape or weight.dtype != dtype:
        now = f"{tuple(weight.shape)} {weight.dtype}" if weight is not None else f"of a {type(linear).__name__}"
        raise FuseError(f"The weight of {name} was {shape} {dtype} when it was fused, and now it is {now}. {_UNDO}")
    if weight.is_meta:
        raise FuseError(
            f"The weight of {name} is offloaded and cannot be restored. Call pipe.remove_all_hooks() first."
        )
    sums, columns = zip(*_at_once([partial(_sums, weight, part) for part in _parts(weight)]), strict=True)
    if not (torch.equal(torch.cat(sums), record.after) and torch.equal(torch.stack(columns).sum(0), record.columns)):
        raise FuseError(changed_since_fused(name))
    return weight


def changed_since_fused(name: str) -> str:
    """Return what to say of a fused weight that cannot be restored."""
    return (
        f"The weight of {name} changed after it was fused (training, a fused LoRA, or a cast to another dtype and "
        f"back), so that it cannot be restored exactly. {_UNDO}"
    )


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

    def rows_of(self, part: slice) -> Iterator[slice]:
        """Yield the blocks of a part of the rows."""
        for start in range(part.start, part.stop, self.height):
            yield slice(start, min(start + self.height, part.stop))

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


def _fuse_rows(weight: Tensor, part: slice, mix: Tensor, trace: Trace, name: str) -> None:
    """Fuse a part of the rows."""
    block = _Block(weight)
    with _writable(weight):
        for rows in block.rows_of(part):
            block.load(weight, rows)
            left = block.work @ mix
            block.add(left, trace.right, -1)
            if not block.result_is_finite():
                raise FuseError(_not_finite(block, name))
            block.try_back(left, trace.right)
            trace.keep(rows, left, block.source, block.result, block.trial)
            weight[rows].copy_(block.result)


def _turn(
    weight: Tensor, record: FusedWeight, blocks: Iterable[slice], back: bool, done: list[slice] | None = None
) -> bool:
    """Restore (or fuse again) blocks, and list those that it writes; False at the first result that is not as known."""
    left, right, target, other = (
        part.to(weight.device)
        for part in (record.left, record.right, *((record.before, record.after)[:: 1 if back else -1]))
    )
    block = _Block(weight)
    with _writable(weight):
        for rows in blocks:
            block.load(weight, rows)
            # A block that is listed may not have been written. Sums that are alike on both sides, as those of zeros
            # of changed sign can be, do not tell.
            if torch.equal(bits_of(block.source).sum(1), target[rows]) and not torch.equal(target[rows], other[rows]):
                continue
            block.add(left[rows], right, 1 if back else -1)
            if back:
                index, value = record.missed(rows)
                block.result.view(-1)[index.to(weight.device)] = value.to(weight.device)
            if not torch.equal(bits_of(block.result).sum(1), target[rows]):
                return False
            if done is not None:
                done.append(rows)
            weight[rows].copy_(block.result)
    return True


def _sums(weight: Tensor, part: slice) -> tuple[Tensor, Tensor]:
    """Return the sum of each row of bits of a part of the rows, and of each column."""
    block, sums, columns = _Block(weight), [], torch.zeros((), dtype=torch.int64, device=weight.device)
    with torch.no_grad():
        for rows in block.rows_of(part):
            block.load(weight, rows, work=False)
            sums.append(bits_of(block.source).sum(1))
            columns = columns + bits_of(block.source).sum(0)
    return torch.cat(sums).cpu(), columns.cpu()


def _parts(weight: Tensor) -> list[slice]:
    """Return parts of whole blocks, one for each thread."""
    rows, height = weight.shape[0], _Block(weight).height
    threads = torch.get_num_threads() if weight.device.type == "cpu" else 1
    count = max(1, min(threads, MAX_PARTS, weight.numel() // PART_ELEMENTS))
    step = -(-rows // (count * height)) * height
    return [slice(start, min(start + step, rows)) for start in range(0, rows, step)]


def _at_once(tasks: Sequence[Callable[[], T]]) -> list[T]:
    """Run tasks side by side, each on a thread of its own that starts no others; return when all have ended."""
    if len(tasks) == 1:
        return [tasks[0]()]
    threads = torch.get_num_threads()
    try:
        with ThreadPoolExecutor(len(tasks), initializer=torch.set_num_threads, initargs=(1,)) as pool:
            return [running.result() for running in [pool.submit(task) for task in tasks]]
    finally:
        torch.set_num_threads(threads)  # that of new threads; this one has kept its own


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
