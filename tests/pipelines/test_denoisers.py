"""One conformance suite over tiny models of every video denoiser of diffusers."""

from __future__ import annotations

import re
from collections.abc import Callable

import pytest
import torch
from conformance import ROUNDING, changed, densely_edited, each, expand, on_inputs, shape, some_adapter, state, weights
from tiny_denoisers import OTHER_PROMPT, PROMPT, TINY, Tiny, TinyPipeline
from torch import Tensor, nn

from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept, Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import SiteError
from unlearning_adapters.pipelines.probes import measure_sites
from unlearning_adapters.pipelines.sites import NO_TEXT, find_sites, site_module
from unlearning_adapters.runtime.verbs import (
    delete_unlearning_adapters,
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
    unload_unlearning_adapters,
)

CLASSES = 34
# Layers that read pooled text alone: the doors of some models.
DOORS = (
    r"text_embedder\.linear|^add_embedding\.|time_emb_proj$|^time_embed\.|pooled_text_embeddings|norm\w*\.linear|_modulation"
    r"|\bmodulation\."
)

each_that_reads_text = pytest.mark.parametrize(
    "tiny", [tiny for tiny in TINY if tiny.sites], ids=lambda tiny: tiny.name
)


def text_paths(pipe: TinyPipeline) -> set[str]:
    return {site.module for site in find_sites(pipe)} if pipe.tiny.sites else set()


def inputs_of(pipe: TinyPipeline, prompt: str = PROMPT, noise: int = 0) -> dict[str, Tensor]:
    """What each Linear read first in a run."""
    seen: dict[str, Tensor] = {}

    def keep(path: str, x: Tensor) -> Tensor:
        seen.setdefault(path, x.clone())
        return x

    with on_inputs(pipe.model, keep):
        pipe.tiny.run(pipe.model, prompt, noise)
    return seen


WITHOUT_PROJECTION = {
    "CosmosTransformer3DModel", "CosmosTransformer3DModel (image keys)", "Cosmos3OmniTransformer", "I2VGenXLUNet",
    "UNet3DConditionModel", "UNetMotionModel", "UNetMotionModel (SDXL)", "UNet2DConditionModel",
    "UNet2DConditionModel (SDXL)",
}  # fmt: skip


@each_that_reads_text
def test_the_text_projection_is_what_reads_the_prompt_first(tiny):
    pipe = TinyPipeline(tiny)
    if tiny.name in WITHOUT_PROJECTION:
        with pytest.raises(SiteError, match="No text-projection site was found in"):
            find_sites(pipe, "text-projection")
        return
    sites = find_sites(pipe, "text-projection")
    one, other, noise = inputs_of(pipe), inputs_of(pipe, OTHER_PROMPT), inputs_of(pipe, noise=1)
    by_prompt = [
        path
        for path, x in one.items()
        if x.ndim > 2 and "pooler" not in path and torch.equal(x, noise[path]) and not same(x, other[path])
    ]
    for site in sites:
        assert site.kind == "text" and site.block is None and site.module in by_prompt
        # No other layer of its own branch was called before it.
        branch = site.module.partition(".")[0]
        assert not [path for path in by_prompt[: by_prompt.index(site.module)] if path.startswith(branch)]
    assert by_prompt[0] in {site.module for site in sites}


def same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and torch.equal(one, other)


def test_the_table_has_every_denoiser():
    assert len({tiny.model for tiny in TINY}) == CLASSES
    assert len({tiny.name for tiny in TINY}) == len(TINY)


@each
def test_text_sites(tiny: Tiny):
    pipe = tiny.pipe()
    if tiny.sites:
        assert {shape(path) for path in text_paths(pipe)} == expand(tiny.sites)
    else:
        with pytest.raises(SiteError, match=rf"No text site was found in {tiny.component} \({tiny.model}\)"):
            find_sites(pipe)


@each
def test_sites_agree_with_measurement(tiny: Tiny):
    """What reads the prompt alone is a site, or prepares the text for sites, or is a door that the table names."""
    pipe = tiny.pipe()
    sites, measured = text_paths(pipe), {site.module for site in measure_sites(pipe, "text")}
    mixed = {path for path in sites if tiny.mixed and re.search(tiny.mixed, path)}
    assert sites - mixed <= measured
    assert not mixed & measured, "these sites read the prompt alone after all"
    others = {path for path in measured - sites if not re.search(tiny.front, path)}
    assert {path for path in others if not re.search(DOORS, path)} == set()
    assert bool(others) == bool(tiny.doors)


@each_that_reads_text
def test_each_site_reads_the_prompt(tiny: Tiny):
    pipe = tiny.pipe()
    one, other, noise = inputs_of(pipe), inputs_of(pipe, OTHER_PROMPT), inputs_of(pipe, noise=1)
    for path in text_paths(pipe):
        assert not torch.allclose(one[path], other[path], rtol=1e-4, atol=1e-6), path
        same = torch.equal(one[path], noise[path])
        assert same != bool(tiny.mixed and re.search(tiny.mixed, path)), path


@each
def test_the_prompt_has_no_other_door_than_those_of_the_table(tiny: Tiny):
    """With all sites blind, the output depends on the prompt only where the table says how."""
    pipe = tiny.pipe()
    before = tiny.run(pipe.model), tiny.run(pipe.model, OTHER_PROMPT)
    assert torch.equal(*before) == (not tiny.sites)
    sites = text_paths(pipe)
    with on_inputs(pipe.model, lambda path, x: torch.zeros_like(x) if path in sites else x):
        after = tiny.run(pipe.model), tiny.run(pipe.model, OTHER_PROMPT)
    assert torch.equal(*after) == (not tiny.doors)


@each
def test_hidden_sites_read_the_video(tiny: Tiny):
    pipe = tiny.pipe()
    hidden = {site.module for site in find_sites(pipe, "hidden")}
    one, noise = inputs_of(pipe), inputs_of(pipe, noise=1)
    assert hidden <= one.keys()
    still = {path for path in hidden if torch.equal(one[path], noise[path])}
    # Attention to a single token, the image of Stable Video Diffusion, gives this token whatever the video asks.
    assert still == {path for path in hidden if tiny.model in NO_TEXT and path.endswith("attn2.to_out.0")}


@pytest.mark.parametrize(("sites", "scope"), [("text", "word"), ("hidden", "word"), ("text", "concept")])
@each
def test_attach_fuse_unfuse_unload(tiny: Tiny, sites: str, scope: str):
    pipe = tiny.pipe()
    base, clean, original = pipe(), state(pipe), weights(pipe)
    adapter = some_adapter(pipe, sites=sites, scope=scope)
    assert bool(adapter.additive) == (scope == "concept")
    expected = densely_edited(tiny, adapter)
    assert not torch.allclose(expected, base, **ROUNDING)

    name = load_unlearning_adapter(pipe, adapter)
    attached = pipe()
    torch.testing.assert_close(attached, expected, **ROUNDING)
    assert changed(original, weights(pipe)) == set()

    fuse_unlearning_adapters(pipe)
    torch.testing.assert_close(pipe(), attached, **ROUNDING)
    edited = {f"{site.partition('.')[2]}.weight" for site in adapter.sites}
    assert changed(original, weights(pipe)) == edited

    unfuse_unlearning_adapters(pipe)
    assert changed(original, weights(pipe)) == set()
    assert torch.equal(pipe(), attached)

    delete_unlearning_adapters(pipe, name)
    assert torch.equal(pipe(), base)
    assert state(pipe) == clean and changed(original, weights(pipe)) == set()


@each
def test_two_adapters_stack_in_any_order(tiny: Tiny):
    pipe = tiny.pipe()
    base, clean = pipe(), state(pipe)
    adapters = [some_adapter(pipe, seed) for seed in (1, 2)]
    outputs = []
    for order in (adapters, adapters[::-1]):
        for adapter in order:
            load_unlearning_adapter(pipe, adapter)
            outputs.append(pipe())
        unload_unlearning_adapters(pipe)
        assert torch.equal(pipe(), base) and state(pipe) == clean
    first, both, second, both_again = outputs
    assert torch.equal(both, both_again)
    for alone in (first, second, base):
        assert not torch.allclose(both, alone, **ROUNDING)


@each
def test_file_round_trip(tiny: Tiny, tmp_path):
    pipe = tiny.pipe()
    adapter = some_adapter(pipe)
    load_unlearning_adapter(pipe, adapter)
    expected = pipe()
    unload_unlearning_adapters(pipe)
    load_unlearning_adapter(pipe, adapter.save_pretrained(tmp_path))
    assert torch.equal(pipe(), expected)


CONTEXTS = (
    "a {} cat walks on grass",
    "one {} car moves in rain",
    "the {} bird sits by water",
    "two {} dogs run at dusk",
)


def word_pairs() -> Concept:
    """Pairs that differ in one word, so that the model's own reading of that word is the direction to find."""
    pairs = tuple(Pair(context.format("red"), context.format("blue")) for context in CONTEXTS)
    return Concept(name="red", pairs=pairs, neutral=("old men read some long books", "green hills lie under open sky"))


def pooled(rows: Tensor) -> Tensor:
    """Mean of the distinct rows: padding counts once."""
    return rows.flatten(0, -2).round(decimals=4).unique(dim=0).mean(dim=0)


def outputs_of(pipe: TinyPipeline, paths: set[str], prompt: str, noise: int) -> dict[str, Tensor]:
    """What some layers returned first in a run, with what is attached to them."""
    seen: dict[str, Tensor] = {}

    def keep(path: str) -> Callable[..., None]:
        def hook(_module: nn.Module, _args: tuple, output: Tensor) -> None:
            seen.setdefault(path, output)

        return hook

    handles = [site_module(pipe, f"{pipe.tiny.component}.{path}").register_forward_hook(keep(path)) for path in paths]
    pipe.tiny.run(pipe.model, prompt, noise)
    for handle in handles:
        handle.remove()
    return seen


@each_that_reads_text
def test_a_planted_word_is_found_and_removed(tiny: Tiny):
    pipe, concept = tiny.pipe(), word_pairs()
    before = state(pipe)
    adapter = build_adapter(pipe, concept, BuildConfig(method="mean", batch_size=1, strength=1.0), progress=False)
    assert state(pipe) == before

    def mean_difference(run: Callable[[str, int], dict[str, Tensor]]) -> dict[str, Tensor]:
        sides = [(run(pair.unsafe, seed), run(pair.safe, seed)) for seed, pair in enumerate(concept.pairs)]
        return {
            path: torch.stack([pooled(unsafe[path]) - pooled(safe[path]) for unsafe, safe in sides]).mean(dim=0)
            for path in paths
        }

    paths = {site.partition(".")[2] for site in adapter.sites}
    expected = mean_difference(lambda prompt, seed: inputs_of(pipe, prompt, seed))
    written = mean_difference(lambda prompt, seed: outputs_of(pipe, paths, prompt, seed))
    for path in paths:
        direction = adapter.directions[f"{tiny.component}.{path}"]
        assert torch.cosine_similarity(direction.read[0], expected[path], dim=0) > 0.99, path

    load_unlearning_adapter(pipe, adapter)
    left = mean_difference(lambda prompt, seed: outputs_of(pipe, paths, prompt, seed))
    moved = mean_difference(lambda prompt, seed: inputs_of(pipe, prompt, seed))
    # Sites whose own input the edits of earlier sites have changed are left out.
    first = {path for path in paths if torch.allclose(moved[path], expected[path], atol=1e-6)}
    assert first
    for path in first:
        assert left[path].norm() < 0.02 * written[path].norm(), path
