"""A denoiser that is not in diffusers: the same functions take a module and a callable that runs it on prompts."""

import pytest
import torch

from stdit import STDiT, Wrapped, run
from unlearning_adapters.activations import measure_text_only
from unlearning_adapters.builder import build_adapter
from unlearning_adapters.concepts import Concept, Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import SiteError
from unlearning_adapters.sites import find_sites
from unlearning_adapters.verbs import (
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
    unload_unlearning_adapters,
)

CONTEXTS = ("a {} cat walks on grass", "one {} car moves in rain", "the {} bird sits by water", "two {} dogs run")
NEUTRAL = ("old men read some long books", "green hills lie under open sky", "ships sail on a calm sea", "it snows")
CONCEPT = Concept("red", tuple(Pair(text.format("red"), text.format("blue")) for text in CONTEXTS), neutral=NEUTRAL)
UNRELATED = ("old ships lie on long grass", "some cat sits under a calm sky")  # known words, put together anew
HELD_OUT = "some {} boats in fog"
NAMES = ("cross_attn", "reader")  # one that the finder knows, and one that only a measurement finds


def predict(pipe: Wrapped, *prompts: str) -> torch.Tensor:
    return run(pipe.components["transformer"], prompts, [0] * len(prompts))


def distance(pipe: Wrapped, one: str, other: str) -> float:
    return float((predict(pipe, one) - predict(pipe, other)).norm())


def snapshot(model: torch.nn.Module) -> tuple:
    modules = [(name, id(module), sorted(vars(module))) for name, module in model.named_modules()]
    return modules, [len(module._forward_pre_hooks) for module in model.modules()]


def test_the_finder_and_the_measurement_agree():
    pipe = Wrapped(STDiT())
    sites = {site.name for site in find_sites(pipe)}
    assert sites == {f"transformer.blocks.{block}.cross_attn.kv_linear" for block in (0, 1)}
    measured = {site.name for site in measure_text_only(pipe)}
    assert measured - sites == {"transformer.y_embedder.0", "transformer.y_embedder.2"}  # in front of them
    assert sites <= measured


def test_names_that_nobody_knows_are_measured():
    pipe = Wrapped(STDiT("reader"))
    with pytest.raises(SiteError, match=r"No text site was found in transformer \(STDiT\)"):
        find_sites(pipe)
    adapter = build_adapter(pipe, CONCEPT, progress=False)
    assert adapter.sites == tuple(f"transformer.blocks.{block}.reader.kv_linear" for block in (0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_the_concept_goes_and_the_rest_stays(name):
    pipe = Wrapped(STDiT(name))
    before = distance(pipe, HELD_OUT.format("red"), HELD_OUT.format("blue"))
    kept, others = predict(pipe, *UNRELATED), distance(pipe, *UNRELATED)
    adapter = build_adapter(pipe, CONCEPT, BuildConfig(strength=1.0), progress=False)
    load_unlearning_adapter(pipe, adapter)
    assert distance(pipe, HELD_OUT.format("red"), HELD_OUT.format("blue")) < 0.2 * before
    assert (predict(pipe, *UNRELATED) - kept).flatten(1).norm(dim=1).max() < 0.25 * others


@pytest.mark.parametrize("name", NAMES)
def test_attach_fuse_save_and_unload(name, tmp_path):
    pipe = Wrapped(STDiT(name))
    model = pipe.components["transformer"]
    prompt = CONTEXTS[0].format("red")
    base, clean = predict(pipe, prompt), snapshot(model)
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    path = build_adapter(pipe, CONCEPT, progress=False).save_pretrained(tmp_path)
    assert snapshot(model) == clean

    load_unlearning_adapter(pipe, path)
    attached = predict(pipe, prompt)
    assert not torch.allclose(attached, base, atol=1e-3)
    fuse_unlearning_adapters(pipe)
    torch.testing.assert_close(predict(pipe, prompt), attached, rtol=1e-4, atol=1e-5)
    unfuse_unlearning_adapters(pipe)
    assert torch.equal(predict(pipe, prompt), attached)
    unload_unlearning_adapters(pipe)
    assert torch.equal(predict(pipe, prompt), base) and snapshot(model) == clean
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
