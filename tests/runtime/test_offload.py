"""Offloaded denoisers: weights that are elsewhere between calls, on a CPU; `to`, dtypes and device maps."""

from functools import cache

import accelerate
import pytest
import torch
from diffusers import WanPipeline, WanTransformer3DModel
from offloaded import CPU, OFFLOADINGS, Offloading
from planted_words import CONCEPT
from tiny import CALL, tiny_wan_pipeline

from planted import bits, close, lora_that_reads, output, planted, reference_output
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import FuseError

LAYER = "blocks.1.attn2.to_k"
IN_FILE = r"offloaded\. Fuse before offloading|offloaded to a file, .* Load the model again and fuse before offloading"


@pytest.fixture(params=OFFLOADINGS, ids=[way.name for way in OFFLOADINGS])
def way(request) -> Offloading:
    return request.param


@pytest.fixture(params=["word", "concept"])
def scope(request) -> str:
    return request.param


@pytest.fixture
def pipe():
    return tiny_wan_pipeline()


def clip(pipe) -> torch.Tensor:
    return pipe("a red circle", **CALL, output_type="latent", generator=torch.Generator().manual_seed(0)).frames


def weights(pipe) -> dict[str, torch.Tensor]:
    return {name: bits(value) for name, value in pipe.transformer.state_dict().items()}


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


def lies_on_meta(pipe) -> bool:
    return pipe.transformer.get_parameter(f"{LAYER}.weight").is_meta


def test_attached_before_or_after_it_acts_and_goes_without_a_trace(way, scope, tmp_path):
    for before in (True, False):
        pipe = tiny_wan_pipeline()
        red, held = planted(pipe, scope=scope), weights(pipe)
        if before:
            pipe.load_unlearning_adapter(red)
        way.enable(pipe, tmp_path / str(before))
        assert lies_on_meta(pipe) == way.on_meta
        if not before:
            base = output(pipe)
            assert close(base, reference_output())
            pipe.load_unlearning_adapter(red)
        for strength in (1.0, 0.4):
            pipe.set_unlearning_adapters("red", strength)
            assert close(output(pipe), reference_output((red, strength)))
        edited = clip(pipe)
        pipe.unload_unlearning_adapters()
        assert close(output(pipe), reference_output()) and (before or torch.equal(output(pipe), base))
        assert not torch.allclose(clip(pipe), edited)
        if way.removable:
            pipe.remove_all_hooks()
            assert same(weights(pipe), held)


def test_fused_beneath_it_and_taken_out_bit_for_bit(way, scope, pipe, tmp_path):
    red, held = planted(pipe, scope=scope), weights(pipe)
    way.enable(pipe, tmp_path)
    base = output(pipe)
    pipe.load_unlearning_adapter(red)
    attached = output(pipe)
    if way.in_file:
        with pytest.raises(FuseError, match=IN_FILE) as refused:
            pipe.fuse_unlearning_adapters()
        assert "\n" not in str(refused.value) and "attach the adapter" in str(refused.value)
        assert torch.equal(output(pipe), attached) and pipe.get_active_unlearning_adapters() == ["red"]
        return
    pipe.fuse_unlearning_adapters()
    assert lies_on_meta(pipe) == way.on_meta
    assert close(output(pipe), reference_output((red, 1.0)))
    assert "_diffusers_hook" not in vars(pipe.transformer.get_submodule(LAYER)) or not way.removable
    for _ in range(2):
        pipe.unfuse_unlearning_adapters()
        assert torch.equal(output(pipe), attached)
        pipe.fuse_unlearning_adapters()
    pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), base)
    if way.removable:
        pipe.remove_all_hooks()
        assert same(weights(pipe), held)


def test_what_was_fused_before_stays_fused_and_comes_out_where_it_can(way, scope, pipe, tmp_path):
    red, blue, held = planted(pipe, scope=scope), planted(pipe, "blue", seed=1), weights(pipe)
    pipe.load_unlearning_adapter(red)
    pipe.fuse_unlearning_adapters()
    fused = weights(pipe)
    way.enable(pipe, tmp_path)
    assert close(output(pipe), reference_output((red, 1.0)))
    pipe.load_unlearning_adapter(blue, strength=0.5)  # beside it
    assert close(output(pipe), reference_output((red, 1.0), (blue, 0.5)))
    pipe.delete_unlearning_adapters("blue")
    if not way.in_file:
        pipe.unfuse_unlearning_adapters()
        pipe.unload_unlearning_adapters()
        assert close(output(pipe), reference_output())
    else:
        with pytest.raises(FuseError, match="offloaded (and cannot be restored|to a file)"):
            pipe.unfuse_unlearning_adapters()
        assert close(output(pipe), reference_output((red, 1.0)))
    if way.removable:
        pipe.remove_all_hooks()
        assert same(weights(pipe), fused if way.in_file else held)
        pipe.unfuse_unlearning_adapters()
        pipe.unload_unlearning_adapters()
        assert same(weights(pipe), held)


def build(pipe, scope: str) -> UnlearningAdapter:
    config, call = BuildConfig(strength=1.0, scope=scope), {**CALL, "num_inference_steps": 4}
    return build_adapter(pipe, CONCEPT, config, progress=False, call_kwargs=call)


@cache
def built_in_memory(scope: str) -> UnlearningAdapter:
    """What is built where nothing is offloaded."""
    return build(tiny_wan_pipeline(), scope)


def test_an_adapter_is_built_through_it(way, scope, pipe, tmp_path):
    expected = built_in_memory(scope)
    way.enable(pipe, tmp_path)
    found = build(pipe, scope)
    assert found.additive == expected.additive and bool(found.additive) == (scope == "concept")
    for site, known in expected.directions.items():
        if not known.additive:
            torch.testing.assert_close(found.directions[site].write, known.write, rtol=1e-3, atol=1e-5)
        one, other = (each.write.T @ each.read for each in (found.directions[site], known))
        assert (one - other).norm() < 0.01 * other.norm()
    if way.name.endswith("file"):
        assert found.lora_B == {}, "what lies in memory between calls is not the weight"
    else:
        for site, factor in expected.lora_B.items():
            torch.testing.assert_close(found.lora_B[site], factor, rtol=1e-3, atol=1e-5)
        found.save_pretrained(tmp_path / "adapter")
    pipe.load_unlearning_adapter(found)
    assert close(output(pipe), reference_output((found, 1.0)))


def test_a_lora_comes_and_goes_under_sequential_offloading(pipe):
    red = planted(pipe)
    style = lora_that_reads(red, pipe)
    accelerate.cpu_offload(pipe.transformer, CPU)
    pipe.load_unlearning_adapter(red)
    pipe.remove_all_hooks()  # as diffusers does around `load_lora_weights`
    pipe.load_lora_weights(style, adapter_name="style")
    accelerate.cpu_offload(pipe.transformer, CPU)
    assert close(output(pipe), reference_output((red, 1.0), lora=style))
    pipe.fuse_unlearning_adapters()
    assert close(output(pipe), reference_output((red, 1.0), lora=style))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_a_cast_leaves_an_attached_edit_and_forbids_to_unfuse(dtype, pipe):
    red = planted(pipe)
    pipe.load_unlearning_adapter(red)
    pipe.to(dtype)
    with torch.no_grad():
        layer = pipe.transformer.get_submodule(LAYER)
        removed = red.directions[f"transformer.{LAYER}"].write
        left = (layer(removed.to(dtype)) - layer(torch.zeros_like(removed, dtype=dtype))).norm()
        plain = torch.nn.functional.linear(removed.to(dtype), layer.weight).norm()
    assert left <= 0.005 * plain and plain > 0
    pipe.unload_unlearning_adapters()

    pipe = tiny_wan_pipeline()
    pipe.load_unlearning_adapter(red)
    pipe.fuse_unlearning_adapters()
    pipe.to(dtype)
    cast = weights(pipe)
    name = str(dtype)
    with pytest.raises(FuseError, match=rf"was \(48, 48\) torch.float32 when it was fused, and now .* {name}"):
        pipe.unfuse_unlearning_adapters()
    pipe.to(torch.float32)
    if dtype == torch.float64:  # there and back without a loss
        pipe.unfuse_unlearning_adapters()
        pipe.unload_unlearning_adapters()
        assert same(weights(pipe), weights(tiny_wan_pipeline()))
    else:
        with pytest.raises(FuseError, match="changed after it was fused .* a cast to another dtype and back"):
            pipe.unfuse_unlearning_adapters()
    assert cast.keys() == weights(pipe).keys()


def test_moving_after_fusing_is_no_change(pipe):
    red, held = planted(pipe), weights(pipe)
    pipe.load_unlearning_adapter(red)
    pipe.fuse_unlearning_adapters()
    for parameter in pipe.transformer.parameters():
        parameter.data = parameter.data.clone()  # as a move to a device and back leaves it
    pipe.to("cpu")
    pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    assert same(weights(pipe), held)


@pytest.mark.parametrize("device_map", ["balanced", "cpu"])
def test_a_pipeline_that_is_loaded_with_a_device_map(device_map, pipe, tmp_path):
    red = planted(pipe)
    pipe.save_pretrained(tmp_path)
    mapped = WanPipeline.from_pretrained(tmp_path, device_map=device_map)
    base = output(mapped)
    mapped.load_unlearning_adapter(red)
    assert close(output(mapped), reference_output((red, 1.0)))
    mapped.fuse_unlearning_adapters()
    assert close(output(mapped), reference_output((red, 1.0)))
    mapped.unfuse_unlearning_adapters()
    mapped.unload_unlearning_adapters()
    assert torch.equal(output(mapped), base)


def test_a_denoiser_that_is_loaded_partly_from_disk(pipe, tmp_path):
    red = planted(pipe)
    pipe.transformer.save_pretrained(tmp_path)
    places = {name: "cpu" for name, _ in pipe.transformer.named_children() if name != "blocks"}
    places.update({"scale_shift_table": "cpu", "blocks.0": "cpu", "blocks.1": "disk"})
    pipe.transformer = WanTransformer3DModel.from_pretrained(
        tmp_path, device_map=places, offload_folder=tmp_path / "offload"
    )
    assert lies_on_meta(pipe)
    pipe.load_unlearning_adapter(red)
    assert close(output(pipe), reference_output((red, 1.0)))
    with pytest.raises(FuseError, match=r"blocks\.1\.attn2\.to_k is offloaded\. Fuse before offloading"):
        pipe.fuse_unlearning_adapters()


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an accelerator")
@pytest.mark.parametrize("verb", ["enable_model_cpu_offload", "enable_sequential_cpu_offload", "enable_group_offload"])
def test_a_whole_clip_with_offloading_to_an_accelerator(verb, pipe):
    red, held, base = planted(pipe), weights(pipe), clip(pipe)
    options = {}
    if verb == "enable_group_offload":
        options = {"onload_device": torch.device("cuda"), "offload_type": "leaf_level", "use_stream": True}
    getattr(pipe, verb)(**options)
    offloaded = clip(pipe)
    assert torch.allclose(offloaded.cpu(), base, atol=1e-2)
    pipe.load_unlearning_adapter(red)
    attached = clip(pipe)
    assert not torch.allclose(attached, offloaded)
    pipe.fuse_unlearning_adapters()
    assert torch.allclose(clip(pipe), attached, atol=1e-3)
    pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    assert torch.equal(clip(pipe), offloaded)
    pipe.remove_all_hooks()
    assert same({name: value.cpu() for name, value in weights(pipe).items()}, held)


def test_a_folder_of_an_earlier_run_takes_a_fused_edit_back_and_leaves_an_attached_one(tmp_path):
    """What docs/running.md warns of: diffusers does not write a file again that is there."""
    options = {"offload_device": CPU, "offload_type": "leaf_level", "offload_to_disk_path": str(tmp_path)}
    tiny_wan_pipeline().transformer.enable_group_offload(CPU, **options)
    for fuse in (True, False):
        pipe = tiny_wan_pipeline()
        red = planted(pipe)
        pipe.load_unlearning_adapter(red)
        if fuse:
            pipe.fuse_unlearning_adapters()
        pipe.transformer.enable_group_offload(CPU, **options)
        assert close(output(pipe), reference_output() if fuse else reference_output((red, 1.0)))
