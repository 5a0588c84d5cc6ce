"""The file in the hands of diffusers alone: `pipe.load_lora_weights(folder)` must give the edited model."""

import copy
from pathlib import Path

import pytest
import safetensors.torch
import torch
from diffusers.loaders import lora_pipeline
from forge import planted_adapter, planted_direction, small_weights
from fresh import in_copy
from tiny import TEXT_DIM, tiny_wan_pipeline
from torch import Tensor, nn

from planted import additive_direction
from unlearning_adapters.adapter.adapter import UnlearningAdapter, save_adapter

VIDEO_FAMILIES = (
    "Wan", "SkyReelsV2", "CogVideoX", "HunyuanVideo", "LTXVideo", "LTX2", "Mochi1", "Sana", "Helios", "Kandinsky",
    "Cosmos", "MiniMaxH3", "StableDiffusion",
)  # fmt: skip
LAYERS = ("attn2.to_k", "attn2.to_v", "ffn.net.0.proj")
VIDEO_LAYERS = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q")  # additive, with scope="concept"
both_scopes = pytest.mark.parametrize("layers", [LAYERS, LAYERS + VIDEO_LAYERS], ids=["word", "concept"])


def site_weights(pipe, *components: str, layers: tuple[str, ...] = LAYERS) -> dict[str, Tensor]:
    return {
        f"{component}.blocks.{block}.{layer}": getattr(pipe, component)
        .get_submodule(f"blocks.{block}.{layer}")
        .weight.data
        for component in components
        for block in range(2)
        for layer in layers
    }


def mixed_adapter(weights: dict[str, Tensor]) -> UnlearningAdapter:
    """Oblique and orthogonal sites of ranks 1 and 3, so that the file has V for some and padding for some."""
    adapter = planted_adapter(weights, rank=3, strength=1.5)
    directions, factors = dict(adapter.directions), dict(adapter.lora_B)
    for site, weight in weights.items():
        if site.endswith(VIDEO_LAYERS):
            directions[site] = additive_direction(weight.shape[1], gain=0.5)
            factors[site] = -1.5 * 0.5 * weight.float() @ directions[site].write.T
        elif site.endswith("to_v"):
            directions[site] = planted_direction(1, weight.shape[1], oblique=False)
            factors[site] = -1.5 * weight.float() @ directions[site].write.T
    return UnlearningAdapter(adapter.info, directions, factors)


def edited(model: nn.Module, component: str, adapter: UnlearningAdapter) -> nn.Module:
    """A copy of a denoiser with `W - strength * (W w) a` written into its weights, in float64."""
    model = copy.deepcopy(model)
    for site, direction in adapter.directions.items():
        if site.startswith(f"{component}."):
            layer = model.get_submodule(site.removeprefix(f"{component}."))
            weight, read, write = layer.weight.double(), direction.read.double(), direction.write.double()
            layer.weight.data = (weight - adapter.strength_at(site) * (weight @ write.T) @ read).to(layer.weight.dtype)
    return model


@torch.no_grad()
def output(model: nn.Module, dtype: torch.dtype = torch.float32) -> Tensor:
    maker = torch.Generator().manual_seed(3)
    latents = torch.randn(1, 16, 2, 2, 2, generator=maker).to(dtype)
    prompt = torch.randn(1, 16, TEXT_DIM, generator=maker).to(dtype)
    return model(latents, torch.tensor([500]), prompt, return_dict=False)[0]


@both_scopes
def test_stock_loading_equals_the_edited_weights(layers, tmp_path):
    pipe = tiny_wan_pipeline()
    adapter = mixed_adapter(site_weights(pipe, "transformer", layers=layers))
    assert len(adapter.additive) == 2 * (len(layers) - len(LAYERS))
    before, expected = output(pipe.transformer), output(edited(pipe.transformer, "transformer", adapter))
    save_adapter(adapter, tmp_path)
    pipe.load_lora_weights(tmp_path)
    after = output(pipe.transformer)
    assert (expected - before).abs().max() > 1e-2, "the edit does nothing"
    assert torch.allclose(after, expected, atol=1e-5)
    pipe.fuse_lora()
    assert torch.allclose(output(pipe.transformer), expected, atol=1e-5)
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert torch.allclose(output(pipe.transformer), before, atol=1e-5)


@both_scopes
def test_stock_loading_in_bfloat16(layers, tmp_path):
    pipe = tiny_wan_pipeline(dtype=torch.bfloat16)
    adapter = mixed_adapter(site_weights(pipe, "transformer", layers=layers))
    before = output(pipe.transformer, torch.bfloat16)
    expected = output(edited(pipe.transformer, "transformer", adapter), torch.bfloat16)
    save_adapter(adapter, tmp_path)
    pipe.load_lora_weights(tmp_path)
    after = output(pipe.transformer, torch.bfloat16)
    assert (expected - before).abs().max() > 5 * (after - expected).abs().max()


@pytest.mark.slow
def test_stock_loading_where_this_package_was_never_imported(tmp_path):
    pipe = tiny_wan_pipeline()
    adapter = mixed_adapter(site_weights(pipe, "transformer"))
    save_adapter(adapter, tmp_path)
    script = (
        "import sys, safetensors.torch, torch\n"
        "from tiny import TEXT_DIM, tiny_wan_pipeline\n"
        "pipe = tiny_wan_pipeline()\n"
        "pipe.load_lora_weights(sys.argv[1])\n"
        "maker = torch.Generator().manual_seed(3)\n"
        "latents = torch.randn(1, 16, 2, 2, 2, generator=maker)\n"
        "prompt = torch.randn(1, 16, TEXT_DIM, generator=maker)\n"
        "with torch.no_grad(): result = pipe.transformer(latents, torch.tensor([500]), prompt, return_dict=False)[0]\n"
        "safetensors.torch.save_file({'result': result.contiguous()}, sys.argv[2])\n"
        "assert not any(name.startswith('unlearning') for name in sys.modules)"
    )
    support = Path(__file__).resolve().parents[1] / "support"
    in_copy("-c", script, tmp_path, tmp_path / "result", path=[support])
    result = safetensors.torch.load_file(tmp_path / "result")["result"]
    assert torch.allclose(result, output(edited(pipe.transformer, "transformer", adapter)), atol=1e-5)
    assert not torch.allclose(result, output(pipe.transformer), atol=1e-2)


def test_of_two_denoisers_stock_loading_edits_the_first_alone(tmp_path):
    pipe = tiny_wan_pipeline(two_denoisers=True)
    adapter = mixed_adapter(site_weights(pipe, "transformer", "transformer_2"))
    first, second = output(edited(pipe.transformer, "transformer", adapter)), output(pipe.transformer_2)
    save_adapter(adapter, tmp_path)
    pipe.load_lora_weights(tmp_path)
    assert torch.allclose(output(pipe.transformer), first, atol=1e-5)
    assert torch.equal(output(pipe.transformer_2), second), "docs/format.md 7 says that it needs its own file"


@pytest.mark.parametrize("family", VIDEO_FAMILIES)
def test_the_stock_reader_of_every_video_family_takes_the_file_as_it_is(tmp_path, family):
    """None of them mistakes the names for a foreign format and converts them."""
    reader = getattr(lora_pipeline, f"{family}LoraLoaderMixin")
    component = "unet" if family == "StableDiffusion" else "transformer"  # AnimateDiff and the UNet pipelines
    modules = (
        "blocks.0.attn2.to_k",
        "transformer_blocks.1.attn.add_k_proj",
        "down_blocks.0.temp_attentions.0.ff.net.2",
    )
    path = save_adapter(planted_adapter(small_weights(*(f"{component}.{module}" for module in modules))), tmp_path)
    found = reader.lora_state_dict(tmp_path)
    tensors = found[0] if isinstance(found, tuple) else found
    expected = safetensors.torch.load_file(path)
    assert set(tensors) == set(expected) and all("lora" in name for name in tensors)
    assert all(torch.equal(tensors[name], expected[name]) for name in expected)
