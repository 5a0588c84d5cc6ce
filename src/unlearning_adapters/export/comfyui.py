"""LoRA factors under the names that ComfyUI knows: those of the models' first releases, before diffusers renamed them.

Where the first release has one layer for several of diffusers' (`txt_attn_qkv` for `add_q_proj`, `add_k_proj` and
`add_v_proj`), their factors become one pair: the parts of B stand under each other, and equal rows of A are shared.
The names are those of ComfyUI's own models, and diffusers' converters turn them back; docs/format.md 10 lists them.
"""

import re
from collections.abc import Callable, Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from unlearning_adapters.errors import ConfigError, SiteError

Factors = tuple[Tensor, Tensor]  # lora_A of shape (r, in_features), lora_B of shape (out_features, r)

PREFIX = "diffusion_model"
_QKV = ("q", "k", "v")


class _Part(NamedTuple):
    """Which rows of which layer a layer of diffusers is, of how many parts."""

    layer: str
    number: int = 0
    of: int = 1


def comfyui_lora(denoiser: str, factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """Return a LoRA's factors by the names and in the shapes of ComfyUI, such as `blocks.0.cross_attn.k`.

    The product `lora_B @ lora_A` of each layer stays what it is, number by number.

    Args:
        denoiser: Class name of the denoiser, such as "WanTransformer3DModel".
        factors: `lora_A` and `lora_B` by the path of the layer in it, such as "blocks.0.attn2.to_k".

    Returns:
        Factors by name, without the prefix "diffusion_model.".

    Raises:
        ConfigError: If the layout is not known for this denoiser.
        SiteError: If a layer has no name in it that diffusers reads too.
    """
    if denoiser not in _NAMES:
        raise ConfigError(
            f"The ComfyUI layout is known for {', '.join(_NAMES)}, but not for {denoiser or 'an unknown denoiser'}. "
            "Export it in the layout 'diffusers'."
        )
    merged: dict[str, dict[int, Factors]] = {}
    sizes: dict[str, int] = {}
    for path, pair in factors.items():
        part = _NAMES[denoiser](path)
        if part is None:
            raise SiteError(
                f"The layer {path!r} of {denoiser} has no name that ComfyUI and diffusers both read. "
                "Export it in the layout 'diffusers', or build the adapter without it."
            )
        merged.setdefault(part.layer, {})[part.number] = pair
        sizes[part.layer] = part.of
    found = {layer: _merge(layer, parts, sizes[layer]) for layer, parts in merged.items()}
    return {**found, **_companions(denoiser, found)}


def _merge(layer: str, parts: Mapping[int, Factors], of: int) -> Factors:
    """Return one pair of factors for a layer that several layers of diffusers are parts of."""
    if of == 1:
        return parts[0]
    heights = _heights(layer, parts, of)
    reads: list[Tensor] = []
    for lora_A, _ in parts.values():
        if not any(torch.equal(lora_A, known) for known in reads):
            reads.append(lora_A)
    starts = [sum(len(read) for read in reads[:number]) for number in range(len(reads))]
    lora_B = torch.zeros(sum(heights), sum(len(read) for read in reads))
    for number, (lora_A, part_B) in parts.items():
        top, left = sum(heights[:number]), starts[[torch.equal(lora_A, read) for read in reads].index(True)]
        lora_B[top : top + heights[number], left : left + len(lora_A)] = part_B
    return torch.cat(reads), lora_B


def _heights(layer: str, parts: Mapping[int, Factors], of: int) -> list[int]:
    """Return the number of rows of each part; q, k and v are as wide as what they read."""
    heights = [int(next(iter(parts.values()))[0].shape[1])] * of
    if of > len(_QKV) and len(_QKV) not in parts:
        raise SiteError(
            f"ComfyUI's layer {layer!r} holds the attention and the feed-forward of a block, and the width of the "
            "latter is not known from the adapter. Export it in the layout 'diffusers', or build it for `proj_mlp` too."
        )
    for number, (_, lora_B) in parts.items():
        heights[number] = int(lora_B.shape[0])
    return heights


def _companions(denoiser: str, found: Mapping[str, Factors]) -> dict[str, Factors]:
    """Return zero factors for layers without which diffusers' converter does not know the file, or a part of it."""
    if denoiser.startswith("HunyuanVideo"):
        if any("img_attn_qkv" in layer for layer in found):
            return {}
        layer, (lora_A, lora_B) = next(iter(found.items()))
        reads = layer.endswith(("qkv", "fc1", "linear1"))
        width = int(lora_A.shape[1] if reads else lora_B.shape[0])
        return {"double_blocks.0.img_attn_qkv": (torch.zeros(1, width), torch.zeros(3 * width, 1))}
    images = {layer[-5:]: layer for layer in found if layer.endswith(("k_img", "v_img"))}
    if len(images) == 1:  # read together or not at all
        ((end, layer),) = images.items()
        twin = layer.removesuffix(end) + ("v_img" if end == "k_img" else "k_img")
        return {twin: (torch.zeros_like(found[layer][0]), torch.zeros_like(found[layer][1]))}
    return {}


_WAN_ATTENTION = re.compile(r"(blocks\.\d+)\.attn([12])\.(?:to_([qkv])|(to_out\.0)|add_([kv])_proj)")
_WAN_FEED_FORWARD = re.compile(r"(blocks\.\d+\.ffn)\.net\.(0\.proj|2)")


def _wan(path: str) -> _Part | None:
    if found := _WAN_ATTENTION.fullmatch(path):
        block, number, projection, out, image = found.groups()
        if image and number == "1":
            return None
        leaf = projection or (f"{image}_img" if image else "o")
        return _Part(f"{block}.{'self' if number == '1' else 'cross'}_attn.{leaf}")
    if found := _WAN_FEED_FORWARD.fullmatch(path):
        return _Part(f"{found[1]}.{found[2][0]}")
    return None


_HUNYUAN_BLOCK = re.compile(r"(single_)?transformer_blocks\.(\d+)\.(.+)")
_HUNYUAN_DOUBLE = {
    **{f"attn.to_{leaf}": ("img_attn_qkv", number, 3) for number, leaf in enumerate(_QKV)},
    **{f"attn.add_{leaf}_proj": ("txt_attn_qkv", number, 3) for number, leaf in enumerate(_QKV)},
    "attn.to_out.0": ("img_attn_proj", 0, 1),
    "attn.to_add_out": ("txt_attn_proj", 0, 1),
    "ff.net.0.proj": ("img_mlp.fc1", 0, 1),
    "ff.net.2": ("img_mlp.fc2", 0, 1),
    "ff_context.net.0.proj": ("txt_mlp.fc1", 0, 1),
    "ff_context.net.2": ("txt_mlp.fc2", 0, 1),
}
_HUNYUAN_SINGLE = {
    **{f"attn.to_{leaf}": ("linear1", number, 4) for number, leaf in enumerate(_QKV)},
    "proj_mlp": ("linear1", 3, 4),
    "proj_out": ("linear2", 0, 1),
}


def _hunyuan(path: str) -> _Part | None:
    if path == "context_embedder.proj_in":
        return _Part("txt_in.input_embedder")
    found = _HUNYUAN_BLOCK.fullmatch(path)
    if not found:
        return None
    kind, table = ("single", _HUNYUAN_SINGLE) if found[1] else ("double", _HUNYUAN_DOUBLE)
    if found[3] not in table:
        return None
    leaf, number, of = table[found[3]]
    return _Part(f"{kind}_blocks.{found[2]}.{leaf}", number, of)


_LTX = re.compile(
    r"transformer_blocks\.\d+\.(?:(?:(?:audio_)?attn[12]|audio_to_video_attn|video_to_audio_attn)"
    r"\.(?:to_[qkv]|to_out\.0)|(?:audio_)?ff\.net\.(?:0\.proj|2))"
)


def _ltx(path: str) -> _Part | None:
    return _Part(path) if _LTX.fullmatch(path) else None  # in the blocks, diffusers kept the names


_NAMES: dict[str, Callable[[str], _Part | None]] = {
    "WanTransformer3DModel": _wan,
    "SkyReelsV2Transformer3DModel": _wan,
    "HunyuanVideoTransformer3DModel": _hunyuan,
    "LTXVideoTransformer3DModel": _ltx,
    "LTX2VideoTransformer3DModel": _ltx,
}
