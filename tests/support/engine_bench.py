"""Adapters on the weights of an engine's own model, the file that is exported for it, and what it makes of that file.

The weights come from the engine. diffusers' converters for single files, which know nothing of this package, give them
the names of diffusers, before and after the engine has applied the file.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from diffusers.loaders import single_file_utils as single_file
from torch import Tensor, nn

from planted import direction
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import AdapterInfo
from unlearning_adapters.runtime.fusing.fuse import fuse_edit
from unlearning_adapters.runtime.joint.joint_edit import stack_directions

Weights = Mapping[str, Tensor]


@dataclass(frozen=True)
class Family:
    """A family in these tests: the class, the sites that are edited, and who turns the names."""

    denoiser: str
    sites: Sequence[str]
    convert: Callable[[dict[str, Tensor]], dict[str, Tensor]]


def _hunyuan(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """ComfyUI has other names within the blocks than the release, which `process_unet_state_dict` turns."""
    pairs = (
        (".mlp.in_layer.", ".mlp.0."), ("_attn.qkv.", "_attn_qkv."), ("_attn.proj.", "_attn_proj."),
        ("_mod.lin.", "_mod.linear."), ("_attn.norm.query_norm.scale", "_attn_q_norm.weight"),
        ("_attn.norm.key_norm.scale", "_attn_k_norm.weight"), ("_mlp.0.", "_mlp.fc1."), ("_mlp.2.", "_mlp.fc2."),
        (".modulation.lin.", ".modulation.linear."),
    )  # fmt: skip
    renamed = {}
    for name, value in weights.items():
        for ours, theirs in pairs:
            name = name.replace(ours, theirs)
        renamed[name] = value
    return renamed


def hunyuan_by_parts(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    """The attention of the two-stream blocks, with q, k and v apart, as diffusers' converter does it."""
    found = {}
    for name, value in _hunyuan(weights).items():
        if not (name.startswith("double_blocks.") and name.endswith(".weight")):
            continue
        block, leaf = name.split(".")[1:3]
        kinds = {"img_attn_qkv": "to_{}", "txt_attn_qkv": "add_{}_proj"}
        if leaf in kinds:
            for part, rows in zip("qkv", value.chunk(3), strict=True):
                found[f"transformer_blocks.{block}.attn.{kinds[leaf].format(part)}.weight"] = rows
        if leaf == "txt_attn_proj":
            found[f"transformer_blocks.{block}.attn.to_add_out.weight"] = value
    return {**found, "context_embedder.proj_in.weight": weights["txt_in.input_embedder.weight"]}


def _ltx(weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name.replace("q_norm", "norm_q"): value for name, value in weights.items() if "blocks" in name}


WAN = [
    *(f"blocks.{block}.attn2.to_{leaf}" for block in (0, 1) for leaf in "kv"),
    "blocks.0.attn1.to_q",
    "blocks.1.ffn.net.0.proj",
    "blocks.1.attn2.to_out.0",
]
HUNYUAN = [
    *(f"transformer_blocks.{block}.attn.add_{leaf}_proj" for block in (0, 1) for leaf in "qkv"),
    "transformer_blocks.1.attn.to_k",
    "transformer_blocks.1.attn.to_add_out",
]
FAMILIES = {
    "wan": Family("WanTransformer3DModel", WAN, single_file.convert_wan_transformer_to_diffusers),
    "wan-image": Family(
        "WanTransformer3DModel",
        [f"blocks.1.attn2.add_{leaf}_proj" for leaf in "kv"],
        single_file.convert_wan_transformer_to_diffusers,
    ),
    "wan-vace": Family(
        "WanVACETransformer3DModel",
        [*WAN, "vace_blocks.0.attn2.to_k"],
        single_file.convert_wan_transformer_to_diffusers,
    ),
    "hunyuan-video": Family("HunyuanVideoTransformer3DModel", [*HUNYUAN, "context_embedder.proj_in"], hunyuan_by_parts),
    "hunyuan-video-1.5": Family("HunyuanVideo15Transformer3DModel", HUNYUAN, hunyuan_by_parts),
    "ltx-2": Family(  # the names are the same there
        "LTX2VideoTransformer3DModel",
        [
            *(
                f"transformer_blocks.{block}.{name}.to_{leaf}"
                for block in (0, 1)
                for name in ("attn2", "audio_attn2")
                for leaf in "kv"
            ),
            "transformer_blocks.1.ff.net.2",
        ],
        dict,
    ),
    "ltx": Family(
        "LTXVideoTransformer3DModel",
        [*(f"transformer_blocks.0.attn2.to_{leaf}" for leaf in "kv"), "transformer_blocks.1.ff.net.2"],
        _ltx,
    ),
}


def adapters_for(family: str, weights: Weights, component: str = "transformer") -> list[UnlearningAdapter]:
    """Two adapters that overlap, with the stock factors of these weights (names of diffusers); one is of rank 2."""
    made = []
    for number, (concept, strength) in enumerate((("red", 1.3), ("left", 0.8))):
        directions, factors = {}, {}
        for place, path in enumerate(FAMILIES[family].sites):
            weight = weights[f"{path}.weight"].double()
            one = direction(weight.shape[1], 1 + number, seed=100 * number + (place if "add_" not in path else 0))
            site = f"{component}.{path}"
            directions[site] = one
            factors[site] = (-strength * weight @ one.write.double().T).float()
        kinds = {component: FAMILIES[family].denoiser}
        info = AdapterInfo(concept, "ridge", strength=strength, base_model="tiny/base", denoisers=kinds)
        made.append(UnlearningAdapter(info, directions, factors))
    return made


def fused(
    weights: Weights, adapters: Sequence[UnlearningAdapter], dtype: torch.dtype = torch.float32
) -> dict[str, Tensor]:
    """What this package fuses into these weights."""
    after = {}
    for site in adapters[0].sites:
        path = site.partition(".")[2]
        layer = nn.Linear(1, 1, bias=False)
        layer.weight = nn.Parameter(weights[f"{path}.weight"].to(dtype).clone(), requires_grad=False)
        edit = stack_directions([each.directions[site] for each in adapters], [each.strength for each in adapters])
        fuse_edit(layer, edit, site)
        after[f"{path}.weight"] = layer.weight.detach()
    return after


def put_back(family: str, native: Weights, changed: Weights) -> dict[str, Tensor]:
    """Return an engine's weights with some of them replaced.

    Args:
        family: A family of `FAMILIES`.
        native: All weights, by the engine's names.
        changed: New weights, by the names of diffusers.
    """
    weights = {name: value.clone() for name, value in native.items()}
    turned = FAMILIES[family].convert(dict(native))
    theirs = {id(value): name for name, value in native.items()}
    for name, value in changed.items():
        found = theirs.get(id(turned[name]))
        if found is not None:
            weights[found] = value.clone()
            continue
        block, layer = name.split(".")[1], name.split(".")[3]  # a part of a layer of HunyuanVideo
        stream, part = ("img", layer[-1]) if layer.startswith("to_") else ("txt", layer.split("_")[1])
        whole, number = weights[f"double_blocks.{block}.{stream}_attn.qkv.weight"], "qkv".index(part)
        whole.chunk(3)[number].copy_(value)
    return weights


def compare(before: Weights, after: Weights, expected: Weights) -> dict[str, Any]:
    """How far the engine's weights are from ours, as a share of the largest number of the weight, and of the edit."""
    deviation, effect, differing, total = 0.0, float("inf"), 0, 0
    for name, ours in expected.items():
        largest = float(ours.double().abs().max())
        deviation = max(deviation, float((after[name].double() - ours.double()).abs().max()) / largest)
        effect = min(effect, float((after[name].double() - before[name].double()).abs().max()) / largest)
        differing += int((after[name].to(ours.dtype) != ours).sum())
        total += ours.numel()
    untouched = [name for name in before if name not in expected and name in after]
    changed = sum(not torch.equal(before[name], after[name]) for name in untouched)
    return {"deviation": deviation, "effect": effect, "differing": differing / total, "others_changed": changed}
