"""Adapters on a denoiser whose sequence two processes share: diffusers' context parallelism, over gloo on a CPU."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import context_parallel
import pytest
from fresh import Copy

WORKER = Path(context_parallel.__file__)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, dict[str, bool]]]:
    """What each of the two processes found."""
    folder = tmp_path_factory.mktemp("ranks")
    running = [
        Copy(WORKER, rank, folder, path=[*filter(None, sys.path)], CUDA_VISIBLE_DEVICES="")
        for rank in range(context_parallel.SIZE)
    ]
    try:
        for process in running:
            code, _, said = process.communicate()
            assert code == 0, said[-3000:]
    finally:
        for process in running:
            process.kill()
    return [json.loads((folder / f"{rank}.json").read_text(encoding="utf-8")) for rank in range(len(running))]


@pytest.mark.slow
@pytest.mark.parametrize("order", context_parallel.ORDERS)
def test_each_half_is_edited_and_the_base_comes_back_bit_for_bit(
    ranks: list[dict[str, dict[str, bool]]], order: str
) -> None:
    for rank, found in enumerate(ranks):
        assert found[order] == dict.fromkeys(found[order], True), (rank, found[order])
        assert len(found[order]) == 7 + ("fuse" in order)


@pytest.mark.slow
def test_a_lora_of_others_stays_and_reads_the_edited_input(ranks: list[dict[str, dict[str, bool]]]) -> None:
    for found in ranks:
        assert found["a LoRA"] == dict.fromkeys(("reads the edited input", "the edit shows", "the LoRA stays"), True), (
            found["a LoRA"]
        )
