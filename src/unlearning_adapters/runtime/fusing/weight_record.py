"""What is kept of a weight that is fused: common to both kinds of record.

A record is made before its weight is touched, and knows of each block whether it may be edited. So after an
interruption at any line, fusing or restoring can be undone or completed.
"""

from abc import ABC, abstractmethod
from math import isfinite
from threading import Lock
from typing import ClassVar, Literal

import torch
from torch import Tensor

from unlearning_adapters.errors import FuseError
from unlearning_adapters.runtime.joint.joint_edit import StackedEdit

from .blocks import Workspace, bits_of, blocks_of, readable_as_integers

_LOCK = Lock()  # of the sums that threads add up; records are copied with their denoiser, locks cannot be
ROWS_COMPARED = 8  # of each fused weight, before a call


class WeightRecord(ABC):
    """What it takes to restore a fused weight, all on the CPU.

    Args:
        weight: The weight, shape (out_features, in_features), which is not touched yet.
        edit: The edit that is going to be fused into it.

    Attributes:
        left: `W mix`, shape (out_features, m), float32 (float64 for a weight in float64).
        right: `read`, shape (m, in_features), in the dtype of `left`.
        after: Sum of each row of the fused weight's bits, read as integers; shape (out_features,).
        columns: Sum of each column of the fused weight's bits.
        sample: Some rows of the fused weight, on its device.
        rows: The rows of each block.
        state: Of each block, whether it is edited; None from before it is written until that is done.
        complete: Whether the whole weight is fused and the record can tell it from any other.
    """

    kind: ClassVar[Literal["copy", "compact"]]

    def __init__(self, weight: Tensor, edit: StackedEdit) -> None:
        self.shape, self.dtype = (int(weight.shape[0]), int(weight.shape[1])), weight.dtype
        wide = torch.promote_types(weight.dtype, torch.float32)
        self.right = edit.read.to("cpu", wide)
        self.left = torch.empty(self.shape[0], edit.rank, dtype=wide, device="cpu")
        # Column by column: torch 2.13 multiplies by two rows of numbers 5 times as slowly.
        self._factors = (edit.mix.to(weight.device, wide).T.contiguous().T, edit.read.to(weight.device, wide))
        self.after = torch.empty(self.shape[0], dtype=torch.int64, device="cpu")
        self.columns = torch.zeros((), dtype=torch.int64, device="cpu")
        self.sample = torch.empty(0, dtype=weight.dtype, device="cpu")
        self.rows = blocks_of(weight)
        self.state: list[bool | None] = [False] * len(self.rows)
        self.complete = False

    @property
    @abstractmethod
    def nbytes(self) -> int:
        """Memory that the record takes."""

    @abstractmethod
    def fuse_block(self, weight: Tensor, index: int, name: str, workspace: Workspace, /) -> None:
        """Edit a block of the weight, `W' = round(W - (W mix) read)`, and keep what restores it.

        Args:
            weight: The weight.
            index: Which of the blocks.
            name: Name of the layer for error texts.
            workspace: Buffers.
        """

    @abstractmethod
    def restore_block(self, weight: Tensor, index: int, name: str, workspace: Workspace, /) -> None:
        """Restore a block of the weight; arguments as those of `fuse_block`."""

    @abstractmethod
    def original_block(self, weight: Tensor, index: int, name: str, workspace: Workspace, /) -> Tensor:
        """Return what an edited block of the weight was, maybe in a buffer; arguments as those of `fuse_block`."""

    def fuse_again(self, weight: Tensor, index: int, name: str, workspace: Workspace, /) -> None:
        """Edit a block again that was restored, or whose state is unknown; arguments as those of `fuse_block`."""
        if self.state[index] is None:
            self.restore_block(weight, index, name, workspace)
        if self.state[index] is False:
            self.fuse_block(weight, index, name, workspace)

    def finish(self, weight: Tensor) -> None:
        """Take note that all blocks are edited."""
        self.sample = sample_rows(weight).clone()
        self.complete = True

    def _product(self, work: Tensor, rows: slice) -> tuple[Tensor, Tensor]:
        """Return `W mix` of a block, kept from the first time on, and `read`, on the device of the weight."""
        mix, right = self._factors
        if self.complete:  # the block was restored, and is edited again just as before
            return self.left[rows].to(work.device), right
        left = work @ mix
        self.left[rows] = left
        return left, right

    def _sum_up(self, block: Tensor, rows: slice, workspace: Workspace) -> None:
        """Keep the sums of a fused block's bits."""
        sums, columns = sums_of(block, workspace)
        if not self.complete:
            self.after[rows] = sums
            with _LOCK:
                self.columns = self.columns + columns


def add_terms(start: Tensor, left: Tensor, right: Tensor, sign: Literal[1, -1], out: Tensor) -> Tensor:
    """Form `start + sign * left @ right` in `out`, which may be `start`, one rank-1 term after the other."""
    for term in range(len(right)):
        torch.addcmul(start, left[:, term : term + 1], right[term], value=sign, out=out)
        start = out
    return out if len(right) else out.copy_(start)


def sums_of(block: Tensor, workspace: Workspace) -> tuple[Tensor, Tensor]:
    """Return the sum of each row of a block's bits, and of each column."""
    bits = bits_of(readable_as_integers(block, workspace))
    return bits.sum(1).cpu(), bits.sum(0).cpu()


def sample_rows(weight: Tensor) -> Tensor:
    """Return a few rows of a weight, as a view."""
    return weight.detach()[:: max(1, weight.shape[0] // ROWS_COMPARED)]


def check_finite(result: Tensor, source: Tensor, name: str) -> None:
    """Raise `FuseError` if a fused block is not finite.

    Args:
        result: The fused block.
        source: What it was.
        name: Name of the layer for error texts.
    """
    # A sum is much faster, and finite only if all of its terms are.
    if isfinite(result.sum()) or bool(torch.isfinite(result).all()):
        return
    if not bool(torch.isfinite(source).all()):
        raise FuseError(
            f"The weight of {name} holds numbers that are not finite, so that it cannot be fused. Nothing was changed."
        )
    raise FuseError(
        f"Fusing would take the weight of {name} beyond {torch.finfo(source.dtype).max:g}, the largest {source.dtype}. "
        "Nothing was changed. Attach the adapter, do not fuse it."
    )
