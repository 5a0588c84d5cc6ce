"""Fuse and unfuse against a copy of the same weights, and against diffusers' `fuse_lora` of the same edit."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.adapter.file import FILE_NAME
from unlearning_adapters.runtime.fusing.fuse import fuse_edit, unfuse_edit
from unlearning_adapters.runtime.fusing.record_choice import Record
from unlearning_adapters.runtime.joint.joint_edit import stack_directions
from unlearning_adapters.runtime.verbs import (
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
)

from .measure import Arm, in_turn
from .planted import STRENGTH, planted_direction, planted_layers, save_planted, with_shared_weights
from .report import Row, compare
from .sizes import Sizes

RANKS = (1, 4, 8)
DTYPES = (torch.bfloat16, torch.float16, torch.float32)
LAYERS_PER_RANK = 4
Measured = Mapping[str, list[float]]


def benchmark_weights(sizes: Sizes, cases: Sequence[str] = ()) -> Iterator[Row]:
    """Compare the verbs, with all that they check: both records, several shapes and dtypes, one and all threads."""
    all_threads = torch.get_num_threads()
    for case in cases or sizes.layers:
        count, in_features, out_features = sizes.layers[case]
        for dtype in DTYPES:
            pipe = planted_layers(count, in_features, out_features)
            for layer in pipe.transformer.layers:
                layer.to(dtype)
            weights = [layer.weight.data for layer in pipe.transformer.layers]
            copies = [weight.clone() for weight in weights]
            name = str(dtype).removeprefix("torch.")
            with TemporaryDirectory() as folder:
                save_planted(pipe, Path(folder), "transformer.layers.*")
                arms = _arms(pipe, folder, weights, copies)
                for threads in sorted({1, all_threads}):
                    torch.set_num_threads(threads)
                    where = f"{count} {name} layers of {in_features} x {out_features} (in x out), {threads} threads"
                    times = in_turn(arms, sizes.weight_rounds, f"weights/{case}/{name}/{threads}")
                    yield from _rows(f"{case}/{name}/{threads}-threads", where, times)
            if dtype == torch.bfloat16:
                yield from _kept(case, pipe, copies)
    torch.set_num_threads(all_threads)


def _arms(pipe: Any, folder: str, weights: list[Tensor], copies: list[Tensor]) -> list[Arm]:
    """Return the copy, our verbs with both records and the stock verbs; all work on the same weights in turn."""
    stock = with_shared_weights(pipe)
    load_unlearning_adapter(pipe, folder)
    stock.transformer.load_lora_adapter(folder, prefix="transformer", weight_name=FILE_NAME)

    def copy_all() -> None:
        for weight, into in zip(weights, copies, strict=True):
            into.copy_(weight)

    def check() -> None:
        if not all(torch.equal(one, other) for one, other in zip(weights, copies, strict=True)):
            raise AssertionError("Unfusing did not restore the weights bit for bit.")

    def restore() -> None:  # unfuse_lora leaves rounding errors behind
        for weight, source in zip(weights, copies, strict=True):
            weight.copy_(source)

    def ours(record: Record) -> Arm:
        return [
            (f"fuse/{record}", lambda: fuse_unlearning_adapters(pipe, record=record)),
            (f"unfuse/{record}", lambda: unfuse_unlearning_adapters(pipe)),
            (None, check),
        ]

    return [
        [("copy", copy_all)],
        ours("copy"),
        ours("compact"),
        [
            ("fuse_lora", lambda: stock.fuse_lora(components=["transformer"])),
            ("unfuse_lora", lambda: stock.unfuse_lora(components=["transformer"])),
            (None, restore),
        ],
    ]


def _rows(case: str, where: str, times: Measured) -> Iterator[Row]:
    for (verb, record), (of_stock, of_copy) in TARGETS.items():
        yield compare(
            f"{verb}/{record}/{case}/bare-copy",
            f'{verb}_unlearning_adapters with record="{record}", rank 1, {where}, against one copy of the weights into '
            "memory that is there",
            times[f"{verb}/{record}"],
            times["copy"],
            at_most=of_copy,
            if_missed=REASONS[verb, record],
        )
        yield compare(
            f"{verb}/{record}/{case}/{verb}_lora",
            f"the same against diffusers' {verb}_lora of the same file, which is not exact",
            times[f"{verb}/{record}"],
            times[f"{verb}_lora"],
            at_most=of_stock,
            if_missed=REASONS[verb, record],
        )


# The promises: how many times as long as the stock verb, and as a bare copy of the weights.
TARGETS: dict[tuple[str, Record], tuple[float, float]] = {
    ("fuse", "copy"): (1.2, 4),
    ("unfuse", "copy"): (0.5, 4),
    ("fuse", "compact"): (2, 8),
    ("unfuse", "compact"): (1, 8),
}
REASONS: dict[tuple[str, Record], str] = {
    ("fuse", "copy"): "per element it copies, widens, multiplies twice, rounds and sums the bits",
    ("unfuse", "copy"): "it reads all weights once to check them before any is changed, and then copies them",
    ("fuse", "compact"): "it tries the way back of each element, and looks for those that it misses",
    (
        "unfuse",
        "compact",
    ): "it reads all weights once to check them before any is changed, then widens and adds",
}


def _kept(case: str, pipe: Any, copies: list[Tensor]) -> Iterator[Row]:
    """Compare the bytes of the records of some layers with those of their weights."""
    maker = torch.Generator().manual_seed(2)
    layers = list(pipe.transformer.layers)[:LAYERS_PER_RANK]
    for rank in RANKS:
        kept = 0
        for layer, original in zip(layers, copies, strict=False):
            direction = planted_direction(rank, layer.in_features, maker)
            record = fuse_edit(layer, stack_directions([direction], [STRENGTH]))
            kept += record.nbytes
            unfuse_edit(layer, record)
            if not torch.equal(layer.weight, original):
                raise AssertionError("Unfusing did not restore the weight bit for bit.")
        yield compare(
            f"kept/{case}/rank-{rank}",
            f"bytes kept for the exact unfuse at rank {rank}, against those of the edited weights",
            [kept],
            [sum(layer.weight.nbytes for layer in layers)],
            at_most=0.15 if rank == 1 else None,
            unit="bytes",
            if_missed="each layer keeps a sum of bits per row and column, which only small layers notice",
        )
