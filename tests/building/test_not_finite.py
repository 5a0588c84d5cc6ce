"""NaN, infinite numbers and float16 are named for what they are: an argument, a weight, the layer that gives them."""

import math
import warnings

import pytest
import tiny
import torch
from planted_words import CONCEPT, planted_pipeline
from stdit import STDiT, run

from planted import snapshot
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.pipelines.sites import site_module
from unlearning_adapters.runtime.any_module import wrap_denoiser

TO_K = "transformer.blocks.0.attn2.to_k"


def build(pipe, call=tiny.CALL, **settings) -> UnlearningAdapter:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return build_adapter(pipe, CONCEPT, BuildConfig(pairs=2, **settings), progress=False, call_kwargs=call)


def refused(pipe, text: str, **arguments) -> None:
    before = snapshot(pipe)
    with pytest.raises(DenoiserError, match=text) as caught:
        build(pipe, **arguments)
    assert str(caught.value).isprintable() and snapshot(pipe) == before


@pytest.mark.parametrize(("value", "name"), [(math.nan, "NaN"), (math.inf, "infinite numbers")])
def test_a_weight_of_the_text_encoder_is_named(value, name):
    pipe = planted_pipeline()
    build(pipe)
    pipe.text_encoder.encoder.final_layer_norm.weight.data[3] = value
    refused(
        pipe, rf"reads for .* is not finite: the weight text_encoder\.encoder\.final_layer_norm\.weight holds {name}"
    )


def test_a_layer_that_overflows_in_half_precision_is_named():
    pipe = planted_pipeline()
    pipe.text_encoder.half()
    pipe.transformer.half()
    build(pipe)
    pipe.text_encoder.encoder.final_layer_norm.weight.data.fill_(6e4)
    text = r"(text_encoder\.encoder\.final_layer_norm|transformer\.condition_embedder\S*) is the first layer that gives"
    refused(pipe, rf"{text} infinite numbers \(float16\)\. float16 ends at 65,504: load the pipeline in bfloat16")


def test_latents_are_named_where_sites_read_them():
    pipe = planted_pipeline()
    latents = torch.full((1, 16, 2, 2, 2), math.nan)
    hidden = {"sites": "transformer.blocks.1.ffn.net.0.proj", "steps": 1}
    build(pipe, {**tiny.CALL, "latents": torch.zeros_like(latents)}, **hidden)
    refused(pipe, r"`latents` in call_kwargs holds NaN\. Give finite", call={**tiny.CALL, "latents": latents}, **hidden)


@pytest.mark.parametrize("method", ["ridge", "rece"])
@pytest.mark.parametrize("value", [math.nan, -math.inf])
def test_the_weight_of_a_site_is_named(method, value):
    pipe = planted_pipeline()
    build(pipe, method=method)
    site_module(pipe, TO_K).weight.data[2, 1] = value
    refused(pipe, r"The weight of blocks\.0\.attn2\.to_k holds NaN or infinite numbers", method=method)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_dtype_of_the_pipeline_builds(dtype):
    pipe = tiny.tiny_wan_pipeline(dtype=dtype)
    adapter = build(pipe)
    assert all(torch.isfinite(factor).all() and factor.any() for factor in adapter.lora_B.values())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float64])
def test_any_default_dtype_gives_the_same_file(dtype, tmp_path):
    pipe = planted_pipeline()
    expected = build(pipe).save_pretrained(tmp_path / "float32").read_bytes()
    torch.set_default_dtype(dtype)
    try:
        adapter = build(pipe)
        pipe.load_unlearning_adapter(adapter)
        pipe.fuse_unlearning_adapters()
        pipe.unfuse_unlearning_adapters()
        saved = pipe.save_unlearning_adapter(tmp_path / "other").read_bytes()
        pipe.unload_unlearning_adapters()
        pipe.load_unlearning_adapter(tmp_path / "other")
    finally:
        torch.set_default_dtype(torch.float32)
    assert saved == expected


@pytest.mark.parametrize("method", ["ridge", "rece", "random"])
def test_any_default_device_gives_the_same_file(method, tmp_path):
    """On "meta" all that is made without a device holds no numbers, so that a result shows each such tensor."""

    def on_cpu(module, prompts, generators):
        with torch.device("cpu"):
            return run(module, prompts, generators)

    torch.manual_seed(0)
    pipe = wrap_denoiser(STDiT().eval(), on_cpu)
    expected = build(pipe, {}, method=method).save_pretrained(tmp_path / "cpu").read_bytes()
    with torch.device("meta"):
        pipe.load_unlearning_adapter(build(pipe, {}, method=method))
        pipe.fuse_unlearning_adapters()
        pipe.unfuse_unlearning_adapters()
        pipe.set_unlearning_adapters("no-red", 0.5)
        pipe.set_unlearning_adapters("no-red", None)
        saved = pipe.save_unlearning_adapter(tmp_path / "other").read_bytes()
        export_lora(tmp_path / "other", tmp_path / "lora.safetensors", base=pipe)
        pipe.unload_unlearning_adapters()
        pipe.load_unlearning_adapter(tmp_path / "other")
    assert saved == expected
    exported = export_lora(tmp_path / "cpu", tmp_path / "lora-2.safetensors", base=pipe).file.read_bytes()
    assert (tmp_path / "lora.safetensors").read_bytes() == exported
