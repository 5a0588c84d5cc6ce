"""Fused edits: `W' = W - (W mix) read`, written into weights and taken out again bit for bit.

Several weights are fused or restored together: all of them or, after any interruption, none.
"""

from collections.abc import Sequence
from functools import partial
from threading import Lock
from typing import NamedTuple

import torch
from torch import Tensor, nn

from unlearning_adapters.errors import FuseError
from unlearning_adapters.pipelines.weights import is_plain, is_sharded, kept_weight
from unlearning_adapters.runtime.joint.joint_edit import StackedEdit

from .blocks import Workspace, side_by_side
from .compact_record import CompactRecord
from .copy_memory import CopyMemory
from .weight_copy import WeightCopy
from .weight_record import WeightRecord, sample_rows, sums_of

_UNDO = "Nothing was changed. Undo that first, or load the base model again."


class Fused(NamedTuple):
    """A weight and its record; `name` is that of the layer for error texts."""

    weight: Tensor
    record: WeightRecord
    name: str


def fuse_edit(linear: nn.Module, edit: StackedEdit, name: str = "the layer", *, copy: bool = False) -> WeightRecord:
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
    (record,) = new_records([(weight, edit)], CopyMemory() if copy else None)
    fuse_weights([Fused(weight, record, name)])
    return record


def unfuse_edit(linear: nn.Module, record: WeightRecord, name: str = "the layer") -> None:
    """Restore a fused weight in place, bit for bit.

    Args:
        linear: The layer that was fused.
        record: What `fuse_edit` returned for it.
        name: Name of the layer for error texts.

    Raises:
        FuseError: If the weight is not, bit for bit, the fused one any more; then it is as it was.
    """
    restore_weights([check_fused(linear, record, name)])


def new_records(edits: Sequence[tuple[Tensor, StackedEdit]], memory: CopyMemory | None) -> list[WeightRecord]:
    """Return a record for each weight that an edit is going to be fused into; nothing is touched yet.

    Args:
        edits: Weights that `check_fusable` returned, and their edits.
        memory: Where the records take copies of the weights; None makes compact ones.

    Raises:
        FuseError: If there is no memory for the copies.
    """
    if memory is None:
        return [CompactRecord(weight, edit) for weight, edit in edits]
    weights = [weight for weight, _ in edits]
    try:
        copies = memory.take(weights)
    except (MemoryError, OSError, RuntimeError) as error:
        total = sum(weight.nbytes for weight in weights)
        raise FuseError(
            f"There is no memory for copies of {len(weights)} weights ({total / 1e9:.2g} GB). Fuse with "
            f'record="compact". ({error})'
        ) from error
    return [WeightCopy(weight, edit, original) for (weight, edit), original in zip(edits, copies, strict=True)]


def fuse_weights(items: Sequence[Fused]) -> None:
    """Fuse weights with their new records: all, or, if anything fails, none."""
    try:
        _at_each_block(items, "fuse_block")
        for item in items:
            item.record.finish(item.weight)
    except BaseException:  # also Ctrl-C: half a weight would be edited
        _at_each_block(items, "restore_block")
        for item in items:
            item.record.complete = False
        raise


def restore_weights(items: Sequence[Fused]) -> None:
    """Restore weights that `check_unchanged` has passed: all, or, if anything fails, none."""
    try:
        _at_each_block(items, "restore_block")
    except BaseException:
        _at_each_block([item for item in items if item.record.complete], "fuse_again")
        raise
    for item in items:
        item.record.complete = False


def original_of(linear: nn.Module, record: WeightRecord, name: str) -> Tensor:
    """Return what a fused weight was before, bit for bit, as a copy.

    Raises:
        FuseError: If the weight is not, bit for bit, the fused one any more.
    """
    weight = check_fused(linear, record, name).weight.detach()
    original = torch.empty_like(weight)

    def restore(index: int, workspace: Workspace) -> None:
        original[record.rows[index]].copy_(record.original_block(weight, index, name, workspace))

    side_by_side((partial(restore, index) for index in range(len(record.rows))), [weight])
    return original


def is_whole(record: WeightRecord) -> bool:
    """Whether a weight is fused as its record says; otherwise fusing or restoring it was interrupted twice."""
    return record.complete and all(record.state)


def looks_fused(linear: nn.Module, sample: Tensor) -> bool:
    """Whether a few rows, which any LoRA would change, are still as fused; True if no row can be compared."""
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
    if "weight" not in {**linear._parameters, **linear._buffers}:
        raise FuseError(
            f"The weight of {name} is computed anew at each call (a parametrization, such as weight_norm), so that no "
            "edit would last in it. Attach the adapter, or make the weight a parameter again before you fuse."
        )
    if is_sharded(weight):
        raise FuseError(
            f"The weight of {name} is sharded ({type(weight).__name__}), and each process holds a part of it. Fuse "
            "before the denoiser is sharded, or attach the adapter."
        )
    if weight.layout != torch.strided:
        raise FuseError(
            f"The weight of {name} is sparse ({weight.layout}). Make it dense before you fuse, or attach the adapter."
        )
    if not is_plain(weight):
        raise FuseError(
            f"The weight of {name} is quantised ({type(weight).__name__}, {weight.dtype}), so that an edit of it would "
            "not be exact. Attach the adapter, do not fuse it."
        )
    if weight.is_meta:
        raise FuseError(f"The weight of {name} is offloaded. Fuse before offloading is enabled, or attach the adapter.")
    if weight.ndim != 2 or weight.shape[1] != edit.in_features:
        raise FuseError(
            f"The weight of {name} has the shape {tuple(weight.shape)}, but the edit is for {edit.in_features} "
            "features. Load the pipeline again."
        )
    if not bool(torch.isfinite(edit.read).all() and torch.isfinite(edit.mix).all()):
        raise FuseError(f"The edit of {name} holds numbers that are not finite. Load the adapter again.")
    return weight


def check_fused(linear: nn.Module, record: WeightRecord, name: str) -> Fused:
    """Return a layer's weight with its record if it is what fusing made of it, bit for bit; else raise `FuseError`."""
    item = fused_weight(linear, record, name)
    check_unchanged([item])
    return item


def fused_weight(linear: nn.Module, record: WeightRecord, name: str) -> Fused:
    """Return a layer's weight with its record, or raise `FuseError` if it is another kind of weight by now."""
    weight = kept_weight(linear)
    shape, dtype = record.shape, record.dtype
    if weight is None or tuple(weight.shape) != shape or weight.dtype != dtype:
        now = f"{tuple(weight.shape)} {weight.dtype}" if weight is not None else f"of a {type(linear).__name__}"
        raise FuseError(f"The weight of {name} was {shape} {dtype} when it was fused, and now it is {now}. {_UNDO}")
    if not is_plain(weight):  # torchao and FSDP2 keep shape and dtype
        now = "sharded" if is_sharded(weight) else "quantised"
        raise FuseError(
            f"The weight of {name} was {now} after it was fused ({type(weight).__name__}), so that it cannot be "
            f"restored. The edit is still in it. {_UNDO}"
        )
    if weight.is_meta:
        raise FuseError(
            f"The weight of {name} is offloaded and cannot be restored. Call pipe.remove_all_hooks() first."
        )
    return Fused(weight, record, name)


def check_unchanged(items: Sequence[Fused]) -> None:
    """Raise `FuseError` if one of these weights is not, bit for bit, what fusing made of it."""
    columns = [torch.zeros((), dtype=torch.int64, device="cpu")] * len(items)
    failures, lock = set[int](), Lock()

    def compare(number: int, index: int, workspace: Workspace) -> None:
        weight, record, _ = items[number]
        rows = record.rows[index]
        sums, sums_of_columns = sums_of(weight.detach()[rows], workspace)
        with lock:
            columns[number] = columns[number] + sums_of_columns
            if not torch.equal(sums, record.after[rows]):
                failures.add(number)

    blocks = [(number, index) for number, item in enumerate(items) for index in range(len(item.record.rows))]
    side_by_side((partial(compare, *place) for place in blocks), [item.weight for item in items])
    for number, (_, record, name) in enumerate(items):
        if number in failures or not record.complete or not torch.equal(columns[number], record.columns):
            raise FuseError(changed_since_fused(name))


def changed_since_fused(name: str) -> str:
    """Return the error text for a fused weight that cannot be restored."""
    return (
        f"The weight of {name} changed after it was fused (training, a fused LoRA, or a cast to another dtype and "
        f"back), so that it cannot be restored exactly. {_UNDO}"
    )


def _at_each_block(items: Sequence[Fused], verb: str) -> None:
    """Call a method of the records for each block."""
    if not items:
        return
    tasks = (
        partial(getattr(record, verb), weight, index, name)
        for weight, record, name in items
        for index in range(len(record.rows))
    )
    side_by_side(tasks, [item.weight for item in items])
