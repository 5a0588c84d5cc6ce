"""What it takes to undo a fused edit exactly: the record of a fused weight, and how it is gathered.

A sum that was rounded cannot be undone by a difference: 1 to 10 % of the elements end one unit in the last place off.
So fusing tries the way back at once, and keeps the original values of just those elements that it misses.
"""

from dataclasses import dataclass
from typing import Any, ClassVar, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

SAME_SIZE = {2: torch.int16, 4: torch.int32, 8: torch.int64}
PAGE_BITS = 16
PAGE = 2**PAGE_BITS


@dataclass(frozen=True)
class FusedWeight:
    """What it takes to restore a fused weight, all on the CPU; about 6 % of a bfloat16 weight at rank 1.

    The elements that adding the edit back misses are listed in pages of 65,536, so that two bytes tell where one is.

    Args:
        left: `W mix`, shape (out_features, m), float32 (float64 for a weight in float64).
        right: `read`, shape (m, in_features), in the dtype of `left`.
        place: Where in its page each missed element is, ascending, as the bits of unsigned 16-bit integers.
        pages: Number of missed elements in front of each page, and of all.
        value: Original values of the missed elements.
        before: Sum of each row of the original weight's bits, read as integers; shape (out_features,).
        after: The same of the fused weight.
        columns: Sum of each column of the fused weight's bits.
    """

    kind: ClassVar[Literal["compact"]] = "compact"
    left: Tensor
    right: Tensor
    place: Tensor
    pages: Tensor
    value: Tensor
    before: Tensor
    after: Tensor
    columns: Tensor

    @property
    def shape(self) -> tuple[int, int]:
        """Shape of the weight, (out_features, in_features)."""
        return self.left.shape[0], self.right.shape[1]

    @property
    def dtype(self) -> torch.dtype:
        """Its dtype."""
        return self.value.dtype

    @property
    def nbytes(self) -> int:
        """Memory that the record takes."""
        return sum(part.nbytes for part in vars(self).values())

    def missed(self, rows: slice) -> tuple[Tensor, Tensor]:
        """Return the missed elements of some rows: flat positions, from the first row on, and original values."""
        start, stop = rows.start * self.right.shape[1], rows.stop * self.right.shape[1]
        page, end = start // PAGE, -(-stop // PAGE)
        first, last = self.pages[[page, end]].tolist()
        index = torch.arange(page, end).repeat_interleave(self.pages[page : end + 1].diff()) * PAGE
        index += self.place[first:last].long() & (PAGE - 1)
        low, high = torch.searchsorted(index, torch.tensor([start, stop])).tolist()
        return index[low:high] - start, self.value[first + low : first + high]


class _Kept(NamedTuple):
    """What is kept of one block; `counts` is the number of missed elements in each page that it touches."""

    rows: slice
    place: NDArray[Any]
    counts: NDArray[Any]
    value: Tensor
    columns: Tensor


class Trace:
    """What fusing leaves behind, collected block by block; the parts of a weight are written side by side."""

    def __init__(self, weight: Tensor, right: Tensor) -> None:
        count, self.width = weight.shape
        self.right, self.dtype = right, weight.dtype
        self.left = torch.empty(count, len(right), dtype=right.dtype)
        self.before, self.after = (torch.empty(count, dtype=torch.int64) for _ in range(2))
        self.blocks: dict[int, _Kept] = {}

    @property
    def rows(self) -> list[slice]:
        """The blocks so far, in order."""
        return [self.blocks[start].rows for start in sorted(self.blocks)]

    def keep(self, rows: slice, left: Tensor, source: Tensor, result: Tensor, trial: Tensor) -> None:
        """Take note of a block that is about to be written.

        Args:
            rows: Its rows.
            left: `W mix` of these rows.
            source: What they hold.
            result: What they will hold.
            trial: What adding the edit back will make of that.
        """
        bits = bits_of(result)
        self.left[rows], self.before[rows], self.after[rows] = left, bits_of(source).sum(1), bits.sum(1)
        index, value = _missed(source, trial)
        start = rows.start * self.width
        index += start % PAGE
        counts = np.bincount(index >> PAGE_BITS)
        self.blocks[rows.start] = _Kept(rows, index.astype(np.int16), counts, value, bits.sum(0).cpu())

    def record(self) -> FusedWeight:
        """Return the record of the blocks so far."""
        found = [self.blocks[rows.start] for rows in self.rows]
        pages = np.zeros(-(-len(self.left) * self.width // PAGE) + 1, dtype=np.int64)
        for kept in found:
            first = kept.rows.start * self.width // PAGE + 1
            pages[first : first + len(kept.counts)] += kept.counts
        places = [np.empty(0, np.int16), *(kept.place for kept in found)]
        return FusedWeight(
            left=self.left,
            right=self.right.cpu(),
            place=torch.from_numpy(np.concatenate(places)),
            pages=torch.from_numpy(pages.cumsum()),
            value=torch.cat([torch.empty(0, dtype=self.dtype), *(kept.value for kept in found)]),
            before=self.before,
            after=self.after,
            columns=sum((kept.columns for kept in found), torch.zeros((), dtype=torch.int64)),
        )


def bits_of(block: Tensor) -> Tensor:
    """Return rows as the widest integers that fill them: the fewer, the faster their sums."""
    row_bytes = block.shape[1] * block.element_size()
    return block.view(next(kind for size, kind in sorted(SAME_SIZE.items(), reverse=True) if row_bytes % size == 0))


def _missed(source: Tensor, trial: Tensor) -> tuple[NDArray[Any], Tensor]:
    """Return where two blocks differ in any bit, as flat positions, and what the first one has there."""
    if source.device.type != "cpu":
        kind = SAME_SIZE[source.element_size()]
        index = torch.nonzero(source.view(kind).view(-1) != trial.view(kind).view(-1)).view(-1)
        return index.cpu().numpy(), source.view(-1)[index].cpu()
    # numpy is 7 times as fast as torch 2.13 at this on a CPU; and most words of four elements are alike.
    words, tried = bits_of(source).view(-1).numpy(), bits_of(trial).view(-1).numpy()
    places = np.flatnonzero(words != tried)
    bits, others = (some[places].view(f"i{source.element_size()}") for some in (words, tried))
    inside = np.flatnonzero(bits != others)
    shift = (words.itemsize // source.element_size()).bit_length() - 1
    index = (places[inside >> shift] << shift) + (inside & (1 << shift) - 1)
    return index, torch.from_numpy(bits[inside]).view(source.dtype)
