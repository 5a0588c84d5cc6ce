"""LoRA factors under the names of a layout: one pair for a layer that several layers of diffusers are parts of.

The parts of B stand under each other, and equal rows of A are shared. `lora_B @ lora_A` stays what it is, number by
number.
"""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from unlearning_adapters.errors import ConfigError, SiteError
from unlearning_adapters.export.names.families import FAMILIES, family_of

from .layout import Layout

Factors = tuple[Tensor, Tensor]  # lora_A of shape (r, in_features), lora_B of shape (out_features, r)

_QKV = 3  # the first three parts of a fused layer are as wide as each other; a fourth is the feed-forward


def factors_in(layout: Layout, denoiser: str, factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """Return a LoRA's factors by the names, and in the shapes, of a layout.

    Args:
        layout: The layout.
        denoiser: Class name of the denoiser, such as "WanTransformer3DModel".
        factors: `lora_A` and `lora_B` by the path of the layer in it, such as "blocks.0.attn2.to_k".

    Returns:
        Factors by the layer's name in the layout, its prefix included.

    Raises:
        ConfigError: If the layout has no names for this denoiser.
        SiteError: If it has none for a layer, or the height of a part of a fused layer is not known.
    """
    merged: dict[str, dict[int, Factors]] = {}
    sizes: dict[str, int] = {}
    for path, pair in factors.items():
        part = layout.names(denoiser, path)
        if part is None:
            raise _without_a_name(layout, denoiser, path)
        merged.setdefault(part.layer, {})[part.number] = pair
        sizes[part.layer] = part.of
    by_layer = {layer: _merge(layer, parts, sizes[layer]) for layer, parts in merged.items()}
    return {**by_layer, **_companions(denoiser, by_layer)} if layout.companions else by_layer


def _without_a_name(layout: Layout, denoiser: str, path: str) -> ConfigError | SiteError:
    family = family_of(denoiser)
    if family is None:
        names = ", ".join(name for each in FAMILIES.values() for name in each.denoisers)
        return ConfigError(
            f"The layout {layout.name!r} is known for {names}, but not for {denoiser or 'an unknown denoiser'}. "
            "Export it in the layout 'diffusers'."
        )
    return SiteError(
        f"The layer {path!r} of {denoiser} has no name in the layout {layout.name!r}. "
        "Export it in the layout 'diffusers', or build the adapter without it."
    )


def _merge(layer: str, parts: Mapping[int, Factors], of: int) -> Factors:
    """Return one pair of factors for a layer that several layers of diffusers are parts of."""
    if of == 1:
        return parts[0]
    heights = _heights(layer, parts, of)
    reads: list[Tensor] = []
    for lora_A, _ in parts.values():
        if not any(torch.equal(lora_A, other) for other in reads):
            reads.append(lora_A)
    starts = [sum(len(read) for read in reads[:number]) for number in range(len(reads))]
    lora_B = torch.zeros(sum(heights), sum(len(read) for read in reads), dtype=torch.float32, device="cpu")
    for number, (lora_A, part_B) in parts.items():
        top, left = sum(heights[:number]), starts[[torch.equal(lora_A, read) for read in reads].index(True)]
        lora_B[top : top + heights[number], left : left + len(lora_A)] = part_B
    return torch.cat(reads), lora_B


def _heights(layer: str, parts: Mapping[int, Factors], of: int) -> Sequence[int]:
    """Return the number of rows of each part: q, k and v have as many as each other."""
    if of > _QKV and _QKV not in parts:
        raise SiteError(
            f"The layer {layer!r} holds the attention and the feed-forward of a block, and the width of the latter is "
            "not known from the adapter. Export it in the layout 'diffusers', or build it for `proj_mlp` too."
        )
    # A model that fuses attention and feed-forward has attention as wide as what both read.
    heights = [len(lora_B) for number, (_, lora_B) in parts.items() if number < _QKV]
    height = heights[0] if heights else int(parts[_QKV][0].shape[1])
    return [len(parts[number][1]) if number in parts else height for number in range(of)]


def _companions(denoiser: str, factors: Mapping[str, Factors]) -> dict[str, Factors]:
    """Return zero factors for layers without which diffusers' converters do not know the file, or a part of it."""
    if denoiser.startswith("HunyuanVideo"):
        if any("img_attn_qkv" in layer for layer in factors):
            return {}
        layer, (lora_A, lora_B) = next(iter(factors.items()))
        width = int(lora_A.shape[1] if layer.endswith(("qkv", "fc1", "linear1")) else lora_B.shape[0])
        prefix = layer.partition(".")[0]
        return {f"{prefix}.double_blocks.0.img_attn_qkv": (lora_A.new_zeros(1, width), lora_B.new_zeros(3 * width, 1))}
    images = {layer[-5:]: layer for layer in factors if layer.endswith(("k_img", "v_img"))}
    if len(images) == 1:  # diffusers reads both or neither
        ((end, layer),) = images.items()
        twin = layer.removesuffix(end) + ("v_img" if end == "k_img" else "k_img")
        return {twin: (torch.zeros_like(factors[layer][0]), torch.zeros_like(factors[layer][1]))}
    return {}
