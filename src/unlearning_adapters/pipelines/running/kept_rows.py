"""Which rows a recording keeps, and the memory that they lie in."""

import ctypes
import sys

import torch
from torch import Tensor

BLOCK = 2**23  # float32 numbers, 32 MiB: from that size on, glibc takes memory from the system, not from its heap
LARGE = 2**24  # bytes that a site reads for a batch: memory is then given back after it
ALIGNED = 16  # numbers, 64 bytes: where torch itself would put a tensor


class RowStore:
    """Memory for rows that are kept, side by side in large blocks.

    A batch of prompts needs hundreds of megabytes for a moment. Rows that are kept in between, each a tensor of its
    own, lie where that memory was: it cannot be used as a whole again, nor go back to the system. Recording 227 prompts
    then took 40 MB more with each batch of 16, and the rows of all are 16 MB. What a block does not use, costs nothing:
    the system gives memory out page by page, when it is written.
    """

    def __init__(self) -> None:
        self._free = torch.empty(0, dtype=torch.float32, device="cpu")

    def keep(self, rows: Tensor) -> Tensor:
        """Return a copy of rows that lies in the store, shape (tokens, features), float32, on the CPU.

        Args:
            rows: Rows of any floating dtype, on any device.
        """
        count = -(-rows.numel() // ALIGNED) * ALIGNED
        if count > len(self._free):
            self._free = torch.empty(max(count, BLOCK), dtype=torch.float32, device="cpu")
        place, self._free = self._free[: rows.numel()].view(rows.shape), self._free[count:]
        return place.copy_(rows)


def give_back_memory() -> None:
    """Let glibc return to the system what it holds for later; other systems do so by themselves, or not at all.

    It holds up to 32 MiB of each tensor that was freed, 200 MB after a batch of 16 prompts of 512 tokens. It takes
    about 15 ms then.
    """
    if sys.platform == "linux" and (trim := getattr(ctypes.CDLL(None), "malloc_trim", None)) is not None:
        trim(0)


def distinct(rows: Tensor) -> Tensor:
    """Return float32 rows on the CPU without exact repetitions, in order: padding is one row."""
    first: dict[bytes, int] = {}
    for index, row in enumerate(rows.contiguous().numpy()):
        first.setdefault(row.tobytes(), index)
    return rows[list(first.values())]


def most_different(rows: Tensor, limit: int | None) -> Tensor:
    """Return `limit` rows in order: the first, then again and again the one farthest from all that were taken."""
    if limit is None or len(rows) <= limit:
        return rows
    indices = [0]
    distance = (rows - rows[0]).norm(dim=1)
    while len(indices) < limit:
        indices.append(int(distance.argmax()))
        distance = torch.minimum(distance, (rows - rows[indices[-1]]).norm(dim=1))
    return rows[sorted(indices)]
