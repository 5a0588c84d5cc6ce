"""Stacks of 1 to 100 adapters on one pipeline: a denoiser call, the joint solve, load, fuse, export and unload."""

import copy
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.pipelines.sites import find_sites, site_module
from unlearning_adapters.runtime.joint.joint_edit import solved_edit
from unlearning_adapters.runtime.verbs import (
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
    unload_unlearning_adapters,
)

from .measure import in_turn
from .planted import planted_adapter, planted_direction, wan_pipeline, with_shared_weights
from .report import Row, compare
from .sizes import Sizes

SOLVE_SECONDS = 2.0
CALL_AT_MOST, LOAD_AT_MOST = 1.05, 5.0


def benchmark_stacks(sizes: Sizes) -> Iterator[Row]:
    """Yield the curve of attached stacks, and what the verbs cost with the largest of them."""
    yield from _solve(sizes)
    yield from _calls(sizes)
    yield from _verbs(sizes)


def _solve(sizes: Sizes) -> Iterator[Row]:
    count, width, sites = max(sizes.stacks), 128 * sizes.heads, 2 * sizes.load_blocks
    maker = torch.Generator().manual_seed(0)
    stacks = [[planted_direction(1, width, maker) for _ in range(count)] for _ in range(sites)]

    def solve() -> None:
        for directions in stacks:
            solved_edit(directions, [1.0] * count)

    times = in_turn([[("solve", solve)]], sizes.rounds, "stacks/solve")
    yield compare(
        f"stack/solve/{count}",
        f"the joint solve of {count} directions of rank 1 at {sites} sites of {width} features, against the "
        f"{SOLVE_SECONDS:g} s that it may take",
        times["solve"],
        [SOLVE_SECONDS],
        at_most=1,
        if_missed="each site has other directions, and is solved by itself in float64",
    )


def _adapters(pipe: Any, count: int, shared: bool) -> list[UnlearningAdapter]:
    """Return adapters with random directions; shared ones are the same at all sites, as built ones are in Wan."""
    names = [site.name for site in find_sites(pipe, "text")]
    weights = {name: site_module(pipe, name).weight for name in names}
    made = []
    for seed in range(count):
        adapter = planted_adapter(weights, seed=seed, shared=shared)
        made.append(adapter)
    return made


def _calls(sizes: Sizes) -> Iterator[Row]:
    maker = torch.Generator().manual_seed(0)
    base = wan_pipeline(sizes, sizes.blocks, sizes.feed_forward)
    inputs = (
        torch.randn(1, 16, *sizes.latents, generator=maker).bfloat16(),
        torch.tensor([500]),
        torch.randn(1, *sizes.text, generator=maker).bfloat16(),
    )
    adapters = _adapters(base, max(sizes.stacks), shared=True)
    pipes: dict[str, Any] = {"base": base}
    for count in sizes.stacks:
        pipes[f"{count}"] = with_shared_weights(base)
        _load(pipes[f"{count}"], adapters[:count])
    fused = type(base)(**{**base.components, "transformer": copy.deepcopy(base.transformer)})
    _load(fused, adapters)
    fuse_unlearning_adapters(fused)
    pipes["fused"] = fused

    def call(pipe: Any) -> None:
        with torch.no_grad():
            pipe.transformer(*inputs, return_dict=False)

    arms = [[(name, lambda pipe=pipe: call(pipe))] for name, pipe in pipes.items()]
    times = in_turn(arms, sizes.rounds, "stacks/calls")
    tokens = sizes.latents[0] * (sizes.latents[1] // 2) * (sizes.latents[2] // 2)
    where = (
        f"one call of a bfloat16 Wan denoiser {128 * sizes.heads} wide with {sizes.blocks} blocks, {tokens} video and "
        f"{sizes.text[0]} text tokens"
    )
    for count in sizes.stacks:
        largest = count == max(sizes.stacks)
        yield compare(
            f"stack/call/{count}",
            f"{where}, {count} adapters attached, against the base",
            times[f"{count}"],
            times["base"],
            at_most=CALL_AT_MOST if largest else None,
            if_missed="two products of float32 per site, with as many rows as there are adapters, for each text token",
        )
    yield compare(
        f"stack/call/{max(sizes.stacks)}-fused",
        f"{where}, {max(sizes.stacks)} adapters fused, against the base",
        times["fused"],
        times["base"],
    )


def _load(pipe: Any, sources: Sequence[Any]) -> None:
    for index, source in enumerate(sources):
        load_unlearning_adapter(pipe, source, f"a{index}")


def _verbs(sizes: Sizes) -> Iterator[Row]:
    count, width = max(sizes.stacks), 128 * sizes.heads
    pipe = wan_pipeline(sizes, sizes.load_blocks, feed_forward=width)
    stock = with_shared_weights(pipe)
    sites = len(find_sites(pipe, "text"))
    with TemporaryDirectory() as name:
        folder = Path(name)
        files = []
        for index, adapter in enumerate(_adapters(pipe, count, shared=True)):
            files.append(adapter.save_pretrained(folder / f"a{index}.safetensors"))
        exported = iter(range(10**6))

        def load_stock() -> None:
            for index, file in enumerate(files):
                stock.load_lora_weights(folder, weight_name=file.name, adapter_name=f"a{index}")

        arms = [
            [
                ("load", lambda: _load(pipe, files)),
                ("fuse", lambda: fuse_unlearning_adapters(pipe)),
                ("unfuse", lambda: unfuse_unlearning_adapters(pipe)),
                ("unload", lambda: unload_unlearning_adapters(pipe)),
                ("export", lambda: export_lora(files, folder / f"lora-{next(exported)}")),
            ],
            [
                ("load_lora_weights", load_stock),
                ("unload_lora_weights", stock.unload_lora_weights),
            ],
        ]
        times = in_turn(arms, sizes.stack_rounds, "stacks/verbs", warm_up=0)
    where = f"{count} files of rank 1 at {sites} sites of {width} features"
    yield compare(
        f"stack/load/{count}",
        f"load_unlearning_adapter of {where} one after the other, against a loop of load_lora_weights",
        times["load"],
        times["load_lora_weights"],
        at_most=LOAD_AT_MOST,
        if_missed="the joint edit of all is solved again with each file",
    )
    for verb, what in (
        ("unload", "unload_unlearning_adapters, against unload_lora_weights"),
        ("fuse", "fuse_unlearning_adapters, against loading them as LoRAs"),
        ("unfuse", "unfuse_unlearning_adapters, against loading them as LoRAs"),
        ("export", "export_lora of the files, against loading them as LoRAs"),
    ):
        other = "unload_lora_weights" if verb == "unload" else "load_lora_weights"
        yield compare(f"stack/{verb}/{count}", f"{where}: {what}", times[verb], times[other])
