"""A concept that enters only through the picture: planted, found, and removed from the pipeline's own output."""

from __future__ import annotations

import warnings

import planted_pictures as planted
import pytest
import tiny
import torch
from planted_pictures import concept, shown, video
from tiny import generate
from torch import Tensor
from traces import count_hooks, plain_state

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError, SiteError
from unlearning_adapters.pipelines.sites import find_sites, site_module
from unlearning_adapters.runtime.verbs import (
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
    unload_unlearning_adapters,
)

HELD_OUT, OTHER = 50, 60  # seeds of pictures that no build has seen
WORDS = tuple(
    Pair(f"a red {thing} moves left", f"a blue {thing} moves left") for thing in ("circle", "dog", "car", "tree")
)
NEUTRAL_WORDS = ("a dog moves", "a green car", "the house in a street")


def effect(pipe, adapter: UnlearningAdapter, kind: str) -> dict[str, float]:
    """Distances after the edit, as shares of the gap between the pictures with and without the concept."""
    red, blue, other = (shown(kind, HELD_OUT, "red"), shown(kind, HELD_OUT, "blue"), shown(kind, OTHER))
    before = [video(pipe, item) for item in (red, blue, other)]
    load_unlearning_adapter(pipe, adapter)
    after = [video(pipe, item) for item in (red, blue, other)]
    unload_unlearning_adapters(pipe)
    gap = (before[0] - before[1]).norm()
    assert gap > 0.01 * before[0].norm()
    assert torch.equal(video(pipe, red), before[0])
    return {
        "left": float((after[0] - before[1]).norm() / gap),
        "neutral": float((after[2] - before[2]).norm() / gap),
    }


@pytest.fixture(scope="module")
def wan():
    pipe = planted.wan_pipeline()
    return pipe, build_adapter(pipe, concept("wan"), BuildConfig(epsilon=1e-3), progress=False)


@pytest.fixture(scope="module")
def from_words(wan):
    words = Concept("red", WORDS, neutral=NEUTRAL_WORDS)
    return build_adapter(wan[0], words, BuildConfig(epsilon=1e-3), progress=False)


@pytest.fixture(scope="module")
def svd():
    pipe = planted.svd_pipeline()
    config = BuildConfig(epsilon=1e-4)
    return pipe, build_adapter(pipe, concept("svd", neutral=12), config, progress=False)


def test_wan_the_image_sites_are_chosen_and_the_planted_direction_is_found(wan):
    pipe, adapter = wan
    assert adapter.sites == tuple(
        f"transformer.blocks.{block}.attn2.{leaf}" for block in (0, 1) for leaf in ("add_k_proj", "add_v_proj")
    )
    expected = planted.cell_token(pipe, "red") - planted.cell_token(pipe, "blue")
    for direction in adapter.directions.values():
        assert torch.cosine_similarity(direction.write[0], expected, dim=0) > 0.99


def test_wan_the_picture_with_the_concept_becomes_the_one_without_and_others_stay(wan):
    shares = effect(*wan, "wan")
    assert shares["left"] < 0.05
    assert shares["neutral"] < 0.15


def test_wan_a_text_adapter_does_not_do_that(wan, from_words):
    assert {site.rpartition(".")[2] for site in from_words.sites} == {"to_k", "to_v"}
    assert 0.9 < effect(wan[0], from_words, "wan")["left"] < 1.1


def test_wan_attached_fused_filed_and_as_a_stock_lora_it_is_one_edit(wan, tmp_path):
    pipe, adapter = wan
    unsafe = shown("wan", HELD_OUT, "red")
    base = video(pipe, unsafe)
    for name, direction in adapter.directions.items():
        weight = site_module(pipe, name).weight.detach()
        torch.testing.assert_close(adapter.lora_B[name], -adapter.strength * weight @ direction.write.T)
    load_unlearning_adapter(pipe, adapter.save_pretrained(tmp_path))
    attached = video(pipe, unsafe)
    fuse_unlearning_adapters(pipe)
    torch.testing.assert_close(video(pipe, unsafe), attached, rtol=1e-3, atol=1e-4)
    unfuse_unlearning_adapters(pipe)
    assert torch.equal(video(pipe, unsafe), attached)
    unload_unlearning_adapters(pipe)
    assert torch.equal(video(pipe, unsafe), base) and not torch.allclose(attached, base, atol=1e-3)
    pipe.load_lora_weights(tmp_path)  # by stock diffusers
    try:
        torch.testing.assert_close(video(pipe, unsafe), attached, rtol=1e-3, atol=1e-4)
    finally:
        pipe.unload_lora_weights()


def test_wan_pairs_of_words_and_pictures_are_built_at_both_kinds_of_sites(wan, from_words):
    pipe, from_pictures = wan
    both = Concept(
        "red",
        (*WORDS, *concept("wan").pairs),
        neutral=NEUTRAL_WORDS,
        neutral_images=concept("wan").neutral_images,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        adapter = build_adapter(pipe, both, BuildConfig(epsilon=1e-3, strength=1.0), progress=False)
    kinds = {site.name: site.kind for site in find_sites(pipe, ("text", "image"))}
    assert set(adapter.sites) == set(kinds) and sorted(kinds.values()) == ["image"] * 4 + ["text"] * 4
    # Pairs that differ in words alone say nothing at image sites, and the other way round.
    for single in (from_pictures, from_words):
        for name in single.sites:
            one, other = (item.directions[name].write[0] for item in (adapter, single))
            torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-5)


def test_svd_is_built_from_pictures_alone_and_the_planted_direction_is_found(svd):
    pipe, adapter = svd
    assert len(adapter.sites) == 16 and all(".attn2.to_" in name for name in adapter.sites)
    assert any("temporal_transformer_blocks" in name for name in adapter.sites)
    expected = planted.cell_shift(pipe, "red", "blue")
    for direction in adapter.directions.values():
        assert torch.cosine_similarity(direction.write[0], expected, dim=0) > 0.99


def test_svd_the_picture_with_the_concept_becomes_the_one_without_and_others_stay(svd):
    shares = effect(*svd, "svd")
    assert shares["left"] < 0.05
    assert shares["neutral"] < 0.15


def test_svd_a_random_direction_does_not_do_that(svd):
    pipe, _ = svd
    adapter = build_adapter(pipe, concept("svd", 2, 2), BuildConfig("random"), progress=False)
    assert effect(pipe, adapter, "svd")["left"] > 0.5


def test_svd_a_build_leaves_the_pipeline_as_it_was():
    pipe = planted.svd_pipeline()
    state, hooks, random_state = plain_state(pipe), count_hooks(pipe), torch.get_rng_state()
    build_adapter(pipe, concept("svd", 2, 1), progress=False)
    assert (plain_state(pipe), count_hooks(pipe)) == (state, hooks)
    assert torch.equal(torch.get_rng_state(), random_state)


def test_svd_has_no_use_for_words(svd):
    pipe, _ = svd
    with pytest.raises(
        ConceptError,
        match=r"StableVideoDiffusionPipeline takes a picture, and the pairs of 'red' do not differ in that\. "
        r"Add `unsafe_image` and `safe_image` that differ\.",
    ):
        build_adapter(pipe, Concept("red", WORDS), BuildConfig("mean"), progress=False)
    with pytest.raises(SiteError, match="No text site was found"):
        build_adapter(pipe, concept("svd", 2, 1), BuildConfig(sites="text"), progress=False)


def test_a_text_pipeline_has_no_use_for_pictures():
    pipe = tiny.tiny_wan_pipeline()
    with pytest.raises(ConceptError, match=r"WanPipeline takes a prompt, and .* Add prompts that differ\."):
        build_adapter(pipe, concept("wan", 2, 1), progress=False)
    assert torch.isfinite(generate(pipe)).all() and count_hooks(pipe) == 0


def remaining(pipe, adapter: UnlearningAdapter, kind: str) -> tuple[float, float]:
    """How much the output still tells red from blue: in the frame that is given, and in those that are made."""
    sides = [shown(kind, HELD_OUT, colour) for colour in ("red", "blue")]
    before = [video(pipe, side, height=32, width=32) for side in sides]
    load_unlearning_adapter(pipe, adapter)
    after = [video(pipe, side, height=32, width=32) for side in sides]
    unload_unlearning_adapters(pipe)

    def share(part: slice) -> float:
        gaps: list[Tensor] = [(one - other)[:, :, part].norm() for one, other in (after, before)]
        return float(gaps[0] / gaps[1])

    return share(slice(0, 1)), share(slice(1, None))


def test_wan_with_its_latents_open_keeps_the_picture_in_the_given_frame_only():
    pipe = planted.wan_pipeline(latents=True)
    call = {**planted.WAN_CALL, "height": 32, "width": 32}
    config = BuildConfig(epsilon=1e-3, sites=("image", "hidden"), steps=2, strength=1.0)
    adapter = build_adapter(pipe, concept("wan"), config, progress=False, call_kwargs=call)
    given, made = remaining(pipe, adapter, "wan")
    assert given > 0.9
    assert made < 0.3


def test_a_picture_among_the_latents_is_reduced_at_hidden_sites_in_the_frames_that_are_made():
    """The given frame keeps it: its latents pass around all sites, on the residual stream."""
    pipe = planted.wan_2_2_pipeline()
    kind = "wan 2.2"
    seen = concept(kind, 4, 16)
    call = planted.WAN_2_2_CALL
    config = BuildConfig(sites="hidden", steps=2, strength=1.0)
    given, made = remaining(pipe, build_adapter(pipe, seen, config, progress=False, call_kwargs=call), kind)
    assert 0.9 < given < 1.05
    assert made < 0.7
    inside = ("hidden", "*attn1.to_*", "*attn2.to_q", "*.ffn.*", "transformer.proj_out")
    config = BuildConfig(sites=inside, steps=2, strength=1.0)
    given, made = remaining(pipe, build_adapter(pipe, seen, config, progress=False, call_kwargs=call), kind)
    assert given < 0.4 and made < 0.3
