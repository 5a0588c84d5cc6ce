"""Whoever goes around an attached edit is told: by one warning for each cause, or by an error where that was asked."""

import types
import warnings
from typing import Any

import pytest
import torch
from diffusers import WanPipeline
from diffusers.models.transformers.transformer_wan import WanAttnProcessor
from tiny import CALL, tiny_wan_pipeline
from torch import Tensor, nn
from torch.nn import functional as F

from planted import planted
from unlearning_adapters.errors import ConfigError, DenoiserError

EDITED = r"transformer\.blocks\.\d\.attn2\.to_[kv]"


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


def own_processor(pipe: Any) -> None:
    for block in pipe.transformer.blocks:
        block.attn2.set_processor(OneProduct())


def own_forward(pipe: Any) -> None:
    for block in pipe.transformer.blocks:
        for layer in (block.attn2.to_k, block.attn2.to_v):
            layer.forward = types.MethodType(lambda self, x: F.linear(x, self.weight, self.bias), layer)


def other_denoiser(pipe: Any) -> None:
    pipe.transformer = tiny_wan_pipeline().transformer


class Engine:
    """A denoiser that is no module, as that of TensorRT or ONNX."""

    def __init__(self, module: Any) -> None:
        self.run, self.config, self.dtype, self.cache_context = (
            module,
            module.config,
            module.dtype,
            module.cache_context,
        )

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(*args, **kwargs)


def engine(pipe: Any) -> None:
    pipe.transformer = Engine(tiny_wan_pipeline().transformer)


class RunsAnother(WanPipeline):
    """A pipeline that keeps the denoiser that it runs to itself."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return tiny_wan_pipeline()(*args, **kwargs)


def another_pipeline(pipe: Any) -> None:
    pipe.__class__ = RunsAnother


CAUSES = {
    own_processor: "the attention processor OneProduct does not call the layer",
    own_forward: "the forward of the layer was replaced after the adapter was loaded",
    other_denoiser: "transformer",
    engine: "is not the one that 'no-red' edited, but an object of class Engine",
    another_pipeline: "A call of RunsAnother did not run its transformer with the hooks of 'no-red'",
}


def run(pipe: Any) -> Tensor:
    return pipe("the red dog runs", **CALL, output_type="latent", generator=torch.Generator().manual_seed(0)).frames


def loaded(strict: bool | None = None) -> WanPipeline:
    pipe = tiny_wan_pipeline()
    adapter = planted(pipe, EDITED)
    pipe.load_unlearning_adapter(adapter, "no-red", strict=strict)
    return pipe


def test_an_edit_that_is_reached_is_told_of_by_nobody(monkeypatch):
    monkeypatch.setenv("UNLEARNING_ADAPTERS_STRICT", "1")
    base = run(tiny_wan_pipeline())
    pipe = loaded()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert not torch.allclose(run(pipe), base, atol=1e-4)


@pytest.mark.parametrize("change", CAUSES)
def test_what_goes_around_an_edit_is_told_once(change):
    pipe, base = loaded(), run(tiny_wan_pipeline())
    change(pipe)
    with pytest.warns(UserWarning, match=CAUSES[change]) as told:
        result = run(pipe)
    assert torch.allclose(result, base, atol=1e-5)  # so the concept is back, and the user has to know
    assert len([one for one in told if CAUSES[change] in str(one.message)]) == 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        run(pipe)


@pytest.mark.parametrize("change", CAUSES)
def test_strict_makes_it_an_error(change):
    pipe = loaded(strict=True)
    change(pipe)
    with pytest.raises(DenoiserError, match=CAUSES[change]):
        run(pipe)


@pytest.mark.parametrize("change", CAUSES)
def test_the_environment_makes_it_an_error(change, monkeypatch):
    pipe = loaded()
    change(pipe)
    monkeypatch.setenv("UNLEARNING_ADAPTERS_STRICT", "1")
    with pytest.raises(DenoiserError, match=CAUSES[change]):
        run(pipe)


def test_verify_knows_of_a_call_that_ran_another_denoiser_until_the_next_one():
    pipe = loaded()
    another_pipeline(pipe)
    with pytest.warns(UserWarning, match="did not run its transformer"):
        run(pipe)
    answer = pipe.verify_unlearning_adapters()
    assert not answer.ok and "did not run its transformer" in answer.problems[0]
    pipe.__class__ = WanPipeline
    run(pipe)
    assert pipe.verify_unlearning_adapters().ok


@pytest.mark.parametrize("strict", ["no", "", 1, []])
def test_strict_is_a_truth_value(strict):
    pipe = loaded()
    with pytest.raises(ConfigError, match="Expected `strict` to be True, False or None, but got"):
        pipe.set_unlearning_adapters("no-red", strict=strict)
    with pytest.raises(ConfigError, match="Expected `strict` to be True, False or None, but got"):
        pipe.load_unlearning_adapter(planted(pipe), "other", strict=strict)
    assert pipe.get_list_unlearning_adapters() == {"transformer": ["no-red"]}


class Wrapper(nn.Module):
    """A module around a denoiser that counts its calls."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner, self.calls, self.config, self.dtype = inner, 0, inner.config, inner.dtype
        self.cache_context, self.device = inner.cache_context, inner.device

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return self.inner(*args, **kwargs)


def test_a_wrapper_around_an_edited_denoiser_is_no_other_one(monkeypatch):
    monkeypatch.setenv("UNLEARNING_ADAPTERS_STRICT", "1")
    pipe = loaded()
    edited = run(pipe)
    pipe.transformer = Wrapper(pipe.transformer)
    assert torch.equal(run(pipe), edited) and pipe.transformer.calls
    assert "is a Wrapper around the one that 'no-red' edited" in pipe.verify_unlearning_adapters().problems[0]
    pipe.transformer = pipe.transformer.inner
    assert pipe.verify_unlearning_adapters().ok


def test_a_denoiser_that_is_replaced_during_a_call_is_told_of_at_its_end():
    pipe, other = loaded(), tiny_wan_pipeline().transformer

    def replace_it(pipe: Any, _step: int, _time: Any, values: dict[str, Any]) -> dict[str, Any]:
        pipe.transformer = other
        return values

    with pytest.warns(UserWarning, match="The transformer of this pipeline is not the one that 'no-red' edited"):
        pipe("a dog", **CALL, output_type="latent", callback_on_step_end=replace_it)


@pytest.mark.parametrize("called", [True, False])
def test_an_engine_may_be_made_of_fused_weights(called, monkeypatch):
    monkeypatch.setenv("UNLEARNING_ADAPTERS_STRICT", "1")
    other, pipe = loaded(), loaded()
    for each in (other, pipe):
        each.fuse_unlearning_adapters()
    edited = run(pipe if called else other)
    weights = pipe.transformer.state_dict()
    engine(pipe)
    pipe.transformer.run.load_state_dict(weights)
    with pytest.warns(UserWarning, match="only if that was made of the weights that 'no-red' was fused into"):
        assert torch.equal(run(pipe), edited)


def test_a_fused_edit_acts_whatever_goes_around_the_layers():
    pipe = loaded()
    pipe.fuse_unlearning_adapters()
    edited = run(pipe)
    own_processor(pipe)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert torch.allclose(run(pipe), edited, atol=1e-5)
