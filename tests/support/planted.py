"""Adapters planted on the tiny Wan pipeline, its output for fixed inputs, and what it carries besides its weights."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from diffusers import WanPipeline
from reference import dense_added, dense_edit
from tiny import TEXT_DIM, tiny_wan_pipeline
from torch import Tensor, nn

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.building.video.sites import find_video_sites
from unlearning_adapters.pipelines.sites import base_linear, find_sites, site_module

INT = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}


def bits(tensor: Tensor) -> Tensor:
    """A copy of a tensor's bits: tells -0.0 from 0.0."""
    return tensor.detach().clone(memory_format=torch.contiguous_format).view(INT[tensor.element_size()])


def direction(in_features: int, rank: int = 1, seed: int = 0, oblique: bool = True) -> Direction:
    """A random direction; an oblique one also writes what it does not read."""
    maker = torch.Generator().manual_seed(seed)
    basis = torch.linalg.qr(torch.randn(in_features, 2 * rank, generator=maker, dtype=torch.float64))[0].T
    read = basis[:rank]
    return Direction(read.float(), (read + 0.5 * basis[rank:]).float() if oblique else read.float())


def additive_direction(in_features: int, rank: int = 3, seed: int = 0, gain: float = 1.0) -> Direction:
    """A random additive direction, such as a build with scope="concept" finds at video tokens."""
    maker = torch.Generator().manual_seed(seed)
    read, write = torch.randn(2, rank, in_features, generator=maker) / in_features**0.5
    return Direction(read, 0.7 * write, gain=gain, additive=True)


def planted(
    pipe: WanPipeline,
    concept: str = "red",
    *,
    seed: int = 0,
    rank: int = 1,
    strength: float = 1.0,
    sites: str = "text",
    scope: str = "word",
) -> UnlearningAdapter:
    """An adapter with a random direction per site and the exact stock factors of this pipeline.

    Of scope "concept" it has additive directions at the video tokens as well, which act whole at its strength.
    """
    directions = {
        site.name: direction(site.in_features, rank, seed=1000 * seed + number)
        for number, site in enumerate(find_sites(pipe, sites))
    }
    for number, site in enumerate(find_video_sites(pipe) if scope == "concept" else ()):
        directions[site.name] = additive_direction(site.in_features, seed=1000 * seed + 500 + number, gain=1 / strength)
    factors = {}
    for site, each in directions.items():
        weight = base_linear(site_module(pipe, site)).weight.detach().double()
        factors[site] = (-strength * each.gain * weight @ each.write.double().T).float()
    info = AdapterInfo(concept=concept, method="ridge", strength=strength, base_model="tiny/wan")
    return UnlearningAdapter(info, directions, factors)


@torch.no_grad()
def output(pipe: WanPipeline, component: str = "transformer", *, scale: float | None = None) -> Tensor:
    """What a denoiser predicts for a fixed input; `scale` is the one of `attention_kwargs`."""
    denoiser = getattr(pipe, component)
    maker = torch.Generator().manual_seed(0)
    latents, prompt = (torch.randn(shape, generator=maker) for shape in ((1, 16, 2, 4, 4), (1, 12, TEXT_DIM)))
    dtype = denoiser.patch_embedding.weight.dtype
    options = {} if scale is None else {"attention_kwargs": {"scale": scale}}
    return denoiser(latents.to(dtype), torch.tensor([500]), prompt.to(dtype), return_dict=False, **options)[0]


def reference_output(
    *adapters: tuple[UnlearningAdapter, float], lora: Mapping[str, Tensor] | None = None, **pipeline: Any
) -> Tensor:
    """The same of a fresh pipeline with the joint edit, after a LoRA, in its weights, by dense matrices in float64."""
    pipe = tiny_wan_pipeline(**pipeline)
    sites = dict.fromkeys(site for adapter, _ in adapters for site in adapter.sites)
    paths = [key.removesuffix(".lora_A.weight") for key in lora or () if key.endswith("lora_A.weight")]
    for site in dict.fromkeys((*sites, *paths)):
        linear = site_module(pipe, site)
        weight = linear.weight.data.double()
        if site in paths:
            weight = weight + lora[f"{site}.lora_B.weight"].double() @ lora[f"{site}.lora_A.weight"].double()
        found = [(adapter.directions[site], strength) for adapter, strength in adapters if site in adapter.directions]
        here = [(each, strength * each.gain) for each, strength in found if each.gain]
        if here:
            reads, writes = ([getattr(d, part).double().numpy() for d, _ in here] for part in ("read", "write"))
            dense = dense_added if all(each.additive for each, _ in here) else dense_edit
            weight = weight @ torch.from_numpy(dense(reads, writes, [strength for _, strength in here]))
        linear.weight.data = weight.to(linear.weight.dtype)
    return output(pipe)


def lora_that_reads(adapter: UnlearningAdapter, pipe: WanPipeline, others: Iterable[str] = (), gain: float = 20.0):
    """A style LoRA in the stock format that reads just what an adapter removes, at its sites and at others."""
    maker = torch.Generator().manual_seed(9)
    factors = {}
    for site in (*adapter.sites, *others):
        weight = base_linear(site_module(pipe, site)).weight
        known = adapter.directions.get(site)
        read = known.read if known else torch.randn(1, weight.shape[1], generator=maker) / weight.shape[1] ** 0.5
        factors[f"{site}.lora_A.weight"] = read.clone()
        factors[f"{site}.lora_B.weight"] = gain * torch.randn(weight.shape[0], len(read), generator=maker) / 10
    return factors


def snapshot(pipe: WanPipeline) -> dict[str, Any]:
    """Everything about the denoisers that a failed call, or a removal, must leave as it was."""
    taken: dict[str, Any] = {}
    for component in ("transformer", "transformer_2"):
        denoiser = getattr(pipe, component, None)
        if isinstance(denoiser, nn.Module):
            for name, module in denoiser.named_modules():
                registry = module.__dict__.get("_diffusers_hook")
                hooks = {} if registry is None else {key: id(hook) for key, hook in registry.hooks.items()}
                taken[f"{component}.{name}"] = (id(module), sorted(module.__dict__), hooks)
            for name, tensor in denoiser.state_dict().items():
                taken[f"{component}.{name}:"] = (tensor.data_ptr(), tensor.dtype, bits(tensor).numpy().tobytes())
            editor = denoiser.__dict__.get("_unlearning_adapters")
            if editor is not None:
                stack = editor.stack
                strengths = {name: item.strength for name, item in stack.loaded.items()}
                taken[f"{component}:stack"] = (strengths, stack.active, stack.fused, stack.enabled)
                taken[f"{component}:edits"] = {
                    path: (live.on, *(bits(part).numpy().tobytes() for part in (live.edit.read, live.edit.mix)))
                    for path, live in editor.hooks.sites.items()
                }
                taken[f"{component}:fused"] = {
                    path: bits(record.after).numpy().tobytes() for path, (_, record) in editor.records.items()
                }
    return taken


CLOSE = {torch.float32: 2e-6, torch.bfloat16: 4e-2, torch.float16: 4e-3}


def close(one: torch.Tensor, other: torch.Tensor) -> bool:
    return bool((one.float() - other.float()).abs().max() <= CLOSE[one.dtype] * (1 + other.abs().max()))
