"""Memory on the CPU for copies of weights: in large pages, and used again when the same weights are fused again.

The first write into new memory costs ten times what the copy itself does, in pages of 4 KB. So copies are made in
regions of large pages where the system has them. When nothing needs a region any more, the system may take it whenever
it wants (MADV_FREE); if it did not, the next fuse finds it ready.
"""

import mmap
from collections.abc import Collection, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

# A region holds the copies of several weights, and is given back with the last of them.
REGION_BYTES = 2**26
SMALLEST_REGION = 2**21  # one large page
ALIGNMENT = 64


class _Group(NamedTuple):
    """Copies that were made together."""

    shapes: tuple[Any, ...]
    copies: list[Tensor]
    regions: list[mmap.mmap]


class CopyMemory:
    """Memory for the copies of one denoiser's weights."""

    def __init__(self) -> None:
        self._groups: list[_Group] = []
        self._idle: list[_Group] = []

    def __deepcopy__(self, _memo: Any) -> "CopyMemory":
        return CopyMemory()

    def take(self, weights: Sequence[Tensor]) -> list[Tensor]:
        """Return uninitialised memory for a copy of each weight, on the CPU; pinned for weights on a GPU.

        Raises:
            MemoryError, OSError, RuntimeError: If there is none.
        """
        shapes = tuple((weight.shape, weight.dtype, weight.device) for weight in weights)
        group = next((idle for idle in self._idle if idle.shapes == shapes), None)
        self._idle = []  # what is of another shape is given back
        if group is None:
            regions: list[mmap.mmap] = []
            group = _Group(shapes, _memory_for(weights, regions), regions)
        self._groups.append(group)
        return group.copies

    def give_back(self, used: Collection[Tensor]) -> None:
        """Return all memory that holds no copy to the system, except these; the contents are lost.

        Args:
            used: All copies that are still needed.
        """
        places = {copy.data_ptr() for copy in used}
        groups, self._groups = self._groups, []
        for group in groups:
            if not places.isdisjoint(copy.data_ptr() for copy in group.copies):
                self._groups.append(group)
            elif group.regions and hasattr(mmap, "MADV_FREE"):
                for region in group.regions:
                    region.madvise(mmap.MADV_FREE)
                self._idle = [group]


def _memory_for(weights: Sequence[Tensor], regions: list[mmap.mmap]) -> list[Tensor]:
    copies: dict[int, Tensor] = {}
    queue: list[int] = []
    for index, weight in enumerate(weights):
        if weight.device.type != "cpu":
            pinned = weight.device.type == "cuda"
            copies[index] = torch.empty(weight.shape, dtype=weight.dtype, device="cpu", pin_memory=pinned)
            continue
        queue.append(index)
        if sum(_padded_bytes(weights[member]) for member in queue) >= REGION_BYTES:
            copies |= _divided(queue, weights, regions)
            queue = []
    copies |= _divided(queue, weights, regions)
    return [copies[index] for index in range(len(weights))]


def _divided(members: list[int], weights: Sequence[Tensor], regions: list[mmap.mmap]) -> dict[int, Tensor]:
    """Return for each of some weights its part of a new region."""
    memory, start = _region(sum(_padded_bytes(weights[member]) for member in members), regions), 0
    copies = {}
    for member in members:
        weight = weights[member]
        part = memory[start : start + weight.numel() * weight.element_size()]
        copies[member] = part.view(weight.dtype).view(weight.shape)
        start += _padded_bytes(weight)
    return copies


def _region(count: int, regions: list[mmap.mmap]) -> Tensor:
    if count < SMALLEST_REGION or not hasattr(mmap, "MADV_HUGEPAGE"):
        return torch.empty(count, dtype=torch.uint8, device="cpu")
    region = mmap.mmap(-1, count, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # shared memory has small pages
    region.madvise(mmap.MADV_HUGEPAGE)
    regions.append(region)
    return torch.frombuffer(region, dtype=torch.uint8)


def _padded_bytes(weight: Tensor) -> int:
    count = weight.numel() * weight.element_size()
    return count + -count % ALIGNMENT
