"""Builds with scope="concept" from clips of the user: the pipeline's own give its own adapter, others another one."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from planted_words import CONCEPT, planted_pipeline
from tiny import CALL
from traces import count_hooks, plain_state

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.building.video.scenes import PAIR_SEEDS, rough
from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError, ConfigError, DenoiserError
from unlearning_adapters.pipelines.running.clean_latents import clean_latents
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.runtime.verbs import load_unlearning_adapter, unload_unlearning_adapters
from unlearning_adapters.shapeworld.models.generate import generation_of
from unlearning_adapters.shapeworld.models.load import load_shapeworld

FOUR = {**CALL, "num_inference_steps": 4}


def build(pipe, clips=None, call=FOUR, concept=CONCEPT, **settings) -> UnlearningAdapter:
    config = BuildConfig(**{"scope": "concept", **settings})
    return build_adapter(pipe, concept, config, progress=False, call_kwargs=call, clips=clips)


def noise(count: int, seed: int, size=(5, 16, 16)) -> list[np.ndarray]:
    return list(np.random.default_rng(seed).integers(0, 256, (count, *size, 3), dtype=np.uint8))


@pytest.fixture(scope="module")
def pipe():
    return planted_pipeline()


@pytest.mark.slow
def test_the_pipelines_own_clips_give_nearly_its_own_adapter(monkeypatch):
    """They went through the VAE and eight bits, so that they are not the same bits."""
    monkeypatch.setattr("unlearning_adapters.building.video.scenes.COUNTERPARTS", 1)  # as given clips: both sides alone
    pipe, concept = load_shapeworld(), replace(load_concept("shapeworld-red"), neutral=())
    call = generation_of(pipe)
    sides = {"unsafe": [], "safe": []}
    seed = 0
    for pair in concept.pairs[:5]:
        for _ in range(PAIR_SEEDS):
            for name, prompt in (("unsafe", pair.unsafe), ("safe", pair.safe)):
                maker = torch.Generator().manual_seed(seed)
                sides[name].append(pipe(prompt, generator=maker, output_type="np", **rough(pipe, call)).frames[0])
            seed += 1
    with pytest.warns(UserWarning, match="no neutral prompts"):
        own, given = (build(pipe, clips, call, concept) for clips in (None, sides))
        swapped = build(pipe, {"unsafe": sides["safe"], "safe": sides["unsafe"]}, call, concept)
    assert given.sites == own.sites and given.additive == own.additive

    embeds = pipe.encode_prompt("a circle moves up", do_classifier_free_guidance=False, max_sequence_length=32)[0]
    run = PartialRun(pipe, rough(pipe, call), any_video=False, own_guidance=True)
    clean = clean_latents(run, ["a red circle moves up on a black background"], [99])[:, 0]
    noised = (clean + torch.randn(clean.shape, generator=torch.Generator().manual_seed(1))) / 2

    @torch.no_grad()
    def predicted() -> torch.Tensor:
        return pipe.transformer(noised, torch.tensor([500]), embeds, return_dict=False)[0].flatten()

    def effect(adapter: UnlearningAdapter) -> torch.Tensor:
        """What it does to the prediction from a clip of red that the builds have not seen."""
        load_unlearning_adapter(pipe, adapter)
        edited = predicted()
        unload_unlearning_adapters(pipe)
        return edited - base

    base = predicted()
    one, other, turned = effect(own), effect(given), effect(swapped)
    assert torch.cosine_similarity(one, other, dim=0) > 0.9
    assert 0.8 < other.norm() / one.norm() < 1.25
    assert torch.cosine_similarity(one, turned, dim=0) < 0.5  # from the safe side to the unsafe one


def test_other_clips_give_another_adapter_that_acts_and_leave_no_trace(pipe):
    before, hooks, kind = plain_state(pipe), count_hooks(pipe), vars(pipe.vae).keys()
    own = build(pipe)
    given = build(pipe, {"unsafe": noise(10, 0), "safe": noise(10, 1)})
    kept = build(pipe, {"unsafe": noise(10, 0), "safe": noise(10, 1), "neutral": noise(3, 2)})
    again = build(pipe, {"unsafe": noise(10, 0), "safe": noise(10, 1)})
    assert plain_state(pipe) == before and count_hooks(pipe) == hooks and vars(pipe.vae).keys() == kind
    site = "transformer.blocks.0.attn1.to_q"
    reads = [adapter.directions[site].read for adapter in (own, given, kept, again)]
    assert given.sites == own.sites == kept.sites
    assert torch.equal(reads[1], reads[3])
    assert not torch.equal(reads[0], reads[1]) and not torch.equal(reads[1], reads[2])
    base = pipe("a dog moves", generator=torch.Generator().manual_seed(0), output_type="latent", **FOUR).frames
    load_unlearning_adapter(pipe, given)
    edited = pipe("a dog moves", generator=torch.Generator().manual_seed(0), output_type="latent", **FOUR).frames
    unload_unlearning_adapters(pipe)
    assert torch.isfinite(edited).all() and (edited - base).norm() > 1e-4 * base.norm()


def test_text_sites_do_not_depend_on_given_clips(pipe):
    own, given = build(pipe), build(pipe, {"unsafe": noise(5, 0), "safe": noise(5, 1)})
    for site in set(own.sites) - set(own.additive):
        assert torch.equal(own.directions[site].read, given.directions[site].read)


def test_what_does_not_match_is_refused_in_one_line(pipe):
    with pytest.raises(ConceptError, match="the same number for each of the 5 pairs, but got 7 unsafe and 7 safe"):
        build(pipe, {"unsafe": noise(7, 0), "safe": noise(7, 1)})
    with pytest.raises(ConceptError, match="A given clip has 9 frames of 16 x 16 pixels .* have 5 of 16 x 16"):
        build(pipe, {"unsafe": noise(5, 0, (9, 16, 16)), "safe": noise(5, 1, (9, 16, 16))})
    with pytest.raises(ConceptError, match="The clips of both sides of all 5 pairs are the same"):
        build(pipe, {"unsafe": noise(5, 0), "safe": noise(5, 0)})
    with pytest.raises(ConfigError, match="Clips are read for scope=\"concept\" alone, but the scope is 'word'"):
        build(pipe, {"unsafe": noise(5, 0), "safe": noise(5, 1)}, scope="word")


def test_without_an_encoder_it_is_refused():
    pipe = planted_pipeline()
    pipe.vae = None
    with pytest.raises(DenoiserError, match="WanPipeline has no VAE that encodes the given clips"):
        build(pipe, {"unsafe": noise(5, 0), "safe": noise(5, 1)})
