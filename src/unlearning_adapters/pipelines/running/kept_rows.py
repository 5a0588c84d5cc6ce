"""Which rows a recording keeps, and the memory that they lie in."""

import torch
from torch import Tensor

BLOCK = 2**23  # float32 numbers, 32 MiB: from that size on, glibc takes memory from the system, not from its heap
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
