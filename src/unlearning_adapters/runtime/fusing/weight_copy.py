"""The way back from a fused edit as a copy of the weight: the fastest one, where memory allows it."""

from typing import ClassVar, Literal

from torch import Tensor

from unlearning_adapters.runtime.joint.joint_edit import StackedEdit

from .blocks import Workspace, write
from .weight_record import WeightRecord, add_terms, check_finite

MERGED_FROM = 3  # rows from which one product is faster than one after the other


class WeightCopy(WeightRecord):
    """What it takes to restore a fused weight: the weight itself, on the CPU.

    Args:
        weight: The weight, which is not touched yet.
        edit: The edit that is going to be fused into it.
        original: Memory for its copy, on the CPU.
    """

    kind: ClassVar[Literal["copy"]] = "copy"

    def __init__(self, weight: Tensor, edit: StackedEdit, original: Tensor) -> None:
        super().__init__(weight, edit)
        self.original = original

    @property
    def nbytes(self) -> int:
        """Memory that the record takes."""
        return sum(part.nbytes for part in (self.original, self.left, self.right, self.after, self.columns))

    def fuse_block(self, weight: Tensor, index: int, name: str, workspace: Workspace, /) -> None:
        """Copy a block and edit it in place."""
        rows, wide = self.rows[index], self.left.dtype
        block, original = weight[rows], self.original[rows]
        original.copy_(block)
        self.state[index] = None
        in_place = block.dtype == wide and not block.is_inference()
        work = block if in_place else workspace("work", block, wide).copy_(original)
        _subtract(work, *self._product(work, rows))
        if not in_place:
            write(block, work)
        self.state[index] = True
        check_finite(block, original, name)
        self._sum_up(block, rows, workspace)

    def restore_block(self, weight: Tensor, index: int, _name: str, _workspace: Workspace, /) -> None:
        """Copy a block back."""
        if self.state[index] is not False:
            self.state[index] = None
            write(weight[self.rows[index]], self.original[self.rows[index]])
            self.state[index] = False

    def original_block(self, _weight: Tensor, index: int, _name: str, _workspace: Workspace, /) -> Tensor:
        """Return the block's copy."""
        return self.original[self.rows[index]]


def _subtract(work: Tensor, left: Tensor, right: Tensor) -> None:
    if len(right) < MERGED_FROM:
        add_terms(work, left, right, -1, out=work)
    else:
        work.addmm_(left, right, alpha=-1)
