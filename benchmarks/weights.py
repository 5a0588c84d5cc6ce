"""Fuse and unfuse against a copy of the same weights, and against diffusers' `fuse_lora` of the same edit."""

from collections.abc import Iterator, Mapping
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.adapter.file import FILE_NAME
from unlearning_adapters.runtime.fusing.fuse import fuse_edit, unfuse_edit
from unlearning_adapters.runtime.joint_edit import stack_directions
from unlearning_adapters.runtime.verbs import (
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
)

from .measure import Arm, can_measure_memory, extra_bytes, in_turn
from .planted import STRENGTH, planted_direction, planted_layers, save_planted, with_shared_weights
from .report import Row, compare
from .sizes import Sizes

RANKS = (1, 4, 8)
LAYERS_PER_RANK = 4
Measured = Mapping[str, list[float]]


def benchmark_weights(sizes: Sizes) -> Iterator[Row]:
    """Compare the verbs, with all that they check, on layers of two shapes."""
    for case, (count, in_features, out_features) in sizes.layers.items():
        where = f"{count} bfloat16 layers of {in_features} x {out_features} (in x out)"
        pipe = planted_layers(count, in_features, out_features)
        weights = [layer.weight.data for layer in pipe.transformer.layers]
        copies = [weight.clone() for weight in weights]
        with TemporaryDirectory() as folder:
            save_planted(pipe, Path(folder), "transformer.layers.*")
            arms = _arms(pipe, folder, weights, copies)
            times = in_turn(arms, sizes.rounds, f"weights/{case}")
            memory = in_turn(arms[1:], 1, f"weights/{case}, memory", extra_bytes) if can_measure_memory() else {}
        yield from _rows(case, where, times, memory)
        yield from _kept(case, pipe, copies)


def _arms(pipe: Any, folder: str, weights: list[Tensor], copies: list[Tensor]) -> list[Arm]:
    """Return the copy, our verbs and the stock verbs; all work on the same weights in turn."""
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

    return [
        [("copy", copy_all)],
        [
            ("fuse", lambda: fuse_unlearning_adapters(pipe)),
            ("unfuse", lambda: unfuse_unlearning_adapters(pipe)),
            (None, check),
        ],
        [
            ("fuse_lora", lambda: stock.fuse_lora(components=["transformer"])),
            ("unfuse_lora", lambda: stock.unfuse_lora(components=["transformer"])),
            (None, restore),
        ],
    ]


def _rows(case: str, where: str, times: Measured, memory: Measured) -> Iterator[Row]:
    for verb in ("fuse", "unfuse"):
        yield compare(
            f"{verb}/{case}/copy",
            f"{verb}_unlearning_adapters, rank 1, {where}, against one copy of the weights into memory that is there",
            times[verb],
            times["copy"],
            at_most=4,
            if_missed=REASONS[verb],
        )
        yield compare(
            f"{verb}/{case}/{verb}_lora",
            f"the same against diffusers' {verb}_lora of the same file, which is not exact",
            times[verb],
            times[f"{verb}_lora"],
            at_least=1,
            if_missed="it tries the way back and sums the bits, so that it can be undone exactly",
        )
        if memory:
            yield compare(
                f"{verb}/{case}/{verb}_lora-memory",
                f"largest extra resident memory of both while they run, ours with what it keeps for unfusing, {where}",
                memory[verb],
                memory[f"{verb}_lora"],
                at_most=1,
                unit="bytes",
                if_missed="what is kept for the exact way back grows with the layers; fuse_lora keeps nothing",
            )


REASONS = {
    "fuse": "per element it widens, multiplies, subtracts, rounds, tries the way back and sums the bits of both",
    "unfuse": "it reads all weights once to check them before any is changed, then widens, adds and rounds",
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
