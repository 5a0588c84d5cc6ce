"""What a recording holds: the rows that it returns, side by side, and nothing else from batch to batch."""

import os
import platform
from pathlib import Path

import pytest
import tiny
import torch
from tiny import KEY, PROMPTS
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode

from unlearning_adapters.pipelines import activations
from unlearning_adapters.pipelines.activations import record
from unlearning_adapters.pipelines.running.kept_rows import BLOCK, RowStore, give_back_memory
from unlearning_adapters.pipelines.sites import find_sites


class HeldBytes(TorchDispatchMode):
    """Count the bytes of all tensors that are made inside and are still alive; blocks of rows are counted apart."""

    def __init__(self):
        super().__init__()
        self.made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, operation, types, args=(), kwargs=None):
        result = operation(*args, **(kwargs or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(tensor, torch.Tensor):
                storage = tensor.untyped_storage()
                self.made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        return result

    def now(self) -> tuple[int, int]:
        """Return the number of blocks, and the bytes of all other tensors."""
        held = [size for reference, size in self.made.values() if not reference.expired()]
        return held.count(4 * BLOCK), sum(size for size in held if size != 4 * BLOCK)


def test_nothing_but_rows_is_held_from_batch_to_batch():
    pipe = tiny.tiny_wan_pipeline()
    held: list[tuple[int, int]] = []
    with HeldBytes() as bytes_held:
        handle = pipe.text_encoder.register_forward_pre_hook(lambda *_: held.append(bytes_held.now()))
        recording = record(pipe, PROMPTS[:2] * 4, find_sites(pipe), batch_size=2, progress=False)
        handle.remove()
    assert held[0][0] == 0 and held[0][1] > 0  # such as the numbers of tokens that the encoder is about to read
    assert held[1:] == [(1, held[1][1])] * 3
    assert [rows.shape for rows in recording.of(KEY)[:2]] * 4 == [rows.shape for rows in recording.of(KEY)]


def test_rows_lie_side_by_side():
    pipe = tiny.tiny_wan_pipeline(two_denoisers=True)
    recording = record(pipe, PROMPTS, find_sites(pipe), batch_size=2, progress=False)
    rows = [each for group in recording.rows for each in group]
    assert len(recording.rows) == 2 and len({each.untyped_storage().data_ptr() for each in rows}) == 1
    places = sorted((each.data_ptr(), each.data_ptr() + each.nbytes) for each in rows)
    assert all(start % 64 == 0 for start, _ in places)
    assert all(0 <= after - end < 64 for (_, end), (after, _) in zip(places, places[1:], strict=False))


def test_a_store_returns_copies_of_any_size():
    store = RowStore()
    given = [torch.randn(3, 5), torch.zeros(0, 5), torch.ones(BLOCK // 4 + 1, 4), torch.randn(2, 5).bfloat16()]
    stored = [store.keep(rows) for rows in given]
    for rows, copy in zip(given, stored, strict=True):
        assert copy.dtype == torch.float32 and torch.equal(copy, rows.float()) and copy.is_contiguous()
    given[0].zero_()
    stored[3].zero_()
    assert stored[0].all() and stored[2].any()


def resident() -> int:
    """Bytes of memory that this process holds."""
    return os.sysconf("SC_PAGESIZE") * int(Path("/proc/self/statm").read_text(encoding="ascii").split()[1])


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="other systems hold no such memory")
def test_memory_below_a_tensor_that_stays_is_given_back():
    # Below glibc's threshold, so that they lie in its heap; the last one keeps all others there.
    held = [torch.ones(25_000) for _ in range(400)]
    last = held.pop()
    full = resident()
    held.clear()
    give_back_memory()
    assert full - resident() > 20e6 and bool(last.all())


@pytest.mark.parametrize("large", [False, True])
def test_large_batches_alone_give_memory_back(monkeypatch, large):
    pipe, calls = tiny.tiny_wan_pipeline(), []
    monkeypatch.setattr(activations, "LARGE", 1 if large else 2**24)
    monkeypatch.setattr(activations, "give_back_memory", lambda: calls.append(1) or give_back_memory())
    record(pipe, PROMPTS[:2], find_sites(pipe), batch_size=1, progress=False)
    assert len(calls) == 2 * large
