"""What fusing keeps of models that do not fit here: by arithmetic, checked on the layers of one block of real size."""

from collections.abc import Iterator
from typing import Any

import torch
from accelerate import init_empty_weights
from diffusers import (
    FlowMatchEulerDiscreteScheduler,
    HunyuanVideoTransformer3DModel,
    WanPipeline,
    WanTransformer3DModel,
)
from torch import nn

from unlearning_adapters.pipelines.sites import Site, find_sites
from unlearning_adapters.runtime.fusing.copy_memory import CopyMemory
from unlearning_adapters.runtime.fusing.fuse import Fused, fuse_weights, new_records
from unlearning_adapters.runtime.joint.joint_edit import stack_directions

from .planted import STRENGTH, planted_direction
from .report import Row, compare
from .sizes import Sizes

# Their default configurations are those of Wan 2.1 14B and HunyuanVideo 13B.
MODELS = {"wan-14b": WanTransformer3DModel, "hunyuan-video": HunyuanVideoTransformer3DModel}
SMALL = {
    "wan-14b": {"num_layers": 2, "num_attention_heads": 1, "ffn_dim": 64, "text_dim": 32},
    "hunyuan-video": {
        "num_layers": 1,
        "num_single_layers": 1,
        "num_attention_heads": 1,
        "text_embed_dim": 32,
        "pooled_projection_dim": 16,
    },
}


def benchmark_arithmetic(sizes: Sizes) -> Iterator[Row]:
    """Compare the bytes of both records of all text sites with those of their weights."""
    small = sizes.load_blocks < 10
    for model, kind in MODELS.items():
        with init_empty_weights():
            network: Any = kind(**(SMALL[model] if small else {}))
        sites = find_sites(_holder(network), "text")
        first = next(site.block for site in sites if site.block is not None)
        block = [site for site in sites if site.block == first]
        weights, measured = sum(map(_nbytes, sites)), sum(map(_nbytes, block))
        for record in ("copy", "compact"):
            kept = sum(_kept(site, record) for site in block)
            yield compare(
                f"arithmetic/{model}/{record}",
                f'bytes that fusing with record="{record}" keeps of {len(sites)} text sites in bfloat16 at rank 1: '
                f"those measured on the text sites of one block ({len(block)}), times their part of all weights, "
                "against the bytes of all of these weights",
                [kept * weights / measured],
                [weights],
                unit="bytes",
            )


def _holder(network: Any) -> Any:
    return WanPipeline(
        tokenizer=None, text_encoder=None, vae=None, scheduler=FlowMatchEulerDiscreteScheduler(), transformer=network
    )


def _nbytes(site: Site) -> int:
    return 2 * site.in_features * site.out_features


def _kept(site: Site, record: str) -> int:
    """Return the bytes of the record of a layer of that size with random weights, fused."""
    maker = torch.Generator().manual_seed(0)
    layer = nn.Linear(site.in_features, site.out_features, bias=False).to(torch.bfloat16).requires_grad_(False)
    edit = stack_directions([planted_direction(1, site.in_features, maker)], [STRENGTH])
    weight = layer.weight.data
    (made,) = new_records([(weight, edit)], CopyMemory() if record == "copy" else None)
    fuse_weights([Fused(weight, made, site.name)])
    return made.nbytes
