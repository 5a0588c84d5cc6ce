"""Unlearning adapters beside adapters that PEFT makes, of every kind, and weights that are changed without a word."""

import re
import warnings
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from conformance import ROUNDING, each, on_inputs, some_adapter
from diffusers import WanTransformer3DModel
from peft import (
    LoraConfig,
    get_peft_model,
    inject_adapter_in_model,
)
from peft_kinds import KINDS
from stdit import STDiT, run
from tiny import tiny_wan_pipeline
from tiny_denoisers import PROMPT
from twins import CLOSE, Twins, copied, edit, edited_inputs, layer_at, load, near, quiet

from planted import bits, lora_that_reads, output, planted, reference_output
from unlearning_adapters.errors import FuseError
from unlearning_adapters.runtime import editor as editor_module
from unlearning_adapters.runtime.any_module import wrap_denoiser
from unlearning_adapters.runtime.verbs import (
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
    unload_unlearning_adapters,
)


@torch.no_grad()
def fill(network, name="style"):
    """The same seeded numbers in every tensor of an adapter, by hand: nothing is loaded that could be noticed."""
    torch.manual_seed(4)
    for key, tensor in network.named_parameters():
        if name in key:
            tensor.copy_(torch.randn(tensor.shape) * 0.3 + ("magnitude" in key))


def add(kind):
    def verb(pipe):
        torch.manual_seed(3)
        pipe.transformer.add_adapter(KINDS[kind](), "style")
        fill(pipe.transformer)

    return verb


def unlearn(twins, fused):
    twins.ours.load_unlearning_adapter(twins.known["red"])
    twins.acting["red"] = 1.0
    if fused:
        twins.ours.fuse_unlearning_adapters()


def take_off(twins):
    twins.ours.unfuse_unlearning_adapters()
    twins.ours.unload_unlearning_adapters()
    twins.acting.clear()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_peft_puts_around_a_layer_reads_the_edited_input(kind, fused):
    for style_first in (False, True):
        twins = Twins()
        if style_first:
            twins.both(add(kind))
        before = output(twins.ours)
        unlearn(twins, fused)
        if not style_first:
            twins.both(add(kind))
        twins.check()
        assert not near(output(twins.ours), before, 1e-3)
        for verb in ("disable_adapters", "enable_adapters", "fuse_lora", "unfuse_lora", "fuse_lora", "unload_lora"):
            twins.both(lambda pipe, verb=verb: getattr(pipe.transformer, verb)())
            twins.check()
        take_off(twins)
        twins.check()
        twins.check_same_bits()


def test_a_copy_that_peft_made_of_an_edited_layer_runs_its_own_weights():
    twins = Twins()
    unlearn(twins, False)
    twins.both(add("modules to save"))
    twins.check()
    with torch.no_grad():
        for pipe in (twins.ours, twins.stock):
            pipe.transformer.blocks[0].attn2.to_k.modules_to_save["style"].weight.mul_(3.0)
    twins.check()


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.parametrize("wrapped_first", [False, True])
def test_a_denoiser_in_a_peft_model_is_edited_as_the_model_inside(wrapped_first, fused):
    def wrap(pipe):
        torch.manual_seed(3)
        pipe.transformer = get_peft_model(pipe.transformer, KINDS["DoRA"](), adapter_name="style")
        fill(pipe.transformer)

    def merge(pipe):
        pipe.transformer = pipe.transformer.merge_and_unload()

    twins = Twins()
    if wrapped_first:
        twins.both(wrap)
    unlearn(twins, fused)
    if not wrapped_first:
        twins.both(wrap)
    twins.check()
    assert twins.ours.get_list_unlearning_adapters() == {"transformer": ["red"]}
    twins.both(merge)
    twins.check()
    take_off(twins)
    twins.check_same_bits()


def by_hand(pipe):
    """A LoRA that is merged by a script of one's own: no verb, no wrapper, no call in between."""
    maker = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for block in pipe.transformer.blocks:
            for layer in (block.attn2.to_k, block.attn2.to_v):
                delta = torch.randn(24, 1, generator=maker) @ torch.randn(1, 24, generator=maker)
                layer.weight.data += delta.to(layer.weight.dtype)


def blindly(pipe):
    """The same by PEFT: made, filled, fused and gone before the denoiser is called or anything is loaded."""
    add("LoRA")(pipe)
    pipe.transformer.fuse_lora()
    pipe.transformer.unload_lora()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("change", [by_hand, blindly])
def test_a_weight_that_is_changed_unseen_is_edited_again_with_a_warning(change, dtype):
    twins = Twins(dtype)
    unlearn(twins, True)
    twins.both(change)
    with pytest.warns(UserWarning, match=r"changed after an unlearning adapter was fused .* the concept stays erased"):
        output(twins.ours)
    twins.check()
    weights = {name: bits(value) for name, value in twins.ours.transformer.state_dict().items()}
    for verb in ("unfuse_unlearning_adapters", "unload_unlearning_adapters"):
        with pytest.raises(FuseError, match="changed after it was fused|is fused into the weights"):
            getattr(twins.ours, verb)()
    assert all(torch.equal(bits(value), weights[name]) for name, value in twins.ours.transformer.state_dict().items())
    twins.check()
    twins.both(lambda pipe: load(pipe, twins.lora(), "style"))
    twins.check()
    twins.both(lambda pipe: pipe.unload_lora_weights())
    twins.check()


@pytest.mark.parametrize("failing", ["take_out", "fuse_weights", "warn"])
def test_settling_that_is_interrupted_is_done_at_the_next_call(failing, monkeypatch):
    twins = Twins()
    unlearn(twins, True)
    twins.both(by_hand)

    class Plug(BaseException):
        pass

    def fail(*_args, **_kwargs):
        raise Plug

    owner = warnings if failing == "warn" else editor_module
    monkeypatch.setattr(owner, failing, fail)
    with pytest.raises(Plug):
        output(twins.ours)
    monkeypatch.undo()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        output(twins.ours)
    if failing != "take_out":  # else one weight is as it was changed, and is edited as it is
        twins.check()
    twins.check_sites()


@pytest.mark.parametrize("change", [by_hand, blindly, None])
def test_what_is_saved_never_holds_the_concept(change, tmp_path):
    """`save_pretrained` with no call of the denoiser since a LoRA was fused."""
    twins = Twins()
    unlearn(twins, True)
    if change is None:
        twins.both(lambda pipe: load(pipe, twins.lora(), "style"))
        twins.both(lambda pipe: pipe.fuse_lora())
        twins.both(lambda pipe: pipe.unload_lora_weights())
    else:
        twins.both(change)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        twins.ours.transformer.save_pretrained(tmp_path)
    with quiet(), edited_inputs(twins.stock, twins.edits()):
        expected = output(twins.stock)
    twins.stock.transformer = WanTransformer3DModel.from_pretrained(tmp_path).eval()
    assert near(output(twins.stock), expected, CLOSE[torch.float32])


def test_training_a_fused_denoiser_does_not_bring_the_concept_back():
    twins = Twins()
    unlearn(twins, True)
    site = twins.known["red"].sites[0]
    write, weight = twins.known["red"].directions[site].write, layer_at(twins.ours, site).weight
    optimiser = torch.optim.SGD([weight], lr=0.1)
    for _ in range(2):
        (weight @ write.T).sum().backward()  # straight along the direction
        optimiser.step()
        assert (weight.detach() @ write.T).norm() > 0.1
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            output(twins.ours)
        assert (weight.detach() @ write.T).norm() < 1e-5


def test_weights_of_another_base_that_are_loaded_into_a_fused_denoiser_are_edited_too():
    twins = Twins()
    twins.ours.load_unlearning_adapter(twins.known["red"], strength=1.3)
    twins.ours.fuse_unlearning_adapters()
    twins.acting["red"] = 1.3
    saved = {name: value.clone() for name, value in twins.ours.transformer.state_dict().items()}
    twins.ours.transformer.load_state_dict(saved)
    twins.check()  # what was saved with the edit is not edited again
    maker = torch.Generator().manual_seed(1)
    other = {name: value + 0.1 * torch.randn(value.shape, generator=maker) for name, value in saved.items()}
    for pipe in (twins.ours, twins.stock):
        pipe.transformer.load_state_dict(copied(other))
    twins.check()
    take_off(twins)
    twins.check_same_bits()


@pytest.mark.parametrize("fused", [False, True])
def test_what_is_loaded_and_unloaded_in_inference_mode_does_not_bind_later_calls(fused):
    twins = Twins()
    unlearn(twins, fused)
    with torch.inference_mode():
        twins.both(lambda pipe: load(pipe, twins.lora(), "style"))
        output(twins.ours)
        twins.both(lambda pipe: pipe.unload_lora_weights())
        output(twins.ours)
    twins.check()
    take_off(twins)
    twins.check_same_bits()


def test_a_cast_of_a_fused_denoiser_is_no_change():
    twins = Twins()
    unlearn(twins, True)
    for pipe in (twins.ours, twins.stock):
        pipe.transformer.to(torch.float64)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        twins.ours.transformer.state_dict()
    twins.both(lambda pipe: pipe.transformer.to(torch.float32))
    twins.check()


def test_a_compiled_denoiser_follows_a_lora_that_is_fused_and_goes():
    def wrap(model):
        torch.manual_seed(3)
        inject_adapter_in_model(LoraConfig(r=2, target_modules=["kv_linear"]), model, "style")
        fill(model)

    def merge(model):
        for block in model.blocks:
            block.cross_attn.kv_linear.merge()

    def unwrap(model):
        for block in model.blocks:
            block.cross_attn.kv_linear = block.cross_attn.kv_linear.get_base_layer()

    def predict(model):
        return run(model, ["red old books"], [torch.Generator().manual_seed(0)])

    torch.compiler.reset()
    ours, stock = STDiT(), STDiT()
    pipe, twin = wrap_denoiser(ours, run), SimpleNamespace(transformer=stock)
    red = planted(pipe)
    load_unlearning_adapter(pipe, red)
    fuse_unlearning_adapters(pipe)
    matrices = {
        site.removeprefix("transformer."): torch.eye(known.in_features, dtype=torch.float64)
        - known.write.double().T @ known.read.double()
        for site, known in red.directions.items()
    }
    ours.compile(backend="eager")
    for change in (lambda model: None, wrap, merge, unwrap):
        for model in (ours, stock):
            change(model)
        with edited_inputs(twin, matrices):
            expected = predict(stock)
        assert near(predict(ours), expected, CLOSE[torch.float32])
        assert not near(predict(stock), expected, 1e-3)
    torch.compiler.reset()


@pytest.mark.parametrize("fused", [False, True])
def test_each_of_two_denoisers_beside_its_own_lora(fused):
    pipe = tiny_wan_pipeline(two_denoisers=True)
    red = planted(pipe, strength=1.0)
    styles = {}
    for part in ("transformer", "transformer_2"):
        factors = lora_that_reads(red, pipe)
        styles[part] = {
            key.replace(f"{part}.", "transformer.", 1): value
            for key, value in factors.items()
            if key.startswith(f"{part}.")
        }
    base = [{name: bits(value) for name, value in network.state_dict().items()} for network in networks(pipe)]
    pipe.load_unlearning_adapter(red)
    if fused:
        pipe.fuse_unlearning_adapters()
    with quiet():
        load(pipe, styles["transformer"], "style")
        load(pipe, styles["transformer_2"], "late", load_into_transformer_2=True)
        pipe.set_adapters(["style", "late"])
        pipe.fuse_lora(components=["transformer", "transformer_2"])
        pipe.unload_lora_weights()
    here = {site: value for site, value in red.directions.items() if site.startswith("transformer.")}
    first = reference_output((replace(red, directions=here, lora_B={}), 1.0), lora=styles["transformer"])
    output(pipe, "transformer_2")
    assert near(output(pipe), first, 1e-5)
    for network, part in zip(networks(pipe), ("transformer", "transformer_2"), strict=True):
        for path in (site.removeprefix(f"{part}.") for site in red.sites if site.startswith(f"{part}.")):
            write = red.directions[f"{part}.{path}"].write
            site = network.get_submodule(path)
            left = site(write) - site(torch.zeros_like(write))
            assert left.norm() < 1e-4 < (styles[part][f"transformer.{path}.lora_B.weight"]).norm()
    pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    changed = [
        {name for name, value in network.state_dict().items() if not torch.equal(bits(value), before[name])}
        for network, before in zip(networks(pipe), base, strict=True)
    ]
    assert all(
        names == {f"{s.split('.', 1)[1]}.weight" for s in red.sites if s.startswith(f"{p}.")}
        for names, p in zip(changed, ("transformer", "transformer_2"), strict=True)
    )


def networks(pipe):
    return pipe.transformer, pipe.transformer_2


@each
def test_every_denoiser_beside_a_lora_that_is_fused_and_goes(tiny):
    """A LoRA comes onto fused sites, is fused there and goes; each time the whole denoiser does what the twin does."""
    ours, stock = tiny.pipe(), tiny.pipe()
    adapter = some_adapter(ours)
    paths = [site.partition(".")[2] for site in adapter.sites]
    matrices = {
        site.partition(".")[2]: torch.eye(known.in_features, dtype=torch.float64)
        - known.write.double().T @ known.read.double()
        for site, known in adapter.directions.items()
    }

    def wrap(pipe):
        config = LoraConfig(r=1, target_modules="|".join(re.escape(path) for path in paths), init_lora_weights=False)
        inject_adapter_in_model(config, pipe.model, "style")
        for path in paths:
            layer, known = pipe.model.get_submodule(path), adapter.directions[f"{tiny.component}.{path}"]
            with torch.no_grad():
                layer.lora_A["style"].weight.copy_(known.read)  # just what was removed
                layer.lora_B["style"].weight.fill_(0.5)

    def merge(pipe):
        for path in paths:
            pipe.model.get_submodule(path).merge()

    def unwrap(pipe):
        for path in paths:
            parent, _, name = path.rpartition(".")
            setattr(pipe.model.get_submodule(parent), name, pipe.model.get_submodule(path).get_base_layer())

    load_unlearning_adapter(ours, adapter)
    fuse_unlearning_adapters(ours)
    for change in (wrap, merge, unwrap):
        change(ours)
        change(stock)
        with on_inputs(stock.model, lambda path, x: edit(x, matrices[path]) if path in matrices else x):
            expected = tiny.run(stock.model, PROMPT, 0)
        torch.testing.assert_close(tiny.run(ours.model, PROMPT, 0), expected, **ROUNDING)
    assert not torch.allclose(tiny.run(stock.model, PROMPT, 0), expected, **ROUNDING), "without the edit it is another"
    unfuse_unlearning_adapters(ours)
    unload_unlearning_adapters(ours)
    weights = stock.model.state_dict()
    assert all(torch.equal(bits(value), bits(weights[name])) for name, value in ours.model.state_dict().items())
