"""Edits of other works as adapters: built, saved, loaded, attached, fused, unfused and stacked as any other."""

import re
import warnings
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import reference
import torch
from cases.t5 import COG_CALL, make_cogvideox
from planted_words import CONCEPT, build, edited, planted_pipeline, word
from tiny import KEY, tiny_wan_pipeline
from tiny_encoders import WIDTH
from torch import Tensor

from planted import bits, output, planted, snapshot
from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.building.inputs import record_inputs
from unlearning_adapters.concepts.concept import Concept, Pair, load_concept
from unlearning_adapters.config import MAX_RANK, BuildConfig
from unlearning_adapters.errors import ConfigError, DenoiserError
from unlearning_adapters.evaluation.arms.controls import random_adapter
from unlearning_adapters.export.lora import export_lora
from unlearning_adapters.methods.uce import edited_tokens
from unlearning_adapters.pipelines.sites import site_module
from unlearning_adapters.runtime.verbs import (
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
    unload_unlearning_adapters,
)
from unlearning_adapters.shapeworld.models.generate import GENERATION
from unlearning_adapters.shapeworld.models.load import load_shapeworld
from whole import NEUTRAL, SCENES

METHODS = ("uce", "rece", "cure")
each_method = pytest.mark.parametrize("method", METHODS)


@pytest.fixture(scope="module")
def shapeworld() -> Any:
    return load_shapeworld()


def shapeworld_output(pipe: Any, prompt: str) -> Tensor:
    call = {**GENERATION, "num_inference_steps": 1, "output_type": "latent"}
    return pipe(prompt, generator=torch.Generator().manual_seed(0), **call).frames


def weights_of(pipe: Any) -> dict[str, Tensor]:
    return {name: bits(value) for name, value in pipe.transformer.state_dict().items()}


def check_whole_life(pipe: Any, adapter: UnlearningAdapter, second: UnlearningAdapter, folder: Any, show: Any) -> None:
    """File, attach, fuse, unfuse bit for bit, stack in either order, and no trace at the end."""
    base, before = show(), weights_of(pipe)
    loaded = load_adapter(adapter.save_pretrained(folder))
    assert loaded.edit == "additive" and loaded.info == adapter.info
    for site, direction in adapter.directions.items():
        assert torch.equal(loaded.directions[site].read, direction.read)
        assert torch.equal(loaded.directions[site].write, direction.write)

    load_unlearning_adapter(pipe, loaded, "rival")
    attached = show()
    change = (attached - base).norm()
    assert change > 1e-3 * base.norm()
    fuse_unlearning_adapters(pipe)
    assert (show() - attached).norm() < 1e-3 * change
    changed = {name for name, value in weights_of(pipe).items() if not torch.equal(value, before[name])}
    assert changed == {f"{site.removeprefix('transformer.')}.weight" for site in adapter.sites}
    unfuse_unlearning_adapters(pipe)
    assert all(torch.equal(value, before[name]) for name, value in weights_of(pipe).items())
    assert torch.equal(show(), attached)

    load_unlearning_adapter(pipe, second, "second")
    both = show()
    unload_unlearning_adapters(pipe)
    load_unlearning_adapter(pipe, second, "second")
    alone = show()
    load_unlearning_adapter(pipe, loaded, "rival")
    assert torch.equal(show(), both)
    assert min((both - attached).norm(), (both - alone).norm()) > 1e-3 * change
    unload_unlearning_adapters(pipe)
    assert torch.equal(show(), base)


@each_method
def test_the_whole_life_on_a_tiny_pipeline(method: str, tmp_path: Any) -> None:
    pipe = tiny_wan_pipeline()
    adapter = build(pipe, method=method)
    assert adapter.strength == 1.0 and adapter.info.method == method
    for name, direction in adapter.directions.items():
        weight = site_module(pipe, name).weight.detach()
        torch.testing.assert_close(adapter.lora_B[name], -weight @ direction.write.T)
    clean = snapshot(pipe)
    check_whole_life(pipe, adapter, planted(pipe), tmp_path, lambda: output(pipe))
    left = snapshot(pipe)
    assert all(left[name] == value for name, value in clean.items() if name.endswith(":"))


@each_method
def test_the_whole_life_on_shapeworld(method: str, shapeworld: Any, tmp_path: Any) -> None:
    concept = load_concept("shapeworld-red")
    concept = replace(concept, neutral=concept.neutral[:16])  # for speed
    adapter = build_adapter(shapeworld, concept, BuildConfig(method), progress=False)
    second = planted(shapeworld)
    prompt = "a red circle moves left on a black background"
    check_whole_life(shapeworld, adapter, second, tmp_path, lambda: shapeworld_output(shapeworld, prompt))


@pytest.mark.parametrize("settings", [{"method": "uce"}, {"method": "rece", "rounds": 0}], ids=["uce", "rece"])
def test_the_planted_concept_becomes_its_counterpart_and_neutral_words_are_kept(settings: dict[str, Any]) -> None:
    pipe = planted_pipeline()
    adapter = build(pipe, **settings)
    red, blue = word(pipe, "red"), word(pipe, "blue")
    assert (edited(adapter, red) - blue).norm() < 0.05 * (red - blue).norm()
    others = torch.stack([word(pipe, text) for text in ("dog", "house", "street", "green", "blue", "left")])
    assert (edited(adapter, others) - others).norm() < 0.05 * others.norm()


def test_cure_takes_from_the_concept_more_than_from_what_is_retained() -> None:
    pipe = planted_pipeline()
    adapter = build(pipe, method="cure", sharpness=5.0)
    red, dog = word(pipe, "red"), word(pipe, "dog")

    def taken(row: Tensor) -> float:
        return float((edited(adapter, row) - row).norm() / row.norm())

    assert taken(red) > 0.1
    assert taken(red) > 1.2 * taken(dog)


def test_rounds_of_rece_add_rows_and_change_the_edit() -> None:
    pipe = planted_pipeline()
    none, three = (build(pipe, method="rece", rounds=rounds).directions[KEY] for rounds in (0, 3))
    assert three.rank > none.rank
    red = word(pipe, "red")
    edit = [red @ (direction.read.T @ direction.write) for direction in (none, three)]
    assert not torch.allclose(edit[0], edit[1], atol=1e-6)


def test_rece_needs_plain_weights_and_says_so() -> None:
    pipe = tiny_wan_pipeline()
    linear = site_module(pipe, KEY)
    linear.weight = torch.nn.Parameter(linear.weight.detach().to(torch.float8_e4m3fn), requires_grad=False)
    linear.forward = lambda x: torch.nn.functional.linear(x, linear.weight.to(x.dtype), linear.bias)
    text = re.escape(
        f"The method 'rece' needs the weight of {KEY!r} as plain numbers, but it is quantised or out of reach. "
        "Load the pipeline without quantisation and offloading to files, or choose another method."
    )
    with pytest.raises(DenoiserError, match=text):
        build(pipe, method="rece")
    assert build(pipe, method="uce").edit == "additive"


def unmasked_cogvideox() -> tuple[Any, Concept]:
    """A tiny CogVideoX whose T5 has no mask and mixes all tokens, so that each pair differs in its padding as well."""
    pipe = make_cogvideox()
    with torch.no_grad():
        for block in pipe.text_encoder.encoder.block:
            block.layer[0].SelfAttention.o.weight.mul_(1000)
    pairs = tuple(Pair(scene.format("red"), scene.format("blue")) for scene in (*SCENES, "a {} dog", "the {} car runs"))
    return pipe, Concept("red", pairs, neutral=NEUTRAL)


@each_method
def test_an_edit_of_more_tokens_than_a_file_holds_rows_is_built_and_exact(method: str, tmp_path: Any) -> None:
    pipe, concept = unmasked_cogvideox()
    config = BuildConfig(method, sites="text", steps=1, pairs=7)
    rows = record_inputs(pipe, concept, config, progress=False, call_kwargs=COG_CALL).rows(0)
    concepts, guides, preserved = edited_tokens(rows)
    assert len(concepts) > MAX_RANK >= concepts.shape[1]  # more tokens than rows, and their rank is within the limit
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter = build_adapter(pipe, concept, config, progress=False, call_kwargs=COG_CALL)
    ((site, direction),) = adapter.directions.items()
    if method == "uce":
        ridge = 0.5 * float(concepts.double().square().sum(dim=1).mean()) / 768
        arrays = [part.double().numpy() for part in (concepts, guides, preserved)]
        expected = np.eye(WIDTH) - reference.uce_weight(np.eye(WIDTH), *arrays, ridge, 1.0, 1.0)
        found = direction.write.double().numpy().T @ direction.read.double().numpy()
        assert np.linalg.norm(found - expected) < 1e-5 * np.linalg.norm(expected)
    loaded = load_adapter(adapter.save_pretrained(tmp_path)).directions[site]
    assert torch.equal(loaded.read, direction.read) and torch.equal(loaded.write, direction.write)


def many_words() -> tuple[Any, Concept]:
    """A tiny Wan of 96 features per token whose pairs differ in more than 64 independent tokens."""
    pipe = tiny_wan_pipeline(heads=8)
    with torch.no_grad():
        for block in pipe.text_encoder.encoder.block:
            block.layer[0].SelfAttention.o.weight.mul_(1000)  # tokens hear of each other
        pipe.transformer.condition_embedder.text_embedder.linear_1.weight.mul_(10)  # far into its non-linear part
    words = [f"w{number} x{number}" for number in range(40)]
    pairs = tuple(Pair(f"a red {text} circle", f"a blue dog {number}") for number, text in enumerate(words))
    return pipe, Concept("many", pairs, neutral=CONCEPT.neutral)


def test_a_build_says_what_the_limit_of_rows_leaves_out() -> None:
    pipe, concept = many_words()
    text = (
        r"^The edit of the method 'uce' has more than 64 rows, the limit: the best 64 leave "
        r"out \d+\.\d % of it\. Lower"
    )
    with pytest.warns(UserWarning, match=text) as caught:
        adapter = build(pipe, concept, method="uce", pairs=40)
    assert len(caught) == 1 and adapter.rank == MAX_RANK
    assert max(direction.left_out for direction in adapter.directions.values()) > 0.01


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"method": "uce", "rank": 2}, "Expected `rank` to be 1 for the method 'uce', but got 2"),
        ({"rounds": 11}, "Expected `rounds` to be an integer from 0 to 10, but got 11"),
        ({"sharpness": 0.5}, "Expected `sharpness` to be a number >= 1, but got 0.5"),
    ],
)
def test_settings_out_of_range(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError, match=re.escape(text)):
        BuildConfig(**settings)


def test_the_random_control_of_an_additive_adapter_is_additive_and_as_large() -> None:
    adapter = build(planted_pipeline(), method="uce")
    turned = random_adapter(adapter)
    assert turned.edit == "additive"
    for site, direction in adapter.directions.items():
        other = turned.directions[site]
        sizes = [torch.linalg.matrix_norm(item.write.T @ item.read, 2) for item in (direction, other)]
        torch.testing.assert_close(sizes[0], sizes[1], rtol=1e-3, atol=1e-5)
        assert not torch.allclose(direction.read, other.read, atol=1e-2)


def test_an_exported_lora_is_the_attached_edit(tmp_path: Any) -> None:
    pipe = tiny_wan_pipeline()
    adapter, second = build(pipe, method="uce"), planted(pipe)
    base = output(pipe)
    load_unlearning_adapter(pipe, adapter, "rival")
    load_unlearning_adapter(pipe, second, "second")
    attached = output(pipe)
    unload_unlearning_adapters(pipe)
    export_lora([adapter, second], tmp_path, base=pipe)
    pipe.load_lora_weights(str(tmp_path))
    assert (output(pipe) - attached).norm() < 1e-3 * (attached - base).norm()
