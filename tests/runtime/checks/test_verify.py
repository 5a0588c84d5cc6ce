"""`verify_unlearning_adapters` answers without a call, changes nothing, and sees what takes an edit out of action."""

import contextlib
import copy
import json
import types
from typing import Any

import pytest
import torch
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from tiny import generate, tiny_wan_pipeline
from torch.nn import functional as F

import unlearning_adapters as ua
from planted import bits, lora_that_reads, planted
from unlearning_adapters.runtime.hooks.registry import unregister


class OneProduct(WanAttnProcessor):
    """Cross-attention that multiplies with the weights of keys and values, and calls neither layer."""

    def __call__(self, attn, hidden_states, encoder_hidden_states=None, attention_mask=None, rotary_emb=None, **rest):
        if rotary_emb is not None:
            return super().__call__(attn, hidden_states, encoder_hidden_states, attention_mask, rotary_emb, **rest)
        keys = F.linear(encoder_hidden_states, attn.to_k.weight, attn.to_k.bias)
        values = F.linear(encoder_hidden_states, attn.to_v.weight, attn.to_v.bias)
        parts = (attn.norm_q(attn.to_q(hidden_states)), attn.norm_k(keys), values)
        heads = [part.unflatten(2, (attn.heads, -1)).transpose(1, 2) for part in parts]
        return attn.to_out[1](attn.to_out[0](F.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)))


def loaded(fused: bool = False, **pipeline: Any) -> Any:
    pipe = tiny_wan_pipeline(**pipeline)
    pipe.load_unlearning_adapter(planted(pipe))
    if fused:
        pipe.fuse_unlearning_adapters()
    return pipe


def layer(pipe: Any) -> Any:
    return pipe.transformer.blocks[0].attn2.to_k


def verified(pipe: Any) -> ua.Verification:
    before = everything(pipe)
    answer = pipe.verify_unlearning_adapters()
    assert everything(pipe) == before  # whatever it finds, it changes nothing
    return answer


def everything(pipe: Any) -> dict[str, Any]:
    """The denoiser as it is; `state_dict` would put edits in line first."""
    modules = {name: (id(part), sorted(vars(part))) for name, part in pipe.transformer.named_modules()}
    return modules | {f"{name}:": bits(value).tolist() for name, value in pipe.transformer.named_parameters()}


def test_attached():
    pipe = loaded()
    answer = verified(pipe)
    assert answer.ok and len(answer.sites) == 4 and answer.adapters["red"].state == "attached"
    assert {(c.place, c.reached, c.edited, c.weight, c.cause) for c in answer.sites} == {
        ("input", None, True, None, "")
    }
    generate(pipe)
    assert {c.reached for c in verified(pipe).sites} == {True}
    assert ua.verify_unlearning_adapters(pipe).ok


def test_fused():
    answer = verified(loaded(fused=True))
    assert answer.ok and {(c.place, c.edited, c.weight) for c in answer.sites} == {("weight", True, True)}


def test_partly_fused():
    pipe = loaded(fused=True)
    pipe.load_unlearning_adapter(planted(pipe, "green", seed=1), strength=0.5)
    answer = verified(pipe)
    assert answer.ok and {(c.adapters, c.place, c.weight) for c in answer.sites} == {(("red", "green"), "both", True)}


@pytest.mark.parametrize("state", ["nothing", "disabled", "inactive", "strength 0"])
def test_adapters_that_do_not_act_have_no_sites(state):
    pipe = tiny_wan_pipeline()
    if state != "nothing":
        pipe.load_unlearning_adapter(planted(pipe))
    if state == "disabled":
        pipe.disable_unlearning_adapters()
    elif state != "nothing":
        pipe.set_unlearning_adapters("red" if state == "strength 0" else [], 0.0 if state == "strength 0" else None)
    answer = verified(pipe)
    assert answer.ok and answer.sites == () and set(answer.adapters) == (set() if state == "nothing" else {"red"})


def test_inside_of_a_scope_it_answers_for_its_calls():
    pipe = loaded()
    with pipe.unlearning_adapters([]):
        assert verified(pipe).sites == ()
    with pipe.unlearning_adapters("red", 0.5):
        generate(pipe)
        answer = verified(pipe)
        assert answer.ok and len(answer.sites) == 4


def own_processor(pipe: Any) -> None:
    pipe.transformer.blocks[0].attn2.set_processor(OneProduct())


def own_forward(pipe: Any) -> None:
    layer(pipe).forward = types.MethodType(lambda self, x: F.linear(x, self.weight, self.bias), layer(pipe))


def hook_taken_off(pipe: Any) -> None:
    unregister(layer(pipe))


def other_edit(pipe: Any) -> None:
    pipe.transformer._unlearning_adapters.hooks.sites["blocks.0.attn2.to_k"].edit.mix.zero_()


def gone(pipe: Any) -> None:
    del pipe.transformer.blocks[0].attn2.to_k


def fused_projections(pipe: Any) -> None:
    pipe.transformer.blocks[0].attn2.fuse_projections()


ATTACHED = {
    own_processor: "the attention processor OneProduct does not call the layer",
    own_forward: "the forward of the layer was replaced after the adapter was loaded",
    hook_taken_off: "the hook was taken off the layer",
    other_edit: "the hook holds another edit",
    gone: "the layer is gone",
    fused_projections: "its attention has its query, key and value projections fused",
}
CRASH = (gone, fused_projections)  # or refused in the call


@pytest.mark.parametrize("called", [False, True])
@pytest.mark.parametrize("change", ATTACHED)
def test_what_takes_an_attached_edit_out_of_action_is_found(change, called):
    pipe = loaded()
    change(pipe)
    if called and change not in CRASH:
        with pytest.warns(UserWarning, match="were not called") if change is not other_edit else _nothing():
            generate(pipe)
    answer = verified(pipe)
    wrong = [check for check in answer.sites if check.edited is not True]
    assert wrong and all(check.site.startswith("transformer.blocks.0") for check in wrong)
    if change is own_processor and not called:  # only a call can tell
        assert answer.ok and wrong[0].edited is None and "may not call the layer" in wrong[0].cause
        assert "not known of 2 of 4 sites" in answer.table()
    else:
        assert not answer.ok and wrong[0].edited is False and ATTACHED[change] in wrong[0].cause
        assert "NO" in answer.table() and ATTACHED[change] in answer.table()


def _nothing() -> Any:
    return contextlib.nullcontext()


def test_a_forward_that_calls_the_one_beneath_is_no_fault():
    pipe = loaded()
    beneath = layer(pipe).forward
    layer(pipe).forward = lambda *args, **kwargs: beneath(*args, **kwargs)
    assert verified(pipe).ok


def one_bit(pipe: Any) -> None:
    weight = layer(pipe).weight
    with torch.no_grad():
        weight[1, 1] = torch.nextafter(weight[1, 1], weight[1, 1] + 1)


def other_dtype(pipe: Any) -> None:
    layer(pipe).to(torch.bfloat16)


def new_layer(pipe: Any) -> None:
    layer(pipe).weight = torch.nn.Parameter(torch.randn_like(layer(pipe).weight))


@pytest.mark.parametrize("change", [one_bit, other_dtype, new_layer])
def test_a_fused_weight_that_changed_is_found_to_the_last_bit(change):
    pipe = loaded(fused=True)
    change(pipe)
    answer = verified(pipe)
    assert not answer.ok and [c.site for c in answer.wrong] == ["transformer.blocks.0.attn2.to_k"]
    assert answer.wrong[0].weight is False and "blocks.0.attn2.to_k" in answer.wrong[0].cause
    assert "CHANGED" in answer.table()


def test_a_denoiser_that_was_replaced_is_found():
    pipe = loaded()
    pipe.transformer = tiny_wan_pipeline().transformer
    answer = verified(pipe)
    assert not answer.ok and "is not the one that 'red' edited" in answer.problems[0]
    assert answer.table().endswith("wrong: see above")


def test_a_copy_of_an_edited_denoiser_is_found():
    pipe = loaded()
    pipe.transformer = copy.deepcopy(pipe.transformer)
    answer = pipe.verify_unlearning_adapters()
    assert not answer.ok


def test_the_hook_of_the_denoiser_is_missed():
    pipe = loaded()
    unregister(pipe.transformer)
    answer = verified(pipe)
    assert not answer.ok and "the hook was taken off the WanTransformer3DModel" in answer.problems[0]


@pytest.mark.parametrize("fused", [False, True])
def test_a_lora_that_came_later_is_no_fault(fused):
    pipe = loaded(fused)
    pipe.load_lora_weights(lora_that_reads(planted(pipe), pipe), adapter_name="style")
    assert verified(pipe).ok
    generate(pipe)
    answer = verified(pipe)
    assert answer.ok and {c.place for c in answer.sites} == {"input"}
    pipe.fuse_lora()
    assert verified(pipe).ok
    pipe.unfuse_lora()
    pipe.unload_lora_weights()
    assert verified(pipe).ok


def test_an_original_that_is_lost_is_said_and_no_fault():
    pipe = loaded(fused=True)
    with torch.no_grad():
        layer(pipe).weight.add_(0.01)
    with pytest.warns(UserWarning, match="cannot be restored"):
        generate(pipe)
    answer = verified(pipe)
    assert answer.ok and "the original cannot be restored" in answer.table()


@pytest.mark.parametrize("how", ["model", "sequential", "group"])
@pytest.mark.parametrize("fused", [False, True])
def test_offloaded(how, fused):
    import accelerate

    pipe = loaded(fused)
    if how == "model":
        pipe.enable_model_cpu_offload(device="cpu")
    elif how == "sequential":
        accelerate.cpu_offload(pipe.transformer, torch.device("cpu"))
    else:
        pipe.transformer.enable_group_offload(
            onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level"
        )
    assert pipe.verify_unlearning_adapters().ok
    generate(pipe)
    assert pipe.verify_unlearning_adapters().ok


def test_weights_in_files_are_not_known(tmp_path):
    pipe = loaded(fused=True)
    pipe.transformer.enable_group_offload(
        onload_device=torch.device("cpu"), offload_device=torch.device("cpu"), offload_type="leaf_level",
        offload_to_disk_path=str(tmp_path),
    )  # fmt: skip
    generate(pipe)
    answer = pipe.verify_unlearning_adapters()
    assert answer.ok and {(check.edited, check.weight) for check in answer.sites} == {(None, None)}
    assert "offloading keeps its weight in a file" in answer.table()


def test_table_and_json_say_the_same():
    pipe = loaded(two_denoisers=True)
    pipe.set_unlearning_adapters("red", {"transformer": 1.0, "transformer_2": 0.5})
    answer = verified(pipe)
    data = json.loads(json.dumps(answer.to_dict(), allow_nan=False))
    assert data["ok"] and [site["site"] for site in data["sites"]] == [check.site for check in answer.sites]
    assert data["adapters"]["red"]["strengths"] == {"transformer": 1.0, "transformer_2": 0.5}
    lines = str(answer).splitlines()
    assert lines[0] == "red: attached, strength transformer 1, transformer_2 0.5, on transformer, transformer_2"
    assert lines[2].split() == ["site", "adapters", "place", "reached", "edited", "weight"]
    assert lines[-1] == "ok: 8 sites are edited"
