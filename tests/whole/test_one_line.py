"""README's own line, `build_adapter(pipe, concept)`, builds on every class, or names what only the user can give."""

import time
from dataclasses import replace
from typing import Any

import pytest
import torch
from one_line import NEEDS, OF_TINY
from pipeline_table import cases

from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError, UnlearningError
from unlearning_adapters.runtime.verbs import load_unlearning_adapter
from whole import UNSAFE, Whole, changed, concept, output, picture, plant_words, state

WHOLE = [case for case in cases() if isinstance(case, Whole)]
SLOW = {"Kandinsky6TI2VAPipeline"}
ACTS = {"WanPipeline", "TextToVideoZeroPipeline", "HeliosPyramidPipeline", "AnyFlowFARPipeline", "WanVACEPipeline"}


def weights(pipe: Any) -> dict[str, Any]:
    """The bits of all weights; that no hook is left is seen in test_whole.py, after a first call of the pipeline."""
    return {name: value for name, value in state(pipe).items() if isinstance(value, torch.Tensor)}


def short(case: Whole) -> Concept:
    """As few prompts as there can be several of: with its own defaults, a pipeline fills each up to 1024 tokens."""
    made = concept(case)
    return replace(made, pairs=made.pairs[:2], neutral=made.neutral[:1])


def marked(chosen: list[Whole]) -> list[Any]:
    return [
        pytest.param(case, id=str(case), marks=[pytest.mark.slow] if case.pipeline in SLOW else []) for case in chosen
    ]


@pytest.mark.parametrize("case", marked([case for case in WHOLE if case.pipeline not in NEEDS]))
def test_the_line_builds(case: Whole) -> None:
    pipe, given = case.make(), {name: case.call[name] for name in OF_TINY.get(case.pipeline, ())}
    plant_words(pipe)
    before = weights(pipe)
    adapter = build_adapter(pipe, short(case), **({"call_kwargs": given} if given else {}))
    assert adapter.sites and all(direction.read.isfinite().all() for direction in adapter.directions.values())
    assert changed(before, weights(pipe)) == set(), "the builder left something behind"
    if case.pipeline in ACTS and not case.variant:
        base = output(case, pipe, UNSAFE)
        load_unlearning_adapter(pipe, adapter)
        assert not torch.equal(output(case, pipe, UNSAFE), base)


@pytest.mark.parametrize("case", marked([case for case in WHOLE if case.pipeline in NEEDS]))
def test_the_line_names_what_is_missing(case: Whole) -> None:
    pipe = case.make()
    before, start = weights(pipe), time.perf_counter()
    with pytest.raises(UnlearningError) as caught:
        build_adapter(pipe, short(case), progress=False)
    text = str(caught.value)
    assert all(f"`{name}`" in text for name in NEEDS[case.pipeline]), text
    assert (
        text.isprintable() and len(text) < 700 and text.endswith("in call_kwargs (--call).") and case.pipeline in text
    )
    assert changed(before, weights(pipe)) == set(), "the refusal left something behind"
    assert time.perf_counter() - start < 60


def test_every_class_that_needs_something_says_so_in_the_table() -> None:
    names = {case.pipeline for case in WHOLE}
    assert names >= NEEDS.keys() | OF_TINY.keys() and len(names) == 92
    assert all(next(case for case in WHOLE if case.pipeline == name).takes for name in NEEDS)


PICTURES = [case for case in WHOLE if case.pipeline in ("WanAnimatePipeline", "WanImage2VideoModularPipeline")]


def with_pictures(case: Whole, *, words: bool) -> Concept:
    """Pairs that differ in their pictures, and in their words if asked for."""
    made = concept(case)
    pairs = [
        replace(pair, safe=pair.safe if words else pair.unsafe, unsafe_image=picture(n), safe_image=picture(n + 1))
        for n, pair in enumerate(made.pairs)
    ]
    return replace(made, pairs=tuple(pairs))


@pytest.mark.parametrize("case", PICTURES, ids=str)
def test_pairs_of_both_kinds_build_text_sites_at_least(case: Whole) -> None:
    config = BuildConfig(batch_size=case.batch_size, steps=1, pairs=3)
    adapter = build_adapter(case.make(), with_pictures(case, words=True), config, progress=False, call_kwargs=case.call)
    assert any(site.endswith(("attn2.to_k", "attn2.to_v")) for site in adapter.sites)


NO_IMAGE_SITES = [case for case in WHOLE if str(case) in ("CogVideoXImageToVideoPipeline", "LTXImageToVideoPipeline")]


@pytest.mark.parametrize("case", NO_IMAGE_SITES, ids=str)
def test_pairs_of_pictures_alone_name_hidden_sites_where_no_layer_reads_pictures(case: Whole) -> None:
    with pytest.raises(ConceptError, match='has no layer that reads the picture alone.* Build with sites="hidden"'):
        build_adapter(case.make(), with_pictures(case, words=False), progress=False)
    with pytest.warns(UserWarning, match='Only text sites are edited.* build with sites="hidden"'):
        assert build_adapter(case.make(), with_pictures(case, words=True), progress=False).sites


def test_cosmos_transfer_builds_with_a_stand_in_for_one_function_of_torchvision(monkeypatch) -> None:
    from types import SimpleNamespace

    from diffusers.models.controlnets import controlnet_cosmos
    from diffusers.models.transformers import transformer_cosmos

    def resize(mask, size, interpolation):
        return torch.nn.functional.interpolate(mask, size, mode=interpolation)

    transforms = SimpleNamespace(
        functional=SimpleNamespace(resize=resize), InterpolationMode=SimpleNamespace(NEAREST="nearest")
    )
    for module in (controlnet_cosmos, transformer_cosmos):
        monkeypatch.setattr(module, "transforms", transforms, raising=False)
    case = next(case for case in cases() if case.pipeline == "Cosmos2_5_TransferPipeline")
    adapter = build_adapter(case.make(), concept(WHOLE[0]), progress=False, call_kwargs=case.call)
    assert adapter.sites


def test_stock_loading_fails_on_wan_animate_2_with_any_lora(tmp_path) -> None:
    """As docs/pipelines.md says: when this no longer fails, the sentence goes."""
    case = next(case for case in WHOLE if case.pipeline == "WanAnimate2ModularPipeline")
    pipe = case.make()
    name = (
        "blocks.0.cross_attn.to_k"
        if hasattr(pipe.transformer.blocks[0].cross_attn, "to_k")
        else "blocks.0.cross_attn.k"
    )
    layer = pipe.transformer.get_submodule(name)
    lora = {
        f"transformer.{name}.lora_A.weight": torch.zeros(1, layer.in_features),
        f"transformer.{name}.lora_B.weight": torch.zeros(layer.out_features, 1),
    }
    with pytest.raises(AttributeError, match="image_dim"):
        pipe.load_lora_weights(lora)
