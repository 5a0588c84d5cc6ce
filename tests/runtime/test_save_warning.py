"""Checkpoints and copies of an edited pipeline: what is in them, what is not, and who says so."""

import copy
import pickle
import warnings
from pathlib import Path

import accelerate
import pytest
import torch
from diffusers import WanPipeline
from diffusers.hooks import FasterCacheConfig, FirstBlockCacheConfig
from fresh import in_copy
from offloaded import CPU
from safetensors.torch import load_file, save_file
from tiny import TEXT_DIM, tiny_wan_pipeline

from planted import bits, close, lora_that_reads, output, planted, reference_output
from unlearning_adapters.errors import DenoiserError, UnlearningError

ATTACHED = "The adapter 'red' is attached, not fused, and no part of the checkpoint .* Call fuse_unlearning_adapters"
RELOAD = """
import sys, torch
from diffusers import WanPipeline
from safetensors.torch import load_file, save_file
class Nobody:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] == "unlearning_adapters":
            raise ModuleNotFoundError(name)
sys.meta_path.insert(0, Nobody())
pipe = WanPipeline.from_pretrained(sys.argv[1])
inputs = load_file(sys.argv[2])
with torch.no_grad():
    out = pipe.transformer(inputs["latents"], inputs["step"], inputs["prompt"], return_dict=False)[0]
save_file({**{f"weight.{k}": v.clone() for k, v in pipe.transformer.state_dict().items()}, "out": out}, sys.argv[3])
assert not any(name.split(".")[0] == "unlearning_adapters" for name in sys.modules)
"""


@pytest.fixture
def pipe():
    return tiny_wan_pipeline()


@pytest.fixture
def silent():
    """Make every warning of the tests that ask for it an error, where it says that something is attached."""
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*attached, not fused")
        yield


def weights(pipe) -> dict[str, torch.Tensor]:
    return {name: bits(value) for name, value in pipe.transformer.state_dict().items()}


def same(one, other) -> bool:
    return one.keys() == other.keys() and all(torch.equal(value, other[name]) for name, value in one.items())


@pytest.mark.parametrize("whole", [True, False])
def test_saving_while_attached_warns_at_the_line_that_saves_and_writes_the_base(whole, pipe, tmp_path):
    base, red = weights(pipe), planted(pipe)
    pipe.load_unlearning_adapter(red)
    with pytest.warns(UserWarning, match=ATTACHED) as caught:
        (pipe if whole else pipe.transformer).save_pretrained(tmp_path)
    (warning,) = (item for item in caught if "attached" in str(item.message))
    assert warning.filename == __file__ and "\n" not in str(warning.message)
    fresh = WanPipeline.from_pretrained(tmp_path) if whole else tiny_wan_pipeline()
    if not whole:
        fresh.transformer = type(pipe.transformer).from_pretrained(tmp_path)
    assert same(weights(fresh), base) and fresh.get_list_unlearning_adapters() == {}


def test_both_denoisers_warn_and_only_adapters_that_act_are_named(tmp_path):
    pipe = tiny_wan_pipeline(two_denoisers=True)
    pipe.load_unlearning_adapter(planted(pipe))
    pipe.load_unlearning_adapter(planted(pipe, "blue", seed=1), strength=0.0)
    with pytest.warns(UserWarning, match="'red' is attached") as caught:
        pipe.save_pretrained(tmp_path)
    assert len([item for item in caught if "attached" in str(item.message)]) == 2
    assert not any("'blue'" in str(item.message) for item in caught)


def test_nothing_is_said_where_nothing_is_lost(pipe, tmp_path, silent):
    """Fused, disabled or unloaded; and where a state dict is not asked for by `save_pretrained`."""
    red = planted(pipe)
    clean = dict(pipe.transformer._state_dict_pre_hooks)
    pipe.load_unlearning_adapter(red)
    pipe.transformer.state_dict()
    pipe.load_lora_weights(lora_that_reads(red, pipe), adapter_name="style")
    pipe.save_unlearning_adapter(tmp_path / "adapter")
    WanPipeline.save_lora_weights(tmp_path / "lora", {"blocks.0.attn2.to_k.lora_A.weight": torch.ones(1, 48)})
    pipe.unload_lora_weights()
    accelerate.cpu_offload(pipe.transformer, CPU)
    pipe.remove_all_hooks()
    copy.deepcopy(pipe)
    pipe.disable_unlearning_adapters()
    pipe.transformer.save_pretrained(tmp_path / "disabled")
    pipe.enable_unlearning_adapters()
    pipe.fuse_unlearning_adapters()
    pipe.transformer.save_pretrained(tmp_path / "fused")
    pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    pipe.transformer.save_pretrained(tmp_path / "unloaded")
    assert dict(pipe.transformer._state_dict_pre_hooks) == clean


def test_a_warning_that_is_an_error_stops_the_saving(pipe, tmp_path, silent):
    pipe.load_unlearning_adapter(planted(pipe))
    before = output(pipe)
    with pytest.raises(UserWarning, match=ATTACHED):
        pipe.save_pretrained(tmp_path)
    assert torch.equal(output(pipe), before)


def test_saved_while_fused_another_process_without_this_package_reloads_it_edited(pipe, tmp_path, silent):
    red, base = planted(pipe), weights(pipe)
    pipe.load_unlearning_adapter(red)
    pipe.fuse_unlearning_adapters()
    pipe.save_pretrained(tmp_path / "model")
    maker = torch.Generator().manual_seed(3)
    inputs = {"latents": torch.randn(1, 16, 2, 4, 4, generator=maker), "step": torch.tensor([500])}
    inputs["prompt"] = torch.randn(1, 12, TEXT_DIM, generator=maker)
    save_file(inputs, tmp_path / "inputs.safetensors")
    where = [str(tmp_path / name) for name in ("model", "inputs.safetensors", "out.safetensors")]
    in_copy("-c", RELOAD, *where, path=[""])
    found = load_file(tmp_path / "out.safetensors")
    with torch.no_grad():
        here = pipe.transformer(inputs["latents"], inputs["step"], inputs["prompt"], return_dict=False)[0]
    torch.testing.assert_close(found.pop("out"), here)
    reloaded = {name.removeprefix("weight."): bits(value) for name, value in found.items()}
    assert same(reloaded, weights(pipe)) and not same(reloaded, base)
    assert not any("unlearning" in path.read_text(errors="ignore") for path in Path(where[0]).rglob("*.json"))


def test_a_pipeline_made_from_another_shares_what_is_fused(pipe):
    red, base = planted(pipe), weights(pipe)
    pipe.load_unlearning_adapter(red)
    pipe.fuse_unlearning_adapters()
    other = WanPipeline.from_pipe(pipe)
    assert other.get_list_unlearning_adapters() == pipe.get_list_unlearning_adapters() == {"transformer": ["red"]}
    assert torch.equal(output(other), output(pipe))
    other.unfuse_unlearning_adapters()
    other.unload_unlearning_adapters()
    assert pipe.get_list_unlearning_adapters() == {} and same(weights(pipe), base)


@pytest.mark.parametrize("fused", [False, True])
def test_a_copy_says_that_it_is_one_and_can_be_emptied(fused, pipe):
    red, base = planted(pipe), output(pipe)
    pipe.load_unlearning_adapter(red)
    if fused:
        pipe.fuse_unlearning_adapters()
    edited = output(pipe)
    twin = copy.deepcopy(pipe)
    with pytest.raises(DenoiserError, match="is a copy of a denoiser with unlearning adapters"):
        output(twin)
    if fused:
        twin.unfuse_unlearning_adapters()
    twin.unload_unlearning_adapters()
    assert torch.equal(output(twin), base) and twin.get_list_unlearning_adapters() == {}
    assert torch.equal(output(pipe), edited) and pipe.get_active_unlearning_adapters() == ["red"]
    twin.load_unlearning_adapter(red)
    assert close(output(twin), reference_output((red, 1.0)))


def test_pickling_fails_instead_of_losing_the_edit(pipe):
    """diffusers' hooks cannot be pickled; without an adapter nothing stands in the way."""
    pipe.load_unlearning_adapter(planted(pipe))
    with pytest.raises((AttributeError, pickle.PicklingError), match="pickle"):
        pickle.dumps(pipe.transformer)
    pipe.unload_unlearning_adapters()
    back = pickle.loads(pickle.dumps(pipe.transformer))
    assert all(torch.equal(value, back.state_dict()[name]) for name, value in pipe.transformer.state_dict().items())


def test_projections_that_are_fused_after_attaching_are_an_error_and_not_a_bypass(pipe):
    red, base = planted(pipe), output(pipe)
    pipe.load_unlearning_adapter(red)
    attached = output(pipe)
    pipe.transformer.fuse_qkv_projections()
    for call in (lambda: output(pipe), pipe.fuse_unlearning_adapters):
        with pytest.raises(DenoiserError, match=r"'blocks.0.attn2.to_k' is not used .* Call unfuse_qkv_projections"):
            call()
    pipe.transformer.unfuse_qkv_projections()
    assert torch.equal(output(pipe), attached)
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), base)


def test_projections_that_are_fused_after_fusing_hold_the_edit(pipe):
    red, base = planted(pipe), output(pipe)
    pipe.load_unlearning_adapter(red)
    pipe.fuse_unlearning_adapters()
    pipe.transformer.fuse_qkv_projections()
    assert close(output(pipe), reference_output((red, 1.0)))
    with pytest.raises(UnlearningError, match="Call unfuse_qkv_projections"):
        pipe.unfuse_unlearning_adapters()
    assert close(output(pipe), reference_output((red, 1.0)))
    pipe.transformer.unfuse_qkv_projections()
    pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), base)


@pytest.mark.parametrize("ours_first", [True, False])
def test_beside_a_cache_of_blocks_the_edit_acts_and_goes(ours_first, pipe):
    """A threshold of 0 computes every block, and still runs through the cache's hooks."""
    red, base = planted(pipe), output(pipe)
    if ours_first:
        pipe.load_unlearning_adapter(red)
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    if not ours_first:
        pipe.load_unlearning_adapter(red)
    with pipe.transformer.cache_context("cond"):
        assert close(output(pipe), reference_output((red, 1.0)))
        pipe.unload_unlearning_adapters()
        assert torch.equal(output(pipe), base)
    pipe.transformer.disable_cache()
    assert torch.equal(output(pipe), base)


@pytest.mark.parametrize("ours_first", [True, False])
def test_a_cache_with_a_forward_of_its_own_on_the_denoiser_stays_when_ours_goes(ours_first, pipe):
    red, denoiser = planted(pipe), pipe.transformer
    if ours_first:
        pipe.load_unlearning_adapter(red)
    callbacks = {"current_timestep_callback": lambda: 500, "attention_weight_callback": lambda _: 0.5}
    denoiser.enable_cache(FasterCacheConfig(2, tensor_format="BCFHW", **callbacks))
    if not ours_first:
        pipe.load_unlearning_adapter(red)
    pipe.unload_unlearning_adapters()
    (chain,) = denoiser._diffusers_hook._fn_refs
    assert "FasterCache" in chain.forward.func.__qualname__
    assert chain.original_forward == type(denoiser).forward.__get__(denoiser)
    denoiser.disable_cache()
    assert torch.equal(output(pipe), output(tiny_wan_pipeline()))
