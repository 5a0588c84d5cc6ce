"""Names and shapes of the layouts: diffusers' converters turn those of the first releases back, bit for bit."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from diffusers.loaders.lora_pipeline import (
    HunyuanVideoLoraLoaderMixin,
    LTX2LoraLoaderMixin,
    LTXVideoLoraLoaderMixin,
    SkyReelsV2LoraLoaderMixin,
    WanLoraLoaderMixin,
)
from tiny_denoisers import TINY
from torch import Tensor

from unlearning_adapters.errors import ConfigError, SiteError
from unlearning_adapters.export.layouts import LAYOUTS
from unlearning_adapters.export.layouts.fused_layers import Factors, factors_in
from unlearning_adapters.pipelines.sites import linear_layers

READERS = {
    "WanTransformer3DModel": WanLoraLoaderMixin,
    "SkyReelsV2Transformer3DModel": SkyReelsV2LoraLoaderMixin,
    "HunyuanVideoTransformer3DModel": HunyuanVideoLoraLoaderMixin,
    "LTXVideoTransformer3DModel": LTXVideoLoraLoaderMixin,
    "LTX2VideoTransformer3DModel": LTX2LoraLoaderMixin,
}
HUNYUAN = "HunyuanVideoTransformer3DModel"
PREFIX = "diffusion_model"


def native_lora(denoiser: str, factors: dict[str, Factors], layout: str = "native-for-diffusers") -> dict[str, Factors]:
    """The factors by the names of the first release, without the prefix."""
    return {
        name.removeprefix(f"{PREFIX}."): pair for name, pair in factors_in(LAYOUTS[layout], denoiser, factors).items()
    }


def factors_for(shapes: dict[str, tuple[int, int]], rank: int = 2) -> dict[str, Factors]:
    maker = torch.Generator().manual_seed(0)
    return {
        path: (torch.randn(rank, width, generator=maker), torch.randn(height, rank, generator=maker))
        for path, (height, width) in shapes.items()
    }


def shapes_of(denoiser: str, variant: str = "") -> dict[str, tuple[int, int]]:
    tiny = next(tiny for tiny in TINY if tiny.model == denoiser and tiny.variant == variant)
    return {path: (layer.out_features, layer.in_features) for path, layer in linear_layers(tiny.make())}


def tensors_of(factors: dict[str, Factors], prefix: str) -> dict[str, Tensor]:
    found = {}
    for path, (lora_A, lora_B) in factors.items():
        found |= {f"{prefix}.{path}.lora_A.weight": lora_A, f"{prefix}.{path}.lora_B.weight": lora_B}
    return found


def read_back(denoiser: str, factors: dict[str, Factors]) -> dict[str, Tensor]:
    """What diffusers makes of the file."""
    found = READERS[denoiser].lora_state_dict(dict(tensors_of(native_lora(denoiser, factors), PREFIX)))
    return found[0] if isinstance(found, tuple) else found


def known(denoiser: str, shapes: dict[str, tuple[int, int]]) -> dict[str, tuple[int, int]]:
    """The layers that have a name in the layout."""
    found = {}
    for path, size in shapes.items():
        try:
            native_lora(denoiser, factors_for({path: size}))
        except SiteError as error:
            if "has no name" in str(error):
                continue
        found[path] = size
    return found


@pytest.mark.parametrize(
    ("denoiser", "variant"),
    [
        ("WanTransformer3DModel", ""),
        ("WanTransformer3DModel", "image keys"),
        ("SkyReelsV2Transformer3DModel", ""),
        ("LTXVideoTransformer3DModel", ""),
        ("LTX2VideoTransformer3DModel", ""),
        ("LTX2VideoTransformer3DModel", "as LTX-2.3"),
    ],
)
def test_every_layer_of_the_blocks_comes_back_bit_for_bit(denoiser: str, variant: str) -> None:
    shapes = shapes_of(denoiser, variant)
    named = known(denoiser, shapes)
    blocks = {path for path in shapes if "blocks." in path and not path.endswith("to_gate_logits")}
    assert set(named) == blocks and len(blocks) >= 20
    factors = factors_for(named)
    found, expected = read_back(denoiser, factors), tensors_of(factors, "transformer")
    assert found.keys() == expected.keys()
    assert all(torch.equal(found[name], expected[name]) for name in expected)


def test_the_names_are_those_of_comfyui() -> None:
    """Read off the modules of ComfyUI's own models, `comfy/ldm/{wan,hunyuan_video,lightricks}/model.py`."""
    renamed = {
        "WanTransformer3DModel": {
            "blocks.0.attn1.to_q": "blocks.0.self_attn.q",
            "blocks.7.attn2.to_k": "blocks.7.cross_attn.k",
            "blocks.7.attn2.to_out.0": "blocks.7.cross_attn.o",
            "blocks.12.ffn.net.0.proj": "blocks.12.ffn.0",
            "blocks.12.ffn.net.2": "blocks.12.ffn.2",
        },
        HUNYUAN: {
            "transformer_blocks.3.attn.to_out.0": "double_blocks.3.img_attn_proj",
            "transformer_blocks.3.attn.to_add_out": "double_blocks.3.txt_attn_proj",
            "transformer_blocks.3.ff_context.net.0.proj": "double_blocks.3.txt_mlp.fc1",
            "single_transformer_blocks.39.proj_out": "single_blocks.39.linear2",
            "context_embedder.proj_in": "txt_in.input_embedder",
            "transformer_blocks.3.attn.to_q": "double_blocks.3.img_attn_qkv",
        },
        "LTX2VideoTransformer3DModel": {
            "transformer_blocks.1.audio_attn2.to_v": "transformer_blocks.1.audio_attn2.to_v",
            "transformer_blocks.1.video_to_audio_attn.to_out.0": "transformer_blocks.1.video_to_audio_attn.to_out.0",
        },
    }
    for denoiser, names in renamed.items():
        found = native_lora(denoiser, factors_for(dict.fromkeys(names, (4, 4))))
        assert list(found) == list(names.values())
    images = {f"blocks.0.attn2.add_{leaf}_proj": (4, 4) for leaf in "kv"}
    found = native_lora("WanTransformer3DModel", factors_for(images))
    assert list(found) == ["blocks.0.cross_attn.k_img", "blocks.0.cross_attn.v_img"]


FORMAT = (Path(__file__).resolve().parents[2] / "docs" / "format.md").read_text(encoding="utf-8")
ROWS = re.findall(r"^\| (Wan|HunyuanVideo)[^|]* \| ([^|]+) \| ([^|]+) \|$", FORMAT, flags=re.MULTILINE)
BLOCKS = ("blocks", "transformer_blocks", "single_transformer_blocks", "double_blocks", "single_blocks")


def named_in(cell: str) -> list[str]:
    """The layers of a cell of the table, in which later names give only what differs from the first."""
    first, *others = (name.split(".") for name in re.findall(r"`([^`]+)`", cell))
    found = [first]
    for other in others:
        start = first.index(other[0]) if other[0] in first and other[0] not in BLOCKS else len(first) - 1
        found.append(other if other[0] in BLOCKS else [*first[:start], *other])
    return [".".join(parts).replace(".N.", ".1.") for parts in found]


@pytest.mark.parametrize(("family", "theirs", "ours"), ROWS)
def test_the_table_of_the_specification_is_what_is_written(family: str, theirs: str, ours: str) -> None:
    denoiser = f"{family}Transformer3DModel"
    layers, names = named_in(theirs), named_in(ours)
    found = native_lora(denoiser, factors_for(dict.fromkeys(layers, (4, 4))))
    assert [name for name in found if any(part.any() for part in found[name])] == names


def test_the_table_of_the_specification_has_every_layer() -> None:
    assert len(ROWS) == 12
    listed = [layer for _, theirs, _ in ROWS for layer in named_in(theirs)]
    for denoiser, variant in (("WanTransformer3DModel", "image keys"), (HUNYUAN, "")):
        every = {re.sub(r"\.\d+\.", ".1.", path, count=1) for path in known(denoiser, shapes_of(denoiser, variant))}
        single = {f"single_transformer_blocks.1.attn.to_{leaf}" for leaf in "qkv"}  # not without `proj_mlp`
        assert every - single <= set(listed)


# HunyuanVideo: one layer of the first release is several of diffusers'.

STREAM = [f"transformer_blocks.1.attn.add_{leaf}_proj" for leaf in "qkv"]


def dense(pair: Factors) -> Tensor:
    lora_A, lora_B = pair
    return lora_B.double() @ lora_A.double()


def test_equal_reads_are_shared_so_that_the_rank_stays() -> None:
    factors = factors_for(dict.fromkeys(STREAM, (6, 6)))
    factors = {path: (factors[STREAM[0]][0].clone(), lora_B) for path, (_, lora_B) in factors.items()}
    merged = native_lora(HUNYUAN, factors)["double_blocks.1.txt_attn_qkv"]
    assert merged[0].shape == (2, 6) and merged[1].shape == (18, 2)
    found = read_back(HUNYUAN, factors)
    for path, (lora_A, lora_B) in factors.items():
        assert torch.equal(found[f"transformer.{path}.lora_A.weight"], lora_A)
        assert torch.equal(found[f"transformer.{path}.lora_B.weight"], lora_B)


@pytest.mark.parametrize("equal", ["qk", "qv", "kv", ""])
def test_other_reads_become_blocks_and_the_products_stay_number_by_number(equal: str) -> None:
    factors = factors_for(dict.fromkeys(STREAM, (6, 6)))
    for leaf in equal[1:]:
        first, other = (f"transformer_blocks.1.attn.add_{name}_proj" for name in (equal[0], leaf))
        factors[other] = factors[first][0].clone(), factors[other][1]
    merged = native_lora(HUNYUAN, factors)["double_blocks.1.txt_attn_qkv"]
    assert merged[0].shape == (4 if equal else 6, 6)
    assert torch.equal(dense(merged), torch.cat([dense(factors[path]) for path in STREAM]))
    found = read_back(HUNYUAN, factors)
    for path, pair in factors.items():
        pair_found = (found[f"transformer.{path}.lora_A.weight"], found[f"transformer.{path}.lora_B.weight"])
        assert torch.equal(dense(pair_found), dense(pair))


def test_a_part_that_no_adapter_edits_is_zero() -> None:
    factors = factors_for({STREAM[2]: (6, 6)})
    found = read_back(HUNYUAN, factors)
    assert torch.equal(found[f"transformer.{STREAM[2]}.lora_B.weight"], factors[STREAM[2]][1])
    for path in STREAM[:2]:
        assert not found[f"transformer.{path}.lora_B.weight"].any()


def test_every_layer_of_the_two_stream_blocks_comes_back() -> None:
    shapes = shapes_of(HUNYUAN)
    named = {path: size for path, size in known(HUNYUAN, shapes).items() if not path.startswith("single_")}
    streams = {path for path in shapes if path.startswith("transformer_blocks.") and "norm" not in path}
    assert set(named) == {"context_embedder.proj_in", *streams} and len(streams) >= 24
    factors = factors_for(named)
    found = read_back(HUNYUAN, factors)
    assert {name.removeprefix("transformer.").rpartition(".lora_")[0] for name in found} == set(named)
    for path, pair in factors.items():
        pair_found = (found[f"transformer.{path}.lora_A.weight"], found[f"transformer.{path}.lora_B.weight"])
        assert torch.equal(dense(pair_found), dense(pair)), path


def test_a_single_block_is_split_where_diffusers_splits_it() -> None:
    """Its converter knows the width 3072 of the released model alone."""
    wide, block = 3072, "single_transformer_blocks.2"
    shapes = {f"{block}.attn.to_{leaf}": (wide, wide) for leaf in "qkv"}
    shapes |= {f"{block}.proj_mlp": (4 * wide, wide), f"{block}.proj_out": (wide, 5 * wide)}
    factors = factors_for(shapes, rank=1)
    found = read_back(HUNYUAN, factors)
    for path, (lora_A, lora_B) in factors.items():
        read, written = found[f"transformer.{path}.lora_A.weight"], found[f"transformer.{path}.lora_B.weight"]
        used = written.any(dim=0)
        assert torch.equal(read[used], lora_A) and torch.equal(written[:, used], lora_B), path
    alone = {path: pair for path, pair in factors.items() if path.endswith("proj_mlp")}
    assert native_lora(HUNYUAN, alone)["single_blocks.2.linear1"][1].shape == (7 * wide, 1)
    with pytest.raises(SiteError, match=r"single_blocks\.2\.linear1' holds the attention and the feed-forward"):
        native_lora(HUNYUAN, {f"{block}.attn.to_q": factors[f"{block}.attn.to_q"]})


@pytest.mark.parametrize(
    "layer",
    [
        "context_embedder.proj_in",
        "transformer_blocks.0.attn.add_k_proj",
        "transformer_blocks.0.attn.to_out.0",
        "transformer_blocks.0.ff.net.0.proj",
        "transformer_blocks.0.ff_context.net.2",
        "single_transformer_blocks.0.proj_out",
    ],
)
def test_a_zero_layer_lets_diffusers_know_the_file(layer: str) -> None:
    """Without `img_attn_qkv` diffusers takes the names for its own, finds none of them, and loads nothing."""
    shapes = shapes_of(HUNYUAN)
    factors = factors_for({layer: shapes[layer]})
    whole = native_lora(HUNYUAN, factors)
    added = {name: pair for name, pair in whole.items() if "img_attn_qkv" in name}
    height, width = shapes["transformer_blocks.0.attn.to_q"]
    assert [tuple(map(tuple, (a.shape, b.shape))) for a, b in added.values()] == [((1, width), (3 * height, 1))]
    assert not any(part.any() for pair in added.values() for part in pair)
    found = read_back(HUNYUAN, factors)
    assert torch.equal(found[f"transformer.{layer}.lora_B.weight"], factors[layer][1])
    bare = tensors_of({name: pair for name, pair in whole.items() if name not in added}, PREFIX)
    assert not any(name.startswith("transformer.") for name in HunyuanVideoLoraLoaderMixin.lora_state_dict(bare))


def test_with_a_layer_of_that_name_nothing_is_added() -> None:
    factors = factors_for({"transformer_blocks.5.attn.to_k": (6, 6)})
    assert list(native_lora(HUNYUAN, factors)) == ["double_blocks.5.img_attn_qkv"]


@pytest.mark.parametrize("leaf", ["k", "v"])
def test_image_keys_of_wan_are_read_with_image_values_only(leaf: str) -> None:
    other = "v" if leaf == "k" else "k"
    factors = factors_for({f"blocks.{block}.attn2.add_{leaf}_proj": (6, 4) for block in range(2)})
    found = read_back("WanTransformer3DModel", factors)
    for name, value in tensors_of(factors, "transformer").items():
        assert torch.equal(found.pop(name), value)
    assert {name.rpartition(".attn2.")[2] for name in found} == {
        f"add_{other}_proj.lora_{part}.weight" for part in "AB"
    }
    assert not any(value.any() for value in found.values())


# Refusals.


def test_other_denoisers_are_refused() -> None:
    for name in ("SanaVideoTransformer3DModel", ""):
        with pytest.raises(ConfigError, match=f"but not for {name or 'an unknown denoiser'}. Export it in the layout"):
            native_lora(name, factors_for({"x": (2, 2)}))


@pytest.mark.parametrize(
    ("denoiser", "layer"),
    [
        ("WanTransformer3DModel", "condition_embedder.text_embedder.linear_1"),
        ("WanTransformer3DModel", "vace_blocks.0.attn2.to_k"),
        ("WanTransformer3DModel", "blocks.0.attn1.add_k_proj"),
        (HUNYUAN, "context_embedder.token_refiner.refiner_blocks.0.attn.to_q"),
        (HUNYUAN, "x_embedder.proj"),
        ("LTXVideoTransformer3DModel", "proj_in"),
        ("LTX2VideoTransformer3DModel", "time_embed.linear"),
    ],
)
def test_a_layer_without_a_name_is_refused(denoiser: str, layer: str) -> None:
    with pytest.raises(
        SiteError, match=f"The layer '{layer}' of {denoiser} has no name in the layout 'native-for-diffusers'"
    ):
        native_lora(denoiser, factors_for({layer: (4, 4)}))
