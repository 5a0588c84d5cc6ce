"""One expert at a time: a part of an adapter, a part on another denoiser, and a strength for each denoiser."""

import warnings
from dataclasses import replace

import pytest
import torch
from tiny import tiny_wan_pipeline

from planted import close, output, planted, snapshot
from unlearning_adapters.adapter.adapter import load_adapter
from unlearning_adapters.errors import ConfigError, FuseError, SiteError

FIRST, SECOND = "transformer", "transformer_2"


def both(**pipeline):
    pipe = tiny_wan_pipeline(two_denoisers=True, **pipeline)
    return pipe, planted(pipe), {part: output(pipe, part) for part in (FIRST, SECOND)}


@pytest.mark.parametrize(("gone", "there"), [(SECOND, FIRST), (FIRST, SECOND)])
def test_with_one_expert_loaded_its_half_acts_and_a_warning_names_the_other(gone, there, tmp_path):
    pipe, adapter, base = both()
    pipe.load_unlearning_adapter(adapter)
    edited = output(pipe, there)
    pipe.unload_unlearning_adapters()
    setattr(pipe, gone, None)
    with pytest.warns(UserWarning, match=f"has no {gone} loaded, which is left out. If it is loaded later"):
        pipe.load_unlearning_adapter(adapter)
    assert pipe.get_list_unlearning_adapters() == {there: ["red"]}
    assert torch.equal(output(pipe, there), edited) and not close(edited, base[there])
    assert load_adapter(pipe.save_unlearning_adapter(tmp_path)).sites == adapter.sites  # both halves are still there
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe, there), base[there])


def test_the_half_of_an_expert_that_comes_later_is_told_of():
    pipe, adapter, _ = both()
    second, pipe.transformer_2 = pipe.transformer_2, None
    with pytest.warns(UserWarning, match="left out"):
        pipe.load_unlearning_adapter(adapter)
    assert pipe.verify_unlearning_adapters().ok
    pipe.transformer_2 = second
    answer = pipe.verify_unlearning_adapters()
    assert not answer.ok and "was made for the transformer_2 too" in answer.problems[0]


def test_a_file_of_one_denoiser_goes_to_the_other(tmp_path):
    pipe, _, base = both()
    single = planted(tiny_wan_pipeline())
    with pytest.warns(UserWarning, match="edits transformer_2 only; transformer of WanPipeline still knows"):
        pipe.load_unlearning_adapter(single, components={FIRST: SECOND})
    assert pipe.get_list_unlearning_adapters() == {SECOND: ["red"]}
    assert torch.equal(output(pipe), base[FIRST]) and not close(output(pipe, SECOND), base[SECOND])
    saved = load_adapter(pipe.save_unlearning_adapter(tmp_path))
    assert saved.components == (SECOND,)
    weight = pipe.transformer_2.blocks[0].attn2.to_k.weight  # factors of the weights that it is on
    site = "transformer_2.blocks.0.attn2.to_k"
    torch.testing.assert_close(saved.lora_B[site], -weight.detach() @ single.directions[f"{FIRST}{site[13:]}"].write.T)


def test_a_file_of_one_denoiser_goes_to_both(recwarn):
    pipe, _, base = both()
    pipe.load_unlearning_adapter(planted(tiny_wan_pipeline()), components={FIRST: [FIRST, SECOND]})
    assert not recwarn.list
    assert all(not close(output(pipe, part), base[part]) for part in base)
    pipe.fuse_unlearning_adapters()
    assert pipe.verify_unlearning_adapters().ok
    pipe.unfuse_unlearning_adapters()
    pipe.unload_unlearning_adapters()
    assert all(torch.equal(output(pipe, part), base[part]) for part in base)


def test_one_half_of_a_file_is_taken():
    pipe, adapter, base = both()
    with pytest.warns(UserWarning, match="transformer of WanPipeline still knows the concept"):
        pipe.load_unlearning_adapter(adapter, components=[SECOND])
    assert torch.equal(output(pipe), base[FIRST]) and not close(output(pipe, SECOND), base[SECOND])


@pytest.mark.parametrize(
    ("components", "text"),
    [
        (["unet"], "edits transformer, transformer_2, and not 'unet'"),
        ({FIRST: "unet"}, "WanPipeline has no 'unet' loaded that could be edited; its denoisers are transformer"),
        ({FIRST: SECOND, SECOND: SECOND}, "two parts go to 'transformer_2': 'transformer' and 'transformer_2'"),
        ({}, "Expected `components` to be names"),
        (3, "Expected `components` to be names"),
        ({FIRST: [1]}, "Expected `components` to be names"),
        ([[FIRST]], "Expected `components` to be names"),
    ],
)
def test_wrong_components_are_named_and_nothing_is_changed(components, text):
    pipe, adapter, _ = both()
    before = snapshot(pipe)
    with pytest.raises(ConfigError, match=text):
        pipe.load_unlearning_adapter(adapter, components=components)
    assert snapshot(pipe) == before


def test_on_the_other_expert_alone_the_error_names_the_cure():
    pipe, _, _ = both()
    pipe.transformer = None
    with pytest.raises(SiteError, match=r"or pass components=\{'transformer': 'transformer_2'\}"):
        pipe.load_unlearning_adapter(planted(tiny_wan_pipeline()))


def test_a_strength_for_each_component_in_every_verb_that_takes_one():
    pipe, adapter, base = both()
    wanted = {}
    for strength in (1.0, 0.5):
        pipe.load_unlearning_adapter(adapter, "one", strength=strength)
        wanted[strength] = {part: output(pipe, part) for part in base}
        pipe.unload_unlearning_adapters()

    def acts(first, second):
        return torch.equal(output(pipe), first[FIRST]) and torch.equal(output(pipe, SECOND), second[SECOND])

    pipe.load_unlearning_adapter(adapter, "one", strength={SECOND: 0.5})
    assert acts(wanted[1.0], wanted[0.5])
    assert pipe.get_unlearning_adapters_info()["one"].strengths == {FIRST: 1.0, SECOND: 0.5}
    pipe.set_unlearning_adapters("one", {FIRST: 0.5, SECOND: 1.0})
    assert acts(wanted[0.5], wanted[1.0])
    pipe.set_unlearning_adapters(["one"], [{FIRST: 0.0}])  # the other one has the strength of loading
    assert acts(base, wanted[0.5])
    with pipe.unlearning_adapters("one", {FIRST: 1.0, SECOND: 0.0}):
        assert acts(wanted[1.0], base) and pipe.verify_unlearning_adapters().ok
    assert acts(base, wanted[0.5])
    pipe.set_unlearning_adapters("one", {FIRST: 1.0, SECOND: 0.5})
    pipe.fuse_unlearning_adapters()
    assert close(output(pipe), wanted[1.0][FIRST]) and close(output(pipe, SECOND), wanted[0.5][SECOND])
    with pytest.raises(FuseError, match="fused at strength 0.5 and cannot be set to 1"):
        pipe.set_unlearning_adapters("one", {FIRST: 1.0, SECOND: 1.0})
    pipe.unfuse_unlearning_adapters()
    assert acts(wanted[1.0], wanted[0.5])


@pytest.mark.parametrize("second", [0.5, 0.0])
def test_strengths_by_component_are_saved_as_gains(second, tmp_path):
    pipe, adapter, _ = both()
    pipe.load_unlearning_adapter(adapter, strength={FIRST: 1.6, SECOND: second})
    before = {part: output(pipe, part) for part in (FIRST, SECOND)}
    file = pipe.save_unlearning_adapter(tmp_path)
    pipe.unload_unlearning_adapters()
    pipe.load_unlearning_adapter(file)
    assert all(close(output(pipe, part), before[part]) for part in before)
    saved = load_adapter(file)
    assert saved.strength == 1.6 and saved.gains == pytest.approx(dict.fromkeys(saved.sites[4:], second / 1.6))
    for site in saved.sites:
        expected = adapter.lora_B[site] * saved.strength_at(site)
        torch.testing.assert_close(saved.lora_B[site], expected)


@pytest.mark.parametrize(
    ("strengths", "text"),
    [
        ({"unet": 1.0}, "The strengths of 'red' name 'unet', but it edits transformer, transformer_2"),
        ({FIRST: 9}, "from 0 .off. to 4, but got 9"),
        (10**400, "from 0 .off. to 4, but got 1000"),
        ({FIRST: "1.0"}, "from 0 .off. to 4, but got '1.0'"),
        ("1.0", "from 0 .off. to 4, but got '1.0'"),
        ([1.0, 1.0], "one strength for each of 1 adapters, but got 2"),
        ({1.0}, "Expected one strength, a dictionary"),
    ],
)
def test_wrong_strengths_are_named(strengths, text):
    pipe, adapter, _ = both()
    pipe.load_unlearning_adapter(adapter)
    before = snapshot(pipe)
    with pytest.raises(ConfigError, match=text):
        pipe.set_unlearning_adapters("red", strengths)
    with pytest.raises(ConfigError, match=text), pipe.unlearning_adapters("red", strengths):
        pass
    assert snapshot(pipe) == before


def test_a_factor_of_an_expert_that_is_not_loaded_is_missed_in_one_line(tmp_path):
    pipe, adapter, _ = both()
    pipe.transformer_2 = None
    with pytest.warns(UserWarning, match="left out"):
        pipe.load_unlearning_adapter(replace(adapter, lora_B={}))
    with pytest.raises(FuseError, match="this WanPipeline has no transformer_2 loaded"):
        pipe.save_unlearning_adapter(tmp_path)


def test_components_that_share_a_module_get_one_edit(tmp_path):
    pipe = tiny_wan_pipeline()
    base, before = output(pipe), snapshot(pipe)
    adapter = planted(pipe)
    pipe.load_unlearning_adapter(adapter)
    edited = output(pipe)
    pipe.unload_unlearning_adapters()
    pipe.register_modules(transformer_2=pipe.transformer)
    with pipe.unlearning_adapters([]):
        assert torch.equal(output(pipe), base)
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # no other expert is left that knows the concept
        pipe.load_unlearning_adapter(adapter)
    assert torch.equal(output(pipe), edited)
    pipe.unload_unlearning_adapters()
    pipe.load_unlearning_adapter(adapter, components={FIRST: [FIRST, SECOND]})
    assert torch.equal(output(pipe), edited) and not close(edited, base)
    pipe.unload_unlearning_adapters()
    assert torch.equal(output(pipe), base) and not pipe.transformer._forward_pre_hooks
    assert before.items() <= snapshot(pipe).items()
    other = {site.replace(FIRST, SECOND): replace(item, gain=0.5) for site, item in adapter.directions.items()}
    with pytest.raises(ConfigError, match="are one module, which cannot hold the two different parts of 'red'"):
        pipe.load_unlearning_adapter(replace(adapter, directions={**adapter.directions, **other}, lora_B={}))
    assert torch.equal(output(pipe), base) and not pipe.transformer._forward_pre_hooks


def test_components_that_share_a_module_have_one_strength():
    pipe = tiny_wan_pipeline()
    base, adapter = output(pipe), planted(pipe)
    pipe.register_modules(transformer_2=pipe.transformer)
    both = {"components": {FIRST: [FIRST, SECOND]}, "adapter_name": "a"}
    refused = "transformer and the transformer_2 of this pipeline are one module, on which '.*' cannot act at 1 and 0.5"
    with pytest.raises(ConfigError, match=refused):
        pipe.load_unlearning_adapter(adapter, strength={FIRST: 1.0, SECOND: 0.5}, **both)
    assert torch.equal(output(pipe), base) and not pipe.transformer._forward_pre_hooks
    pipe.load_unlearning_adapter(adapter, strength={SECOND: 0.5}, **both)
    half, states = output(pipe), pipe.get_unlearning_adapters_info()
    assert states["a"].strengths == {FIRST: 0.5, SECOND: 0.5}
    with pytest.raises(ConfigError, match=refused):
        pipe.set_unlearning_adapters("a", {FIRST: 1.0, SECOND: 0.5})
    with pytest.raises(ConfigError, match=refused), pipe.unlearning_adapters("a", {FIRST: 1.0, SECOND: 0.5}):
        pass
    assert torch.equal(output(pipe), half) and pipe.get_unlearning_adapters_info() == states
    for strength in ({FIRST: 1.0}, {SECOND: 1.0}, {FIRST: 1.0, SECOND: 1.0}):
        with pipe.unlearning_adapters("a", strength):
            whole = output(pipe)
        pipe.set_unlearning_adapters("a", strength)
        assert torch.equal(output(pipe), whole) and not close(whole, half)
        pipe.set_unlearning_adapters("a")
        assert torch.equal(output(pipe), half)


def test_a_weight_of_two_denoisers_is_fused_once():
    pipe, adapter, _ = both()
    for first, second in zip(pipe.transformer.blocks, pipe.transformer_2.blocks, strict=True):
        second.attn2.to_k.weight = first.attn2.to_k.weight
    pipe.load_unlearning_adapter(adapter, strength=1.5)
    before, edited = snapshot(pipe), {part: output(pipe, part) for part in (FIRST, SECOND)}
    with pytest.raises(FuseError, match="blocks.0.attn2.to_k of another denoiser share one weight, which holds one"):
        pipe.fuse_unlearning_adapters()
    assert snapshot(pipe) == before and all(torch.equal(output(pipe, part), edited[part]) for part in edited)
    pipe.unload_unlearning_adapters()
    other = tiny_wan_pipeline()
    other.transformer.blocks[0].attn2.to_k.weight = pipe.transformer.blocks[0].attn2.to_k.weight
    for each in (pipe, other):
        each.load_unlearning_adapter(adapter, components=[FIRST])
    pipe.fuse_unlearning_adapters()
    with pytest.raises(FuseError, match="share one weight, which holds one edit only. Attach the adapter."):
        other.fuse_unlearning_adapters()
    pipe.unfuse_unlearning_adapters()
    other.fuse_unlearning_adapters()
    other.unfuse_unlearning_adapters()
