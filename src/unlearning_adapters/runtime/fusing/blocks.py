"""Work on weights block by block: blocks of rows that fit the cache, side by side on several threads.

Each block is done by one thread. Operators that share out each block among all threads wait for the slowest one after
each of a thousand steps: beside a busy process that took four times as long.
"""

from collections.abc import Callable, Iterable
from contextlib import nullcontext
from threading import Lock, Thread

import torch
from torch import Tensor

# Elements per block: 2 MB in float32 on a CPU. Smaller blocks cost calls, larger ones leave the cache.
BLOCK_ELEMENTS = 2**19
BLOCK_ELEMENTS_ON_DEVICE = 2**24
# A thread per so many elements at least, or starting it costs more than it saves; more would wait for the interpreter.
ELEMENTS_PER_THREAD = 2**20
MAX_THREADS = 8
INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}


class Workspace:
    """Buffers of one thread, allocated once and used for block after block."""

    def __init__(self) -> None:
        self._buffers: dict[tuple[str, torch.dtype, torch.device], Tensor] = {}

    def __call__(self, name: str, like: Tensor, dtype: torch.dtype) -> Tensor:
        """Return a contiguous buffer of the shape and device of a block, uninitialised."""
        key, count = (name, dtype, like.device), like.numel()
        buffer = self._buffers.get(key)
        if buffer is None or buffer.numel() < count:
            buffer = self._buffers[key] = torch.empty(count, dtype=dtype, device=like.device)
        return buffer[:count].view(like.shape)


Task = Callable[[Workspace], None]


def blocks_of(weight: Tensor) -> list[slice]:
    """Return the rows of each block of a weight."""
    limit = BLOCK_ELEMENTS if weight.device.type == "cpu" else BLOCK_ELEMENTS_ON_DEVICE
    height = max(1, limit // max(1, weight.shape[1]))
    return [slice(start, min(start + height, len(weight))) for start in range(0, len(weight), height)]


def side_by_side(tasks: Iterable[Task], weights: Iterable[Tensor]) -> None:
    """Do tasks on as many threads as these weights are worth; return or raise when no thread works any more.

    Args:
        tasks: The tasks, each of which is done by one thread, with torch on one thread. After one has failed no other
            begins.
        weights: What they work on.
    """
    count, threads = _threads_for(list(weights)), torch.get_num_threads()
    crew = _Crew(tasks)
    helpers = [Thread(target=crew.work, daemon=True) for _ in range(count - 1)]
    try:
        for helper in helpers:
            helper.start()
        crew.work()
    except BaseException as error:  # Ctrl-C between two tasks
        crew.errors.append(error)
    finally:
        interrupted = _join(helpers)
        torch.set_num_threads(threads)
    for failure in [*crew.errors, *interrupted]:
        raise failure


class _Crew:
    """Threads that take one task after the other from a common list."""

    def __init__(self, tasks: Iterable[Task]) -> None:
        self.tasks, self.lock = iter(tasks), Lock()
        self.errors: list[BaseException] = []

    def work(self) -> None:
        torch.set_num_threads(1)
        workspace = Workspace()
        with torch.inference_mode(False), torch.no_grad():  # in this order: the first resets the second
            while not self.errors:
                with self.lock:
                    task = next(self.tasks, None)
                if task is None:
                    return
                try:
                    task(workspace)
                except BaseException as error:
                    self.errors.append(error)


def _join(helpers: list[Thread]) -> list[BaseException]:
    """Wait for threads to end, and return the interrupts that came meanwhile."""
    interrupted: list[BaseException] = []
    while alive := [helper for helper in helpers if helper.is_alive()]:
        try:
            alive[0].join()
        except BaseException as error:  # Ctrl-C: nobody may write into weights after this
            interrupted.append(error)
    return interrupted


def _threads_for(weights: list[Tensor]) -> int:
    if any(weight.device.type != "cpu" for weight in weights):
        return 1
    worth = sum(weight.numel() for weight in weights) // ELEMENTS_PER_THREAD
    return max(1, min(torch.get_num_threads(), MAX_THREADS, worth))


def readable_as_integers(block: Tensor, workspace: Workspace) -> Tensor:
    """Return a block, or a copy of it if its strides or alignment forbid to read it as integers."""
    if block.is_contiguous() and block.data_ptr() % 8 == 0:
        return block
    return workspace("source", block, block.dtype).copy_(block)


def bits_of(block: Tensor) -> Tensor:
    """Return rows as the widest integers that fill them: the fewer, the faster their sums."""
    row_bytes = block.shape[1] * block.element_size()
    return block.view(next(kind for size, kind in sorted(INTEGERS.items(), reverse=True) if row_bytes % size == 0))


def write(block: Tensor, values: Tensor) -> None:
    """Write values into a block of a weight; also into one that was made in inference mode."""
    with torch.inference_mode() if block.is_inference() else nullcontext():
        block.copy_(values)
