"""A denoiser that is not in diffusers: the same functions take a module and a callable that runs it on prompts."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from denoiser_inputs import Words
from PIL import Image
from stdit import STDiT, run
from torch import nn

import unlearning_adapters as ua
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConfigError, DenoiserError, SiteError
from unlearning_adapters.pipelines.probes import measure_sites
from unlearning_adapters.pipelines.sites import find_sites
from unlearning_adapters.runtime.any_module import DenoiserPipeline, wrap_denoiser
from unlearning_adapters.runtime.verbs import (
    VERBS,
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


def wrapped(name: str = "cross_attn") -> DenoiserPipeline:
    return wrap_denoiser(STDiT(name), run)


def predict(pipe: DenoiserPipeline, *prompts: str) -> torch.Tensor:
    return pipe(list(prompts), [torch.Generator().manual_seed(0) for _ in prompts])


def distance(pipe: DenoiserPipeline, one: str, other: str) -> float:
    return float((predict(pipe, one) - predict(pipe, other)).norm())


def snapshot(model: torch.nn.Module) -> tuple:
    modules = [(name, id(module), sorted(vars(module))) for name, module in model.named_modules()]
    return modules, [len(module._forward_pre_hooks) for module in model.modules()]


def test_the_finder_and_the_measurement_agree():
    pipe = wrapped()
    sites = {site.name for site in find_sites(pipe)}
    assert sites == {f"transformer.blocks.{block}.cross_attn.kv_linear" for block in (0, 1)}
    measured = {site.name for site in measure_sites(pipe, "text")}
    assert measured - sites == {"transformer.y_embedder.0", "transformer.y_embedder.2"}  # in front of them
    assert sites <= measured


def test_names_that_nobody_knows_are_measured():
    pipe = wrapped("reader")
    with pytest.raises(SiteError, match=r"No text site was found in transformer \(STDiT\)"):
        find_sites(pipe)
    adapter = build_adapter(pipe, CONCEPT, progress=False)
    assert adapter.sites == tuple(f"transformer.blocks.{block}.reader.kv_linear" for block in (0, 1))


@pytest.mark.parametrize("name", NAMES)
def test_the_concept_goes_and_the_rest_stays(name):
    pipe = wrapped(name)
    before = distance(pipe, HELD_OUT.format("red"), HELD_OUT.format("blue"))
    kept, others = predict(pipe, *UNRELATED), distance(pipe, *UNRELATED)
    adapter = build_adapter(pipe, CONCEPT, BuildConfig(strength=1.0), progress=False)
    load_unlearning_adapter(pipe, adapter)
    assert distance(pipe, HELD_OUT.format("red"), HELD_OUT.format("blue")) < 0.2 * before
    assert (predict(pipe, *UNRELATED) - kept).flatten(1).norm(dim=1).max() < 0.25 * others


@pytest.mark.parametrize("name", NAMES)
def test_attach_fuse_save_and_unload(name, tmp_path):
    pipe = wrapped(name)
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


def test_the_verbs_are_methods_and_two_adapters_stack_in_any_order(tmp_path):
    pipe = ua.wrap_denoiser(STDiT(), run, base_model="org/open-video")
    adapters = [
        build_adapter(pipe, CONCEPT, BuildConfig(method, strength=1.0), progress=False)
        for method in ("ridge", "random")
    ]
    assert adapters[0].info.base_model == "org/open-video"
    assert adapters[0].info.denoisers == {"transformer": "STDiT"}
    prompt, base = CONTEXTS[1].format("red"), predict(pipe, CONTEXTS[1].format("red"))
    outputs = []
    for order in (adapters, adapters[::-1]):
        names = [pipe.load_unlearning_adapter(adapter) for adapter in order]
        assert pipe.get_list_unlearning_adapters() == {"transformer": names}
        outputs.append(predict(pipe, prompt))
        pipe.fuse_unlearning_adapters()
        torch.testing.assert_close(predict(pipe, prompt), outputs[-1], rtol=1e-4, atol=1e-5)
        pipe.unfuse_unlearning_adapters()
        assert torch.equal(predict(pipe, prompt), outputs[-1])
        pipe.unload_unlearning_adapters()
    torch.testing.assert_close(*outputs)
    assert not torch.allclose(outputs[0], base, atol=1e-3) and torch.equal(predict(pipe, prompt), base)
    pipe.load_unlearning_adapter(adapters[0])
    pipe.save_unlearning_adapter(tmp_path)
    again = ua.wrap_denoiser(STDiT(), run)
    again.load_unlearning_adapter(tmp_path)
    assert torch.equal(predict(again, prompt), predict(pipe, prompt))
    assert all(getattr(DenoiserPipeline, verb.__name__) is verb for verb in VERBS)


class Seeing(nn.Module):
    """A denoiser of words and pictures; its settings are in an object, as those of transformers are."""

    def __init__(self) -> None:
        super().__init__()
        self.blocks = nn.ModuleList(nn.ModuleDict({"see": nn.Linear(4, 4), "read": nn.Linear(4, 4)}) for _ in range(2))
        self.out = nn.Linear(4, 4)
        self.config = SimpleNamespace(_name_or_path="org/seeing")

    def forward(self, video, words, picture):
        return self.out(video + sum(block["see"](picture) + block["read"](words) for block in self.blocks))


def seeing(model, prompts, generators, images=None, height=480, gain=1.0):
    colours = [torch.tensor([*image.resize((1, 1)).getpixel((0, 0)), 255]) / 255 for image in images]
    words = torch.stack([Words(prompt)(1, 1, 4)[0, 0] for prompt in prompts])
    video = torch.stack([torch.randn(4, generator=generator) for generator in generators])
    seeing.heights.append(height)
    with torch.no_grad():
        return model(video, words, gain * torch.stack(colours))


def test_pictures_and_further_arguments_reach_the_callable():
    torch.manual_seed(0)
    pipe, seeing.heights = wrap_denoiser(Seeing(), seeing, component="unet"), []
    red, blue, green = (Image.new("RGB", (2, 2), colour) for colour in ("red", "blue", "green"))
    assert [site.module for site in measure_sites(pipe, "image")] == ["blocks.0.see", "blocks.1.see"]
    concept = Concept("red", (Pair("a dog", "a dog", red, blue),), neutral_images=[green])
    adapter = build_adapter(pipe, concept, BuildConfig(strength=1.0), progress=False, call_kwargs={"gain": 2.0})
    assert adapter.sites == ("unet.blocks.0.see", "unet.blocks.1.see")
    expected = torch.tensor([1.0, 0, -1, 0])
    for direction in adapter.directions.values():
        assert torch.cosine_similarity(direction.write[0], expected, dim=0) > 0.999
    pipe.load_unlearning_adapter(adapter)
    noise = [torch.Generator().manual_seed(3) for _ in range(4)]
    outputs = [pipe("a dog", generator, image=image) for generator, image in zip(noise, (red, blue), strict=False)]
    torch.testing.assert_close(*outputs, rtol=1e-2, atol=1e-2)
    with pytest.raises(ConfigError, match=r"Unknown key 'gian' in call_kwargs for DenoiserPipeline\. .*'gain'"):
        build_adapter(pipe, concept, call_kwargs={"gian": 2.0})
    assert len(set(seeing.heights)) == 2  # small while it is recorded, its own otherwise


def test_what_is_no_denoiser_or_no_callable_is_refused():
    with pytest.raises(DenoiserError, match="to be an nn.Module with Linear layers, but got int"):
        wrap_denoiser(3, run)
    with pytest.raises(DenoiserError, match="with Linear layers, but got ReLU has no Linear layer"):
        wrap_denoiser(nn.ReLU(), run)
    with pytest.raises(ConfigError, match="Expected `component` to be one of transformer, .*, but got array"):
        wrap_denoiser(nn.Linear(2, 2), lambda module, prompts, generators: None, component=np.ones(3))
    with pytest.raises(ConfigError, match="Expected `component` to be one of transformer, .*, but got 'vae'"):
        wrap_denoiser(STDiT(), run, component="vae")
    for bad, found in (
        (None, "got NoneType"),
        (lambda model, prompts: None, r"got <lambda>\(model, prompts\)"),
        (lambda model, prompts, generators, height: None, r"got <lambda>\(model, prompts, generators, height\)"),
        (lambda model, *prompts, generators=None: None, r"got <lambda>\(model, \*prompts, generators=None\)"),
    ):
        with pytest.raises(ConfigError, match=rf"callable of \(module, prompts, generators\) .*{found}\."):
            wrap_denoiser(STDiT(), bad)
    assert not torch.equal(wrapped()("a cat"), wrapped()("a cat"))  # without a generator the noise is new


def test_a_callable_whose_arguments_are_unknown_is_named() -> None:
    with pytest.raises(ConfigError, match="the arguments of 'int' are unknown"):
        wrap_denoiser(torch.nn.Linear(2, 2), int)
