"""The way back from a fused edit as a copy of the weight: the fastest one, where memory allows it."""

from dataclasses import dataclass
from typing import ClassVar, Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class WeightCopy:
    """What it takes to restore a fused weight: the weight itself, on the CPU.

    Args:
        original: The weight as it was, shape (out_features, in_features).
        left: `W mix`, shape (out_features, m), float32 (float64 for a weight in float64).
        right: `read`, shape (m, in_features), in the dtype of `left`.
        after: Sum of each row of the fused weight's bits, read as integers; shape (out_features,).
        columns: Sum of each column of the fused weight's bits.
    """

    kind: ClassVar[Literal["copy"]] = "copy"
    original: Tensor
    left: Tensor
    right: Tensor
    after: Tensor
    columns: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight, (out_features, in_features)."""
        return self.original.shape[0], self.original.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self.original.dtype

    @property
    def nbytes(self) -> int:
        """Memory that the record takes."""
        return sum(part.nbytes for part in (self.original, self.left, self.right, self.after, self.columns))
