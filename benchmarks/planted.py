"""Adapters and networks made up to size: what they cost does not depend on what they forget."""

import copy
from collections.abc import Mapping
from pathlib import Path

import torch
from diffusers import (
    ConfigMixin,
    DiffusionPipeline,
    FlowMatchEulerDiscreteScheduler,
    ModelMixin,
    WanPipeline,
    WanTransformer3DModel,
)
from diffusers.configuration_utils import register_to_config
from diffusers.loaders import PeftAdapterMixin
from diffusers.loaders.lora_base import LoraBaseMixin
from torch import Tensor, nn

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.pipelines.sites import find_sites, site_module

from .sizes import Sizes

# As the directions that `ridge` finds on ShapeWorld: |read| |write| = 2 (1.9 to 2.1), strength 1.25 (1.05 to 1.35).
GAIN = 2.0
STRENGTH = 1.25


class Layers(ModelMixin, ConfigMixin, PeftAdapterMixin):  # type: ignore[misc]
    """A denoiser of nothing but Linear layers, with diffusers' own LoRA verbs.

    Args:
        count: Number of layers.
        in_features: Width of their input.
        out_features: Width of their output.
    """

    @register_to_config
    def __init__(self, count: int, in_features: int, out_features: int) -> None:
        super().__init__()
        self.layers = nn.ModuleList(
            nn.Linear(in_features, out_features, device="meta", dtype=torch.bfloat16) for _ in range(count)
        )


class LayersPipeline(DiffusionPipeline, LoraBaseMixin):  # type: ignore[misc]
    """A pipeline around such a denoiser, with diffusers' own `fuse_lora` and `unfuse_lora`."""

    _lora_loadable_modules = ["transformer"]

    def __init__(self, transformer: Layers) -> None:
        super().__init__()
        self.register_modules(transformer=transformer)


def planted_layers(count: int, in_features: int, out_features: int) -> LayersPipeline:
    """Return a pipeline with layers of random bfloat16 weights."""
    maker = torch.Generator().manual_seed(0)
    network = Layers(count, in_features, out_features).to_empty(device="cpu")
    for parameter in network.parameters():
        parameter.data.normal_(0, in_features**-0.5, generator=maker)
    return LayersPipeline(network.requires_grad_(False))


def wan_pipeline(sizes: Sizes, blocks: int, feed_forward: int) -> WanPipeline:
    """Return a `WanPipeline` with a bfloat16 denoiser of real widths, but few blocks, and nothing else."""
    transformer = WanTransformer3DModel(
        num_attention_heads=sizes.heads,
        attention_head_dim=128,
        text_dim=sizes.text[1],
        ffn_dim=feed_forward,
        num_layers=blocks,
    )
    for name, parameter in transformer.named_parameters():
        # As `from_pretrained` does it: norms and time stay in float32.
        if not set(name.split(".")) & set(transformer._keep_in_fp32_modules):
            parameter.data = parameter.data.bfloat16()
    return WanPipeline(
        tokenizer=None,
        text_encoder=None,
        vae=None,
        scheduler=FlowMatchEulerDiscreteScheduler(),
        transformer=transformer.eval().requires_grad_(False),
    )


def with_shared_weights(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """Return a pipeline with a denoiser of its own modules that hold the very same weights."""
    shared: dict[int, Tensor] = {id(tensor): tensor for tensor in pipe.transformer.parameters()}
    components = {**pipe.components, "transformer": copy.deepcopy(pipe.transformer, shared)}
    return type(pipe)(**components)


def planted_direction(rank: int, in_features: int, maker: torch.Generator) -> Direction:
    """Return an oblique direction with `|read| |write| = GAIN` and `read @ write.T` the identity."""
    write, aside = torch.linalg.qr(torch.randn(in_features, 2 * rank, generator=maker)).Q.T.split(rank)
    return Direction((write + (GAIN**2 - 1) ** 0.5 * aside).contiguous(), write.contiguous())


def planted_adapter(
    weights: Mapping[str, Tensor], rank: int = 1, seed: int = 1, shared: bool = False
) -> UnlearningAdapter:
    """Return an adapter with a random direction for each weight, and its stock LoRA factors.

    Args:
        weights: The weights, by site.
        rank: Rows of each direction.
        seed: Of the directions.
        shared: Whether all sites have the same direction, as sites that read the same have.
    """
    maker = torch.Generator().manual_seed(seed)
    (width, *others) = {weight.shape[1] for weight in weights.values()} if shared else (0,)
    one = planted_direction(rank, width, maker) if shared and not others else None
    directions = {site: one or planted_direction(rank, weight.shape[1], maker) for site, weight in weights.items()}
    factors = {
        site: -STRENGTH * (weight.float() @ directions[site].write.T).contiguous() for site, weight in weights.items()
    }
    info = AdapterInfo(concept="planted", method="random", strength=STRENGTH, pipeline="benchmark")
    return UnlearningAdapter(info, directions, factors)


def save_planted(pipe: DiffusionPipeline, folder: Path, sites: str = "text") -> int:
    """Save an adapter of rank 1 for the sites of a pipeline; return their number."""
    names = [site.name for site in find_sites(pipe, sites)]
    planted_adapter({name: site_module(pipe, name).weight for name in names}).save_pretrained(folder)
    return len(names)
