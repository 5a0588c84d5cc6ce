"""One of two processes that share a denoiser's sequence: python context_parallel.py RANK FOLDER writes RANK.json there.

diffusers counts accelerators before it makes its mesh, and divides by zero without one. That count is the only thing
that is replaced here: the rest is its own code, over gloo.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
from diffusers import ContextParallelConfig
from tiny import tiny_wan_pipeline

from planted import close, lora_that_reads, output, planted, reference_output

ORDERS = ("load split", "split load", "load fuse split", "split load fuse")
SIZE = 2


def split(pipe: Any) -> None:
    """Give each process half of the tokens of the video, and in attention half of the heads."""
    pipe.transformer.enable_parallelism(config=ContextParallelConfig(ulysses_degree=SIZE))


def run(order: str) -> dict[str, bool]:
    """Run one order and say what is as it should be."""
    whole = tiny_wan_pipeline()
    split(whole)
    base = output(whole)
    pipe = tiny_wan_pipeline()
    red = planted(pipe)
    for verb in order.split():
        if verb == "load":
            pipe.load_unlearning_adapter(red)
        elif verb == "fuse":
            pipe.fuse_unlearning_adapters()
        else:
            split(pipe)
    found = {
        "split is close to whole": close(base, reference_output()),
        "edited": close(output(pipe), reference_output((red, 1.0))),
        "the edit shows": not torch.allclose(output(pipe), base, atol=1e-3),
        "verified": pipe.verify_unlearning_adapters().ok,
    }
    if "fuse" in order:
        pipe.unfuse_unlearning_adapters()
        found["unfused"] = close(output(pipe), reference_output((red, 1.0)))
    pipe.set_unlearning_adapters("red", 0.4)
    found["another strength"] = close(output(pipe), reference_output((red, 0.4)))
    pipe.unload_unlearning_adapters()
    return {**found, "unloaded": torch.equal(output(pipe), base), "split stays": whole_again(pipe)}


def whole_again(pipe: Any) -> bool:
    """Whether the denoiser is still split: a second split is refused."""
    try:
        split(pipe)
    except RuntimeError as error:
        return "already applied" in str(error)
    return False


def beside_a_lora() -> dict[str, bool]:
    """A LoRA of somebody else that reads the concept, on a split denoiser, and what is left of it afterwards."""
    pipe = tiny_wan_pipeline()
    split(pipe)
    red = planted(pipe)
    style = lora_that_reads(red, pipe)
    pipe.load_lora_weights(style, adapter_name="style")
    styled = output(pipe)
    pipe.load_unlearning_adapter(red)
    found = {"reads the edited input": close(output(pipe), reference_output((red, 1.0), lora=style))}
    found["the edit shows"] = not torch.allclose(output(pipe), styled, atol=1e-3)
    pipe.unload_unlearning_adapters()
    return {**found, "the LoRA stays": torch.equal(output(pipe), styled)}


def main() -> None:
    rank, folder = int(sys.argv[1]), Path(sys.argv[2])
    import unlearning_adapters  # noqa: F401  (adds the verbs)

    torch.accelerator.device_count = lambda: SIZE
    meeting = f"file://{folder}/rendezvous"
    torch.distributed.init_process_group("gloo", init_method=meeting, rank=rank, world_size=SIZE)
    results = {**{order: run(order) for order in ORDERS}, "a LoRA": beside_a_lora()}
    (folder / f"{rank}.json").write_text(json.dumps(results), encoding="utf-8")
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main()
