"""Adapters beside a cache that another library puts on a denoiser, in each order of loading, fusing and caching."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from typing import Any

import torch
from reference import dense_edit
from tiny import CALL, tiny_wan_pipeline

from planted import close, planted
from unlearning_adapters.pipelines.sites import site_module

BLOCKS, STEPS, STRENGTH = 6, 6, 1.2
ORDERS = ("cache load", "load cache", "cache load fuse", "load fuse cache", "load cache fuse")
Step = Callable[[Any], object]


def pipeline() -> Any:
    """A tiny Wan of six blocks."""
    import unlearning_adapters  # noqa: F401  (adds the verbs)

    return tiny_wan_pipeline(layers=BLOCKS)


def sample(pipe: Any) -> torch.Tensor:
    """The latents of a seeded clip of six steps with guidance."""
    generator = torch.Generator().manual_seed(5)
    call = {**CALL, "num_inference_steps": STEPS}
    return pipe("a red circle moves left", generator=generator, output_type="latent", **call).frames


@contextmanager
def counted(pipe: Any) -> Iterator[list[int]]:
    """Count how often the keys of each block are computed."""
    counts = [0] * BLOCKS

    def count(number: int) -> Callable[..., None]:
        def hook(*_: Any) -> None:
            counts[number] += 1

        return hook

    layers = [site_module(pipe, f"transformer.blocks.{number}.attn2.to_k") for number in range(BLOCKS)]
    handles = [layer.register_forward_hook(count(number)) for number, layer in enumerate(layers)]
    yield counts
    for handle in handles:
        handle.remove()


def edited_by_hand(adapter: Any) -> Any:
    """A fresh pipeline whose weights hold the edit, by dense matrices in float64."""
    pipe = pipeline()
    for site, each in adapter.directions.items():
        layer = site_module(pipe, site)
        matrix = torch.from_numpy(dense_edit([each.read.double().numpy()], [each.write.double().numpy()], [STRENGTH]))
        layer.weight.data = (layer.weight.data.double() @ matrix).float()
    return pipe


@cache
def references(enable: Step) -> tuple[torch.Tensor, torch.Tensor, list[int], torch.Tensor]:
    """The clip of the base, that of the cached base with the calls of its blocks, and that of cached edited weights."""
    bare = pipeline()
    reference, base = edited_by_hand(planted(bare)), sample(bare)
    enable(bare)
    cached = sample(bare)
    with counted(bare) as calls:
        sample(bare)
    enable(reference)
    return base, cached, calls, sample(reference)


def run(order: str, enable: Step, disable: Step | None) -> dict[str, Any]:
    """Run one order, take everything off again, and say what was seen.

    Args:
        order: One of `ORDERS`.
        enable: Puts the cache on a pipeline.
        disable: Takes it off, None if that cannot be done.

    Returns:
        Whether the clip is that of a cached pipeline with the edit in its weights ("right"), a second call gives the
        same bits ("again"), unloading gives the bits of the cached base ("unloaded") with the cache on ("cached"),
        taking the cache off gives the bits of the base ("bare"); and how often each block computed its keys ("calls").
    """
    base, cached, calls_cached, expected = references(enable)
    pipe = pipeline()
    adapter = planted(pipe)
    for step in order.split():
        if step == "cache":
            enable(pipe)
        elif step == "load":
            pipe.load_unlearning_adapter(adapter, strength=STRENGTH)
        else:
            pipe.fuse_unlearning_adapters()
    found: dict[str, Any] = {"right": close(first := sample(pipe), expected), "again": torch.equal(sample(pipe), first)}
    found["moved"] = float((first - cached).norm() / cached.norm())
    if "fuse" in order:
        pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    with counted(pipe) as calls:
        found["unloaded"] = torch.equal(sample(pipe), cached)
    found |= {"calls": calls, "cached": calls == calls_cached}
    if disable is not None:
        disable(pipe)
        found["bare"] = torch.equal(sample(pipe), base)
    return found
