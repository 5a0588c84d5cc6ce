import contextlib
import inspect
import warnings

import accelerate.hooks
import pytest
import torch
from diffusers import DiffusionPipeline, WanPipeline
from diffusers.modular_pipelines.wan import WanBlocks
from tiny import CALL, tiny_wan_pipeline
from torch import nn

from planted import bits, close, lora_that_reads, output, planted, reference_output, snapshot
from unlearning_adapters.adapter.adapter import load_adapter, save_adapter
from unlearning_adapters.errors import (
    AdapterNameError,
    AdapterNotFoundError,
    ConfigError,
    DenoiserError,
    FuseError,
    UnlearningError,
)
from unlearning_adapters.runtime import verbs


@pytest.fixture
def pipe():
    return tiny_wan_pipeline()


def weights(pipe) -> dict[str, torch.Tensor]:
    return {name: bits(value) for name, value in pipe.transformer.state_dict().items()}


def test_an_attached_adapter_does_what_its_mathematics_say(pipe):
    red, base, before = planted(pipe, strength=1.2), output(pipe), weights(pipe)
    assert pipe.load_unlearning_adapter(red) == "red"
    assert close(output(pipe), reference_output((red, 1.2))) and not close(output(pipe), base)
    assert all(torch.equal(value, before[name]) for name, value in weights(pipe).items())
    assert pipe.get_list_unlearning_adapters() == {"transformer": ["red"]}
    assert pipe.get_active_unlearning_adapters() == ["red"]


@pytest.mark.parametrize("sites", ["text", "hidden"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_attached_and_fused_agree_and_only_sites_change(dtype, sites):
    pipe = tiny_wan_pipeline(dtype=dtype)
    red, base, before = planted(pipe, sites=sites), output(pipe), weights(pipe)
    pipe.load_unlearning_adapter(red)
    attached = output(pipe)
    pipe.fuse_unlearning_adapters()
    assert close(output(pipe), attached) and not torch.equal(output(pipe), base)
    changed = {name for name, value in weights(pipe).items() if not torch.equal(value, before[name])}
    assert {f"transformer.{name}" for name in changed} == {f"{site}.weight" for site in red.sites}
    assert "_diffusers_hook" not in pipe.transformer.blocks[0].attn2.to_k.__dict__, "fused costs nothing per call"


@pytest.mark.parametrize("cycles", [1, 20])
@pytest.mark.parametrize("names", [("red",), ("red", "blue", "green")])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_unfusing_is_bit_exact(dtype, names, cycles):
    pipe = tiny_wan_pipeline(dtype=dtype, layers=1)
    before, base = weights(pipe), bits(output(pipe))
    for number, name in enumerate(names):
        pipe.load_unlearning_adapter(planted(pipe, name, seed=number, rank=number + 1, strength=1 + number / 5))
    attached = bits(output(pipe))
    for _ in range(cycles):
        pipe.fuse_unlearning_adapters()
        assert any(not torch.equal(value, before[name]) for name, value in weights(pipe).items())
        pipe.unfuse_unlearning_adapters()
        assert all(torch.equal(value, before[name]) for name, value in weights(pipe).items())
    assert torch.equal(bits(output(pipe)), attached)
    pipe.unload_unlearning_adapters()
    assert torch.equal(bits(output(pipe)), base)


def test_the_order_of_loading_does_not_matter_bit_for_bit():
    outputs = []
    for order in ((0, 1, 2), (2, 0, 1)):
        pipe = tiny_wan_pipeline()
        adapters = [planted(pipe, name, seed=number, strength=1.1) for number, name in enumerate("abc")]
        for number in order:
            pipe.load_unlearning_adapter(adapters[number])
        outputs.append(output(pipe))
        reference = reference_output(*((adapter, 1.1) for adapter in adapters))
    assert torch.equal(*outputs) and close(outputs[0], reference)


def test_a_concept_loaded_twice_equals_once_bit_for_bit(pipe):
    red = planted(pipe)
    pipe.load_unlearning_adapter(red)
    once = output(pipe)
    with pytest.warns(UserWarning, match="'red.*' and 'red.*' remove nearly the same direction at 4 of 4 sites"):
        assert pipe.load_unlearning_adapter(red) == "red_2"
    assert torch.equal(output(pipe), once)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # said once
        pipe.set_unlearning_adapters(["red", "red_2"], [1.0, 0.5])
    assert torch.equal(output(pipe), once), "the larger strength acts"


def test_strength_0_is_the_base_bit_for_bit(pipe):
    base = bits(output(pipe))
    pipe.load_unlearning_adapter(planted(pipe, "red"), strength=0.0)
    assert torch.equal(bits(output(pipe)), base)
    pipe.load_unlearning_adapter(planted(pipe, "blue", seed=1))
    with_blue = bits(output(pipe))
    assert not torch.equal(with_blue, base)
    pipe.set_unlearning_adapters(["red", "blue"], 0.0)
    assert torch.equal(bits(output(pipe)), base)
    pipe.fuse_unlearning_adapters()
    assert torch.equal(bits(output(pipe)), base)
    pipe.unfuse_unlearning_adapters()
    pipe.set_unlearning_adapters(["red", "blue"], [0.0, None])
    assert torch.equal(bits(output(pipe)), with_blue)


def test_strengths_are_those_given_or_calibrated(pipe):
    red, blue = planted(pipe, "red", strength=1.3), planted(pipe, "blue", seed=1, strength=0.6)
    pipe.load_unlearning_adapter(red, "one", strength=0.4)
    pipe.load_unlearning_adapter(blue)
    assert close(output(pipe), reference_output((red, 0.4), (blue, 0.6)))
    pipe.set_unlearning_adapters(["one", "blue"], [2.0, 0.0])
    assert close(output(pipe), reference_output((red, 2.0)))
    pipe.set_unlearning_adapters(["blue", "one"])
    assert close(output(pipe), reference_output((red, 0.4), (blue, 0.6)))
    pipe.set_unlearning_adapters("blue")
    assert close(output(pipe), reference_output((blue, 0.6)))
    assert pipe.get_active_unlearning_adapters() == ["blue"]
    assert pipe.get_list_unlearning_adapters() == {"transformer": ["one", "blue"]}


def test_none_active_disabled_deleted_and_unloaded_are_the_base(pipe):
    base, before = bits(output(pipe)), snapshot(pipe)
    for number, name in enumerate(("red", "blue")):
        pipe.load_unlearning_adapter(planted(pipe, name, seed=number))
    both = bits(output(pipe))
    pipe.set_unlearning_adapters([])
    assert torch.equal(bits(output(pipe)), base) and pipe.get_active_unlearning_adapters() == []
    pipe.set_unlearning_adapters(["red", "blue"])
    assert torch.equal(bits(output(pipe)), both)
    pipe.disable_unlearning_adapters()
    assert torch.equal(bits(output(pipe)), base) and pipe.get_active_unlearning_adapters() == []
    pipe.enable_unlearning_adapters()
    assert torch.equal(bits(output(pipe)), both) and pipe.get_active_unlearning_adapters() == ["red", "blue"]
    pipe.delete_unlearning_adapters("red")
    only_blue = bits(output(pipe))
    assert not torch.equal(only_blue, both) and not torch.equal(only_blue, base)
    pipe.delete_unlearning_adapters(["blue"])
    assert torch.equal(bits(output(pipe)), base) and snapshot(pipe) == before
    pipe.load_unlearning_adapter(planted(pipe, "blue", seed=1))
    assert torch.equal(bits(output(pipe)), only_blue)
    pipe.unload_unlearning_adapters()
    assert torch.equal(bits(output(pipe)), base) and snapshot(pipe) == before
    assert pipe.get_list_unlearning_adapters() == {}


def test_loading_never_switches_another_off(pipe):
    red, blue = planted(pipe, "red"), planted(pipe, "blue", seed=1)
    pipe.load_unlearning_adapter(red)
    pipe.disable_unlearning_adapters()
    pipe.load_unlearning_adapter(blue)
    assert pipe.get_active_unlearning_adapters() == ["red", "blue"]
    assert close(output(pipe), reference_output((red, 1.0), (blue, 1.0)))


def test_fused_and_attached_adapters_act_jointly(pipe):
    red, blue, green = (
        planted(pipe, name, seed=number, rank=2) for number, name in enumerate(("red", "blue", "green"))
    )
    everything = reference_output((red, 1.0), (blue, 0.6), (green, 1.4))
    before = weights(pipe)
    pipe.load_unlearning_adapter(red)
    pipe.load_unlearning_adapter(blue, strength=0.6)
    pipe.fuse_unlearning_adapters("red")
    pipe.load_unlearning_adapter(green, strength=1.4)
    assert close(output(pipe), everything)
    pipe.fuse_unlearning_adapters()
    assert close(output(pipe), everything)
    pipe.unfuse_unlearning_adapters(["red", "green"])
    assert close(output(pipe), everything) and pipe.get_active_unlearning_adapters() == ["red", "blue", "green"]
    pipe.set_unlearning_adapters(["blue", "red"], [None, 0.3])
    assert close(output(pipe), reference_output((red, 0.3), (blue, 0.6)))
    pipe.unfuse_unlearning_adapters()
    assert all(torch.equal(value, before[name]) for name, value in weights(pipe).items())
    assert close(output(pipe), reference_output((red, 0.3), (blue, 0.6)))


def test_unfusing_one_fuses_the_rest_as_if_alone(pipe):
    red, blue = planted(pipe, "red"), planted(pipe, "blue", seed=1)
    pipe.load_unlearning_adapter(blue)
    pipe.fuse_unlearning_adapters()
    alone = weights(pipe)
    pipe.load_unlearning_adapter(red)
    pipe.fuse_unlearning_adapters()
    pipe.unfuse_unlearning_adapters("red")
    assert all(torch.equal(value, alone[name]) for name, value in weights(pipe).items())


def test_fuse_makes_a_named_adapter_act(pipe):
    red, blue = planted(pipe, "red"), planted(pipe, "blue", seed=1)
    for adapter in (red, blue):
        pipe.load_unlearning_adapter(adapter)
    pipe.set_unlearning_adapters("red")
    pipe.fuse_unlearning_adapters(["blue"])
    assert close(output(pipe), reference_output((red, 1.0), (blue, 1.0)))


def test_a_saved_fused_pipeline_is_an_ordinary_edited_checkpoint(pipe, tmp_path):
    pipe.load_unlearning_adapter(planted(pipe))
    pipe.fuse_unlearning_adapters()
    pipe.transformer.save_pretrained(tmp_path)
    fresh = tiny_wan_pipeline()
    fresh.transformer = type(pipe.transformer).from_pretrained(tmp_path)
    fused = weights(pipe)
    assert all(torch.equal(value, fused[name]) for name, value in weights(fresh).items())
    assert close(output(fresh), output(pipe))
    assert fresh.get_list_unlearning_adapters() == {}


SAME = object()  # stands for the adapter that is loaded as "red"
NO_SUCH = "There is no unlearning adapter 'rad' on this pipeline. Did you mean 'red'"
FUSED = r"The adapter 'red' is fused .* cannot be {}\. Call unfuse_unlearning_adapters\(\) first"
CALLS = [
    ("load_unlearning_adapter", (SAME, "red"), AdapterNameError, "'red' is loaded already.* Pass another"),
    ("load_unlearning_adapter", (SAME, "a.b"), AdapterNameError, "without '.', but got 'a.b'"),
    ("load_unlearning_adapter", (SAME, "x", 5.0), ConfigError, "from 0 .off. to 4, but got 5.0"),
    (
        "load_unlearning_adapter",
        (SAME, "x", 2.0),
        FuseError,
        "'x' at strength 2 on the input and 'red' at strength 1 in the weight overlap.* call unfuse",
    ),
    ("load_unlearning_adapter", ("no/such/folder",), AdapterNotFoundError, "no/such/folder"),
    ("set_unlearning_adapters", ("rad",), AdapterNameError, NO_SUCH),
    ("set_unlearning_adapters", (["red"], [1.0, 2.0]), ConfigError, "each of 1 adapters, but got 2"),
    ("set_unlearning_adapters", (["red", "red"],), AdapterNameError, "each adapter once, but got 'red', 'red'"),
    ("set_unlearning_adapters", ("blue", float("nan")), ConfigError, "but got nan"),
    ("set_unlearning_adapters", ("red", 0.5), FuseError, "fused at strength 1 and cannot be set to 0.5. Call unfuse"),
    (
        "set_unlearning_adapters",
        ("blue",),
        FuseError,
        "'red' is fused at strength 1 and cannot be set to 0. Call unfuse",
    ),
    ("disable_unlearning_adapters", (), FuseError, FUSED.format("disabled")),
    ("delete_unlearning_adapters", (["blue", "rad"],), AdapterNameError, NO_SUCH),
    ("delete_unlearning_adapters", ("red",), FuseError, FUSED.format("deleted")),
    ("unload_unlearning_adapters", (), FuseError, FUSED.format("unloaded")),
    ("fuse_unlearning_adapters", ("rad",), AdapterNameError, NO_SUCH),
    ("unfuse_unlearning_adapters", ("blue",), AdapterNameError, "'blue' is not fused; fused are: red"),
    ("unfuse_unlearning_adapters", ("rad",), AdapterNameError, NO_SUCH),
    ("save_unlearning_adapter", ("never",), AdapterNameError, "since 2 are loaded: red, blue"),
    ("save_unlearning_adapter", ("never", "rad"), AdapterNameError, NO_SUCH),
]


@pytest.mark.parametrize(("verb", "arguments", "error", "text"), CALLS)
def test_a_failed_call_names_the_cure_and_leaves_no_trace(verb, arguments, error, text, pipe):
    red = planted(pipe, "red")
    pipe.load_unlearning_adapter(red)
    pipe.load_unlearning_adapter(planted(pipe, "blue", seed=1))
    pipe.fuse_unlearning_adapters("red")
    before, expected = snapshot(pipe), output(pipe)
    with pytest.raises(error, match=text) as caught:
        getattr(pipe, verb)(*(red if argument is SAME else argument for argument in arguments))
    assert isinstance(caught.value, UnlearningError) and "\n" not in str(caught.value)
    assert snapshot(pipe) == before and torch.equal(output(pipe), expected)


def test_a_failed_first_call_leaves_no_trace(pipe):
    adapter = planted(pipe)
    pipe.transformer.blocks[1].attn2.to_v.weight.data = torch.zeros(48, 48, dtype=torch.float8_e4m3fn)
    before = snapshot(pipe)
    pipe.load_unlearning_adapter(adapter)
    loaded = snapshot(pipe)
    with pytest.raises(FuseError, match=r"blocks\.1\.attn2\.to_v is quantised .*float8_e4m3fn.* Attach the adapter"):
        pipe.fuse_unlearning_adapters()
    assert snapshot(pipe) == loaded
    pipe.unload_unlearning_adapters()
    assert snapshot(pipe) == before


def test_a_warning_that_is_an_error_leaves_no_trace(pipe):
    pipe.load_unlearning_adapter(planted(pipe))
    before = snapshot(pipe)
    with warnings.catch_warnings(), pytest.raises(UserWarning, match="nearly the same"):
        warnings.simplefilter("error")
        pipe.load_unlearning_adapter(planted(pipe))
    assert snapshot(pipe) == before


def test_nothing_to_fuse_is_an_error_and_nothing_to_unfuse_is_not(pipe):
    with pytest.raises(AdapterNameError, match="No adapter acts that could be fused. Load one"):
        pipe.fuse_unlearning_adapters()
    pipe.unfuse_unlearning_adapters()
    pipe.load_unlearning_adapter(planted(pipe))
    pipe.disable_unlearning_adapters()
    with pytest.raises(FuseError, match=r"disabled, and fused ones would act. Call enable_unlearning_adapters\(\)"):
        pipe.fuse_unlearning_adapters("red")


def test_a_pipeline_without_a_denoiser_is_named():
    class Headless:
        components = {"vae": nn.Linear(2, 2)}

    for verb in verbs.VERBS:
        arguments = ["x"] * (len([p for p in inspect.signature(verb).parameters.values() if p.default is p.empty]) - 1)
        with pytest.raises(DenoiserError, match="Headless has no denoiser.*its components are: vae"):
            with contextlib.ExitStack() as stack:
                if hasattr(begun := verb(Headless(), *arguments), "__enter__"):  # the one that is for a `with`
                    stack.enter_context(begun)


def test_files_and_folders_are_loaded_and_saved_with_the_strength_of_now(pipe, tmp_path):
    red = planted(pipe, strength=1.3)
    path = save_adapter(red, tmp_path / "given")
    assert pipe.load_unlearning_adapter(tmp_path / "given") == "red"
    assert pipe.load_unlearning_adapter(planted(pipe, "blue", seed=1), "other") == "other"
    same = pipe.save_unlearning_adapter(tmp_path / "same", "red")
    assert same.read_bytes() == path.read_bytes()
    pipe.set_unlearning_adapters(["red", "other"], [0.7, 1.0])
    weaker = load_adapter(pipe.save_unlearning_adapter(tmp_path / "weaker.safetensors", adapter_name="red"))
    assert weaker.strength == 0.7
    for site, factor in weaker.lora_B.items():
        torch.testing.assert_close(factor, red.lora_B[site] * (0.7 / 1.3))
    fresh = tiny_wan_pipeline()
    fresh.load_unlearning_adapter(str(tmp_path / "weaker.safetensors"))
    assert close(output(fresh), reference_output((red, 0.7)))


def test_a_saved_strength_of_0_can_be_raised_again(pipe, tmp_path):
    red = planted(pipe)
    pipe.load_unlearning_adapter(red)
    pipe.set_unlearning_adapters("red", 0.0)
    pipe.save_unlearning_adapter(tmp_path)
    fresh = tiny_wan_pipeline()
    base = output(fresh)
    fresh.load_unlearning_adapter(tmp_path)
    assert torch.equal(output(fresh), base)
    fresh.set_unlearning_adapters("red", 1.0)
    assert close(output(fresh), reference_output((red, 1.0)))
    assert load_adapter(fresh.save_unlearning_adapter(tmp_path / "again")).lora_B.keys() == red.lora_B.keys()


class TestLora:
    """A stock style LoRA that reads the very thing that was removed, loaded before or after."""

    def setup_method(self) -> None:
        self.pipe = tiny_wan_pipeline()
        self.red = planted(self.pipe, strength=1.2)
        self.style = lora_that_reads(self.red, self.pipe, others=["transformer.blocks.1.ffn.net.2"])
        self.styled = reference_output(lora=self.style)
        self.edited = reference_output((self.red, 1.2), lora=self.style)
        assert not close(self.styled, output(self.pipe)) and not close(self.edited, self.styled)

    def load_style(self, name="style") -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.pipe.load_lora_weights({key: value.clone() for key, value in self.style.items()}, adapter_name=name)

    def test_the_lora_alone_does_what_the_reference_says(self):
        self.load_style()
        assert close(output(self.pipe), self.styled)

    @pytest.mark.parametrize("fused", [False, True])
    @pytest.mark.parametrize("style_first", [False, True])
    def test_it_reads_the_edited_input(self, style_first, fused):
        if style_first:
            self.load_style()
        self.pipe.load_unlearning_adapter(self.red)
        if fused:
            self.pipe.fuse_unlearning_adapters()
        if not style_first:
            self.load_style()
        assert close(output(self.pipe), self.edited)

    @pytest.mark.parametrize("fused", [False, True])
    def test_the_lora_verbs_do_not_touch_the_edit(self, fused):
        self.pipe.load_unlearning_adapter(self.red)
        if fused:
            self.pipe.fuse_unlearning_adapters()
        without = output(self.pipe)
        self.load_style()
        self.load_style("second")
        output(self.pipe)
        self.pipe.set_adapters(["style"], [1.0])
        assert close(output(self.pipe), self.edited)
        self.pipe.disable_lora()
        assert close(output(self.pipe), without)
        self.pipe.enable_lora()
        assert close(output(self.pipe), self.edited)
        self.pipe.delete_adapters("second")
        assert close(output(self.pipe), self.edited)
        self.pipe.unload_lora_weights()
        assert torch.equal(output(self.pipe), without)
        assert self.pipe.get_active_unlearning_adapters() == ["red"]

    @pytest.mark.parametrize("fused", [False, True])
    def test_taking_the_adapter_off_leaves_the_lora(self, fused):
        before = weights(self.pipe)
        self.pipe.load_unlearning_adapter(self.red)
        if fused:
            self.pipe.fuse_unlearning_adapters()
        self.load_style()
        output(self.pipe)
        if fused:
            self.pipe.unfuse_unlearning_adapters()
            assert close(output(self.pipe), self.edited)
        self.pipe.unload_unlearning_adapters()
        assert close(output(self.pipe), self.styled)
        self.pipe.unload_lora_weights()
        assert all(torch.equal(value, before[name]) for name, value in weights(self.pipe).items())
        assert not any("_diffusers_hook" in module.__dict__ for module in self.pipe.transformer.modules())

    def test_a_lora_that_is_fused_first_is_edited_with_the_weight(self):
        self.load_style()
        self.pipe.fuse_lora()
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # the base is the one that it was built on
            self.pipe.load_unlearning_adapter(self.red)
        assert close(output(self.pipe), self.edited)
        self.pipe.fuse_unlearning_adapters()
        assert close(output(self.pipe), self.edited)

    def test_a_lora_that_is_fused_later_is_edited_with_the_weight(self):
        self.pipe.load_unlearning_adapter(self.red)
        self.pipe.fuse_unlearning_adapters()
        self.load_style()
        self.pipe.fuse_lora()
        assert close(output(self.pipe), self.edited)
        self.pipe.unload_lora_weights()
        assert close(output(self.pipe), self.edited)
        self.pipe.unfuse_unlearning_adapters()
        self.pipe.unload_unlearning_adapters()
        assert close(output(self.pipe), self.styled)

    def test_fused_and_attached_beside_a_lora(self):
        blue = planted(self.pipe, "blue", seed=4)
        self.pipe.load_unlearning_adapter(self.red)
        self.pipe.fuse_unlearning_adapters()
        self.load_style()
        self.pipe.load_unlearning_adapter(blue)
        assert close(output(self.pipe), reference_output((self.red, 1.2), (blue, 1.0), lora=self.style))


def test_two_denoisers_are_edited_each_with_its_own_directions():
    pipe = tiny_wan_pipeline(two_denoisers=True)
    red = planted(pipe)
    assert red.components == ("transformer", "transformer_2")
    base, before = [output(pipe), output(pipe, "transformer_2")], snapshot(pipe)
    pipe.load_unlearning_adapter(red)
    assert pipe.get_list_unlearning_adapters() == {"transformer": ["red"], "transformer_2": ["red"]}
    attached = [output(pipe), output(pipe, "transformer_2")]
    assert not any(map(close, attached, base))
    pipe.fuse_unlearning_adapters()
    assert all(map(close, [output(pipe), output(pipe, "transformer_2")], attached))
    pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    assert snapshot(pipe) == before


def test_pipelines_that_share_a_denoiser_share_its_adapters(pipe):
    other = WanPipeline.from_pipe(pipe)
    red = planted(pipe)
    pipe.load_unlearning_adapter(red)
    assert other.get_active_unlearning_adapters() == ["red"]
    other.unload_unlearning_adapters()
    assert pipe.get_list_unlearning_adapters() == {}


def test_a_whole_generation_follows_the_adapter_and_comes_back(pipe):
    def clip():
        return pipe("a red circle", **CALL, output_type="latent", generator=torch.Generator().manual_seed(0)).frames

    base = clip()
    pipe.load_unlearning_adapter(planted(pipe))
    attached = clip()
    assert not torch.allclose(attached, base)
    pipe.fuse_unlearning_adapters()
    assert torch.allclose(clip(), attached, atol=1e-4)
    pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    assert torch.equal(clip(), base)


def test_a_compiled_denoiser_is_edited():
    torch.compiler.reset()
    pipe, graphs = tiny_wan_pipeline(layers=1), []

    def backend(module, _inputs):
        graphs.append(module)
        return module.forward

    red, network = planted(pipe), pipe.transformer
    pipe.transformer = torch.compile(network, backend=backend)
    base = output(pipe)
    pipe.load_unlearning_adapter(red)
    assert close(output(pipe), reference_output((red, 1.0), layers=1))
    compiled = len(graphs)
    pipe.set_unlearning_adapters("red", 0.4)
    assert close(output(pipe), reference_output((red, 0.4), layers=1))
    assert len(graphs) == compiled, "a new strength compiles nothing"
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), base)
    torch.compiler.reset()


def test_calls_inside_of_inference_mode_do_not_bind_later_ones(pipe):
    red = planted(pipe)
    with torch.inference_mode():
        pipe.load_unlearning_adapter(red)
        output(pipe)
    pipe.set_unlearning_adapters("red", 0.5)
    pipe.fuse_unlearning_adapters()
    with torch.inference_mode():
        pipe.unfuse_unlearning_adapters()
    assert close(output(pipe), reference_output((red, 0.5)))


def test_group_offloading_before_or_after_leaves_the_edit(pipe):
    for before in (True, False):
        pipe = tiny_wan_pipeline()
        red = planted(pipe)
        if before:
            pipe.load_unlearning_adapter(red)
        pipe.transformer.enable_group_offload(
            onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
        )
        if not before:
            pipe.load_unlearning_adapter(red)
        assert close(output(pipe), reference_output((red, 1.0)))
        pipe.unload_unlearning_adapters()
        assert close(output(pipe), reference_output())


def test_offloading_that_loading_a_lora_takes_off_and_on_leaves_the_edit(pipe):
    """As with sequential offloading: the wrapper of every layer goes, the LoRA comes, the wrappers come back."""
    red, before = planted(pipe, strength=1.2), snapshot(pipe)
    style = lora_that_reads(red, pipe)
    edited = reference_output((red, 1.2), lora=style)

    def offload():
        for module in pipe.transformer.modules():
            if module is pipe.transformer or not list(module.children()):
                accelerate.hooks.add_hook_to_module(module, accelerate.hooks.ModelHook())

    def onload():
        accelerate.hooks.remove_hook_from_module(pipe.transformer, recurse=True)

    offload()
    pipe.load_unlearning_adapter(red)
    assert close(output(pipe), reference_output((red, 1.2)))
    onload()
    pipe.load_lora_weights(style, adapter_name="style")
    offload()
    assert close(output(pipe), edited)
    onload()
    offload()
    assert close(output(pipe), edited)
    onload()
    pipe.unload_lora_weights()
    offload()
    assert close(output(pipe), reference_output((red, 1.2)))
    pipe.unload_unlearning_adapters()
    onload()
    assert close(output(pipe), reference_output())
    assert not any("_diffusers_hook" in module.__dict__ for module in pipe.transformer.modules())
    assert snapshot(pipe).keys() == before.keys()


def test_modular_pipelines_have_the_verbs_too(pipe):
    modular = WanBlocks().init_pipeline()
    modular.update_components(transformer=pipe.transformer)
    red = planted(pipe)
    modular.load_unlearning_adapter(red)
    assert close(output(pipe), reference_output((red, 1.0)))
    assert modular.get_active_unlearning_adapters() == pipe.get_active_unlearning_adapters() == ["red"]
    modular.unload_unlearning_adapters()
    assert pipe.get_list_unlearning_adapters() == {}


def test_the_verbs_are_methods_with_their_documentation():
    for verb in verbs.VERBS:
        method = getattr(DiffusionPipeline, verb.__name__)
        assert method is verb and verb.__doc__
        assert (
            list(inspect.signature(getattr(tiny(), verb.__name__)).parameters)
            == list(inspect.signature(verb).parameters)[1:]
        )


def tiny():
    return object.__new__(WanPipeline)


def test_install_leaves_a_method_that_is_not_ours():
    class Theirs:
        def fuse_unlearning_adapters(self):
            return "theirs"

    with pytest.warns(UserWarning, match="Theirs has a method fuse_unlearning_adapters of its own"):
        verbs.install(Theirs)
    assert Theirs().fuse_unlearning_adapters() == "theirs"
    assert Theirs.load_unlearning_adapter is verbs.load_unlearning_adapter
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        verbs.install(DiffusionPipeline)  # again: they are ours
