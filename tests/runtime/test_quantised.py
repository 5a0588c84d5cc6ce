"""Quantised denoisers: built on, attached to and detached from exactly; fusing is refused with its reason."""

import re
import warnings
from dataclasses import replace

import pytest
import torch
from diffusers import BitsAndBytesConfig, PipelineQuantizationConfig, WanPipeline
from planted_words import CONCEPT, word
from quantised import BACKENDS, NOT_IN_BLOCKS, Backend, dense_sites, dequantised, plain_pipeline, planted
from tiny import CALL
from torch import Tensor
from torch._dynamo.testing import CompileCounterWithBackend
from torch.nn.functional import cosine_similarity

from planted import output
from unlearning_adapters.adapter.adapter import load_adapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import FuseError
from unlearning_adapters.pipelines.sites import site_module
from unlearning_adapters.runtime.compatibility import base_deviation

pytestmark = [
    pytest.mark.filterwarnings("ignore:.*[Qq]uanto.*"),
    pytest.mark.filterwarnings("ignore:MatMul8bitLt"),
    pytest.mark.filterwarnings("ignore:.*torch_dtype.*"),
]
LEFT = 0.005  # largest part of a removed direction that a layer may still answer to
SITE = "transformer.blocks.1.attn2.to_v"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    path = tmp_path_factory.mktemp("checkpoint")
    plain_pipeline().save_pretrained(path)
    return path


@pytest.fixture(scope="module", params=BACKENDS, ids=[backend.name for backend in BACKENDS])
def backend(request) -> Backend:
    return request.param


@pytest.fixture(scope="module")
def pipe(backend, folder):
    """One pipeline per backend; every test leaves it bit for bit as it found it, which the next one relies on."""
    pipe = backend.pipeline(folder)
    output(pipe)  # bitsandbytes packs its weights anew in the first call
    return pipe


@pytest.fixture(scope="module", params=["word", "concept"])
def adapter(request, pipe):
    config, call = BuildConfig(strength=1.0, scope=request.param), {**CALL, "num_inference_steps": 4}
    return build_adapter(pipe, CONCEPT, config, progress=False, call_kwargs=call)


@pytest.fixture
def base(pipe):
    before, held = output(pipe), stored(pipe)
    yield before
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), before) and stored(pipe) == held


def stored(pipe) -> dict[str, list]:
    """All bits of what the transformer's Linears hold, whatever class of tensor wraps them."""
    found = {}
    for name, module in pipe.transformer.named_modules():
        if isinstance(weight := getattr(module, "weight", None), Tensor):
            parts = [weight]
            while any(hasattr(part, "__tensor_flatten__") for part in parts):
                parts = [
                    getattr(part, key) if hasattr(part, "__tensor_flatten__") else part
                    for part in parts
                    for key in (part.__tensor_flatten__()[0] if hasattr(part, "__tensor_flatten__") else [""])
                ]
            found[name] = [part.detach().as_subclass(Tensor).clone().view(torch.uint8).tolist() for part in parts]
    return found


def relative(one: Tensor, other: Tensor) -> float:
    one, other = one.detach().float(), other.detach().float()
    return float((one - other).norm() / other.norm())


def test_the_weights_are_quantised(pipe, backend):
    weight = site_module(pipe, SITE).weight
    assert type(weight).__name__ == backend.weight
    exact = plain_pipeline().transformer.get_parameter(SITE.removeprefix("transformer.") + ".weight")
    error = relative(dequantised(site_module(pipe, SITE), backend.dtype), exact)
    assert 1e-3 < error < 0.15


def test_attached_it_changes_what_dense_weights_predict(pipe, backend, adapter, base):
    with dense_sites(pipe, adapter, 0.0):
        predicted = output(pipe)
    with dense_sites(pipe, adapter, 1.0):
        predicted = output(pipe).float() - predicted.float()
    pipe.load_unlearning_adapter(adapter)
    change = output(pipe).float() - base.float()
    assert change.norm() > 0.01 * base.float().norm()
    assert relative(change, predicted) < backend.close


def test_nothing_of_the_direction_is_left(pipe, backend, adapter, base):
    """A layer that reads just what is removed answers with its bias."""
    removed = {site: direction for site, direction in adapter.directions.items() if not direction.additive}

    def response():
        found = {}
        for site, direction in removed.items():
            with torch.no_grad():
                rows = direction.write.to(backend.dtype)
                found[site] = (site_module(pipe, site)(rows) - site_module(pipe, site)(0 * rows)).float().norm()
        return found

    before = response()
    pipe.load_unlearning_adapter(adapter)
    left = {site: float(after / before[site]) for site, after in response().items()}
    assert max(left.values()) <= LEFT


def test_strengths_and_detaching_are_exact(pipe, adapter, base):
    pipe.load_unlearning_adapter(adapter, strength=0.0)
    assert torch.equal(output(pipe), base)
    pipe.set_unlearning_adapters("no-red", 0.5)
    half = output(pipe)
    pipe.set_unlearning_adapters("no-red", 1.0)
    assert not torch.equal(output(pipe), half) and not torch.equal(half, base)
    pipe.disable_unlearning_adapters()
    assert torch.equal(output(pipe), base)


def test_fusing_is_refused_with_the_reason_and_leaves_the_edit_attached(pipe, backend, adapter, base):
    pipe.load_unlearning_adapter(adapter)
    attached, held = output(pipe), stored(pipe)
    with pytest.raises(FuseError) as refused:
        pipe.fuse_unlearning_adapters()
    text = str(refused.value)
    assert "\n" not in text
    assert re.match(rf"The weight of blocks\.0\.attn\d\.to_\w is quantised \({backend.weight}, torch\.", text)
    assert text.endswith("so that an edit of it would not be exact. Attach the adapter, do not fuse it.")
    assert torch.equal(output(pipe), attached) and stored(pipe) == held
    assert pipe.get_active_unlearning_adapters() == ["no-red"]


def test_an_adapter_that_was_built_on_quantised_weights_is_a_whole_file(pipe, backend, adapter, base, tmp_path):
    """Its stock factors are what the quantised weights make of the direction."""
    weights = {site: dequantised(site_module(pipe, site), backend.dtype) for site in adapter.sites}
    assert base_deviation(adapter, weights) < 0.01
    back = load_adapter(adapter.save_pretrained(tmp_path))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pipe.load_unlearning_adapter(back)
    assert not torch.equal(output(pipe), base)
    pipe.unload_unlearning_adapters()
    pipe.load_unlearning_adapter(replace(adapter, lora_B={}))
    again = load_adapter(pipe.save_unlearning_adapter(tmp_path / "again"))
    assert all(torch.equal(again.lora_B[site], factor) for site, factor in back.lora_B.items())


def test_it_removes_the_planted_concept_and_fits_the_unquantised_base(backend, adapter):
    plain = plain_pipeline()
    red, blue = word(plain, "red"), word(plain, "blue")
    for direction in (each for each in adapter.directions.values() if not each.additive):
        assert cosine_similarity(direction.write[0], red - blue, dim=0) > 0.99
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        plain.load_unlearning_adapter(adapter)


def test_building_on_an_edited_pipeline_does_not_change_the_factors(pipe, adapter, base):
    pipe.load_unlearning_adapter(adapter, "other")
    again = build_adapter(pipe, CONCEPT, BuildConfig(strength=1.0), progress=False)
    for site, factor in again.lora_B.items():
        torch.testing.assert_close(factor, adapter.lora_B[site], rtol=1e-3, atol=1e-4)


def test_float8_after_loading_and_after_fusing():
    """Storage in float8 that is enabled later: the attached edit stays, a fused one cannot be taken out any more."""
    pipe = plain_pipeline()
    adapter = build_adapter(pipe, CONCEPT, BuildConfig(strength=1.0), progress=False)
    pipe.load_unlearning_adapter(adapter)
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    layer = site_module(pipe, SITE)
    with torch.no_grad():
        rows = adapter.directions[SITE].write
        assert (layer(rows) - layer(0 * rows)).norm() < 1e-4 * (dequantised(layer, torch.float32)).norm()
    attached = output(pipe)
    pipe.unload_unlearning_adapters()
    base = output(pipe)
    assert not torch.equal(base, attached)
    assert layer.weight.dtype == torch.float8_e4m3fn

    pipe = plain_pipeline()
    pipe.load_unlearning_adapter(adapter)
    pipe.fuse_unlearning_adapters()
    pipe.transformer.enable_layerwise_casting(storage_dtype=torch.float8_e4m3fn, compute_dtype=torch.float32)
    with pytest.raises(FuseError, match=r"was \(64, 64\) torch.float32 when it was fused, and now .*float8_e4m3fn"):
        pipe.unfuse_unlearning_adapters()
    assert not torch.equal(output(pipe), base)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("bits", [8, 4])
def test_bitsandbytes_as_diffusers_loads_it_on_an_accelerator(bits, folder):
    kind = {8: {"load_in_8bit": True}, 4: {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4"}}[bits]
    config = BitsAndBytesConfig(**kind, llm_int8_skip_modules=list(NOT_IN_BLOCKS))
    mapping = PipelineQuantizationConfig(quant_mapping={"transformer": config})
    pipe = planted(WanPipeline.from_pretrained(folder, quantization_config=mapping, torch_dtype=torch.float16))
    pipe.to("cuda")
    adapter = build_adapter(pipe, CONCEPT, BuildConfig(strength=1.0), progress=False)
    layer, rows = site_module(pipe, SITE), adapter.directions[SITE].write.to("cuda", torch.float16)
    with torch.no_grad():
        before = layer(rows) - layer(0 * rows)
        pipe.load_unlearning_adapter(adapter)
        assert (layer(rows) - layer(0 * rows)).float().norm() <= LEFT * before.float().norm()
        with pytest.raises(FuseError, match="Attach the adapter, do not fuse it"):
            pipe.fuse_unlearning_adapters()
        pipe.unload_unlearning_adapters()
        assert torch.equal(layer(rows) - layer(0 * rows), before)


def test_dequantised_after_attaching_it_stays_edited_and_can_be_fused(folder):
    """diffusers puts new layers in the place of the quantised ones."""
    pipe = next(backend for backend in BACKENDS if backend.name == "gguf-Q8_0").pipeline(folder)
    adapter, base = build_adapter(pipe, CONCEPT, BuildConfig(strength=1.0), progress=False), output(pipe)
    pipe.load_unlearning_adapter(adapter)
    attached = output(pipe)
    pipe.transformer.dequantize()
    assert type(site_module(pipe, SITE).weight).__name__ == "Parameter"
    assert torch.equal(output(pipe), attached) and not torch.equal(attached, base)
    pipe.fuse_unlearning_adapters()
    torch.testing.assert_close(output(pipe), attached)
    pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), base)


@pytest.mark.parametrize("name", ["bitsandbytes-4bit", "torchao-int8", "gguf-Q4_0"])
def test_compiled_it_does_what_it_does_without(name, folder):
    torch.compiler.reset()
    quantise = next(backend for backend in BACKENDS if backend.name == name)
    pipe, twin, graphs = quantise.pipeline(folder), quantise.pipeline(folder), CompileCounterWithBackend("eager")
    adapter = build_adapter(pipe, CONCEPT, BuildConfig(strength=1.0), progress=False)
    pipe.transformer.compile_repeated_blocks(backend=graphs)
    base = output(pipe)
    assert torch.equal(base, output(twin)) and graphs.frame_count
    for each in (pipe, twin):
        each.load_unlearning_adapter(adapter)
    attached = output(pipe)
    assert torch.equal(attached, output(twin)) and not torch.equal(attached, base)
    compiled = graphs.frame_count
    for strength in (0.4, 1.7):
        for each in (pipe, twin):
            each.set_unlearning_adapters("no-red", strength)
        assert torch.equal(output(pipe), output(twin))
    assert graphs.frame_count == compiled
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), base)
    torch.compiler.reset()
