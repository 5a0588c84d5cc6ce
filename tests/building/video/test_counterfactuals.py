"""Builds with scope="concept": what they find, what they leave, and that their adapters act like all others."""

from dataclasses import replace

import pytest
import torch
from cases.t5 import SIZE, make_cogvideox
from cases.unet import make_zeroscope
from planted_words import CONCEPT, planted_pipeline
from tiny import CALL, tiny_wan_image_pipeline
from torch import Tensor
from traces import count_hooks, plain_state

from planted import bits
from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.building.video.counterfactuals import scope_warnings
from unlearning_adapters.building.video.moments import VideoMoments
from unlearning_adapters.building.video.scenes import few_levels, nearest_first, rough, safe_prompts, shared_words
from unlearning_adapters.building.video.sites import find_video_sites
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError, ConfigError, DenoiserError
from unlearning_adapters.pipelines.running.clean_latents import clean_latents
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.runtime.verbs import (
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
    unload_unlearning_adapters,
)

FOUR = {**CALL, "num_inference_steps": 4}


def build(pipe, call=FOUR, concept=CONCEPT, **settings) -> UnlearningAdapter:
    return build_adapter(pipe, concept, BuildConfig(scope="concept", **settings), progress=False, call_kwargs=call)


def clips(pipe, prompt: str, seeds=(1, 2)) -> Tensor:
    return clean_latents(PartialRun(pipe, FOUR, any_video=False, own_guidance=True), [prompt] * len(seeds), seeds)


def weights(pipe) -> dict[str, Tensor]:
    return {name: bits(value) for name, value in pipe.transformer.state_dict().items()}


@pytest.fixture(scope="module")
def pipe():
    return planted_pipeline()


@pytest.fixture(scope="module")
def adapter(pipe):
    return build(pipe)


def test_directions_at_video_tokens_stand_beside_those_of_the_word(pipe, adapter):
    word = build_adapter(pipe, CONCEPT, BuildConfig(), progress=False, call_kwargs=FOUR)
    video = {site.name for site in find_video_sites(pipe)}
    assert set(adapter.sites) == set(word.sites) | video and set(adapter.additive) == video
    assert adapter.edit == "mixed" and adapter.info.settings["scope"] == "concept"
    for site, direction in word.directions.items():
        assert torch.equal(adapter.directions[site].read, direction.read)
        assert adapter.directions[site].gain == direction.gain
    for site in video:
        assert adapter.strength_at(site) == pytest.approx(1.0)


def test_layers_that_read_the_same_share_a_direction(adapter):
    reads = [adapter.directions[f"transformer.blocks.0.attn1.to_{name}"].read for name in "qkv"]
    assert torch.equal(reads[0], reads[1]) and torch.equal(reads[0], reads[2])
    assert not torch.equal(reads[0], adapter.directions["transformer.blocks.1.attn1.to_q"].read)


def test_a_build_leaves_no_trace_and_is_the_same_twice(pipe, adapter):
    before, hooks, kind = weights(pipe), count_hooks(pipe), type(pipe.scheduler)
    plain, random_state = plain_state(pipe), torch.get_rng_state()
    again = build(pipe)
    assert weights(pipe).keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in weights(pipe).items())
    assert count_hooks(pipe) == hooks and type(pipe.scheduler) is kind and plain_state(pipe) == plain
    assert torch.equal(torch.get_rng_state(), random_state)
    for site in adapter.sites:
        assert torch.equal(adapter.directions[site].read, again.directions[site].read)
        assert torch.equal(adapter.directions[site].write, again.directions[site].write)


@torch.no_grad()
def test_what_shows_the_concept_is_predicted_more_like_its_counterfactual(pipe, adapter):
    """The prompt says nothing of the concept: only the noised video shows it."""
    unsafe, safe = (clips(pipe, f"a {word} dog moves right") for word in ("red", "blue"))
    assert (unsafe - safe).norm() > 1e-3 * unsafe.norm()
    embeds = pipe.encode_prompt("a dog moves right", do_classifier_free_guidance=False, max_sequence_length=16)[0]

    def predicted(clean: Tensor) -> Tensor:
        return pipe.transformer(clean[:1, 0], torch.tensor([300]), embeds, return_dict=False)[0]

    target, base = predicted(safe), predicted(unsafe)
    load_unlearning_adapter(pipe, adapter)
    edited = predicted(unsafe)
    unload_unlearning_adapters(pipe)
    assert (base - target).norm() > 1e-4 * target.norm()
    assert (edited - target).norm() < 0.95 * (base - target).norm()


def test_fused_it_acts_as_attached_and_unfused_every_bit_is_back(pipe, adapter):
    base, before = clips(pipe, "a dog moves"), weights(pipe)
    load_unlearning_adapter(pipe, adapter)
    attached = clips(pipe, "a dog moves")
    fuse_unlearning_adapters(pipe)
    fused = clips(pipe, "a dog moves")
    unfuse_unlearning_adapters(pipe)
    assert torch.equal(clips(pipe, "a dog moves"), attached)
    unload_unlearning_adapters(pipe)
    assert (attached - base).norm() > 1e-5 * base.norm()
    assert (fused - attached).norm() < 0.02 * (attached - base).norm() + 1e-5 * base.norm()
    assert all(torch.equal(value, before[name]) for name, value in weights(pipe).items())


def test_both_scopes_stack_in_any_order(pipe, adapter):
    other = replace(CONCEPT, name="no-dog")
    word = build_adapter(pipe, other, BuildConfig(seed=5), progress=False, call_kwargs=FOUR)
    made = []
    for first, second in ((adapter, word), (word, adapter)):
        load_unlearning_adapter(pipe, first, adapter_name="one")
        alone = clips(pipe, "a red dog moves")
        load_unlearning_adapter(pipe, second, adapter_name="two")
        made.append(clips(pipe, "a red dog moves"))
        unload_unlearning_adapters(pipe)
    assert torch.equal(*made)
    assert not torch.equal(alone, made[1])


def test_three_of_this_scope_stack_fuse_and_leave_every_bit(pipe, adapter):
    others = [build(pipe, concept=replace(CONCEPT, name=f"no-{seed}"), seed=seed) for seed in (3, 7)]
    base, before, steps = clips(pipe, "a dog moves"), weights(pipe), []
    for index, one in enumerate((adapter, *others)):
        load_unlearning_adapter(pipe, one, adapter_name=f"stacked-{index}")
        steps.append(clips(pipe, "a dog moves"))
    assert all((one - other).norm() > 1e-6 * base.norm() for one, other in zip([base, *steps], steps, strict=False))
    fuse_unlearning_adapters(pipe)
    fused = clips(pipe, "a dog moves")
    assert (fused - steps[-1]).norm() < 0.02 * (steps[-1] - base).norm() + 1e-5 * base.norm()
    unfuse_unlearning_adapters(pipe)
    assert torch.equal(clips(pipe, "a dog moves"), steps[-1])
    unload_unlearning_adapters(pipe)
    assert torch.equal(clips(pipe, "a dog moves"), base)
    assert all(torch.equal(value, before[name]) for name, value in weights(pipe).items())


def test_a_file_keeps_every_bit(pipe, adapter, tmp_path):
    loaded = load_adapter(adapter.save_pretrained(tmp_path))
    assert loaded.info == adapter.info and loaded.additive == adapter.additive and loaded.gains == adapter.gains
    for site, direction in adapter.directions.items():
        assert torch.equal(loaded.directions[site].read, direction.read)
        assert torch.equal(loaded.directions[site].write, direction.write)


def test_each_expert_gets_directions_from_its_own_noise_levels():
    pipe = planted_pipeline(two_denoisers=True)
    adapter = build(pipe, {**FOUR, "num_inference_steps": 8})
    components = {site.split(".")[0] for site in adapter.additive}
    assert components == {"transformer", "transformer_2"}
    one, two = (adapter.directions[f"{name}.blocks.0.attn1.to_q"].read for name in sorted(components))
    assert not torch.equal(one, two)


def test_pipelines_that_start_from_a_picture_and_joint_blocks_are_built():
    for pipe, call in ((tiny_wan_image_pipeline(), FOUR), (make_cogvideox(), {**SIZE, "num_inference_steps": 4})):
        adapter = build(pipe, call)
        assert set(adapter.additive) == {site.name for site in find_video_sites(pipe)}


def test_blocks_and_their_strengths_hold_at_video_tokens(pipe):
    adapter = build(pipe, blocks=(1,), block_strengths={1: 0.5})
    assert {site.split(".")[2] for site in adapter.sites} == {"1"}
    for site in adapter.additive:
        assert adapter.strength_at(site) == pytest.approx(0.5)


def test_clips_that_do_not_show_the_concept_are_refused():
    pipe = planted_pipeline()
    with torch.no_grad():
        for block in pipe.transformer.blocks:  # the prompt reaches the video no more
            block.attn2.to_out[0].weight.zero_()
            block.attn2.to_out[0].bias.zero_()
    with pytest.raises(ConceptError, match="The clips of both sides of all 5 pairs are the same"):
        build(pipe)


def test_one_step_shows_no_clip_to_any_layer_and_is_refused(pipe):
    with pytest.raises(ConceptError, match="as with one step.* Pass a larger num_inference_steps in call_kwargs"):
        build(pipe, {**CALL, "num_inference_steps": 1})


def test_words_without_spaces_are_exchanged_within_their_scene():
    pairs = [Pair("一只红色的猫在走", "一只蓝色的猫在走"), Pair("一只红色的狗跑", "一只绿色的狗跑")]
    assert safe_prompts(pairs) == [["一只蓝色的猫在走", "一只绿色的猫在走"], ["一只绿色的狗跑", "一只蓝色的狗跑"]]


def test_a_build_beside_another_adapter_is_refused(pipe, adapter):
    load_unlearning_adapter(pipe, adapter, adapter_name="no-red")
    with pytest.raises(DenoiserError, match="made by the base, but the unlearning adapter 'no-red' edits transformer"):
        build(pipe)
    unload_unlearning_adapters(pipe)
    assert build(pipe).sites == adapter.sites


def test_an_unknown_scope_is_refused():
    with pytest.raises(ConfigError, match="Expected `scope` to be one of word, concept, but got 'scene'"):
        BuildConfig(scope="scene")


@pytest.mark.parametrize(
    ("unsafe", "safe", "shared"),
    [
        ("a red dog runs", "a blue dog runs", "a dog runs"),
        ("a ball moves to the left", "a ball moves up", "a ball moves"),
        ("a photo of a naked man", "a photo of a man", "a photo of a man"),
        ("red", "blue", ""),
    ],
)
def test_the_words_that_both_sides_say(unsafe, safe, shared):
    assert shared_words(unsafe, safe) == shared


RED = Pair("a red dog runs", "a blue dog runs")
CAT = Pair("there is a scarlet, small cat", "there is a dark green, small cat")
BALL = Pair("a ball that is red rolls", "a ball that is yellow rolls")


def test_each_pair_gets_what_others_show_in_the_place_of_the_concept():
    assert safe_prompts([RED, CAT, BALL, Pair("the red car", "the white car")]) == [
        ["a blue dog runs", "a dark green dog runs", "a yellow dog runs"],
        ["there is a dark green, small cat", "there is a yellow, small cat", "there is a white, small cat"],
        ["a ball that is yellow rolls", "a ball that is white rolls", "a ball that is blue rolls"],
        ["the white car", "the blue car", "the dark green car"],
    ]


@pytest.mark.parametrize(
    "other",
    [
        Pair("a red hat on a red dog", "a blue hat on a green dog"),  # two places
        Pair("a scarlet cat", "a blue cat"),  # the same again
        Pair("a cat in the woods with a red hat, at night", "a cat in the woods, at night"),  # words are left out
        Pair("a red cat", "a green cat", unsafe_image="one.png", safe_image="other.png"),
    ],
)
def test_a_pair_has_its_own_safe_prompt_alone_where_none_can_be_exchanged(other):
    assert safe_prompts([RED, other]) == [[RED.safe], [other.safe]]
    assert safe_prompts([RED]) == [[RED.safe]]


def test_all_pairs_get_as_many_safe_prompts_as_the_one_with_the_fewest():
    assert [len(found) for found in safe_prompts([RED, CAT, Pair("a scarlet car", "a blue car")])] == [2, 2, 2]


def test_the_nearest_safe_clip_is_the_counterpart_unless_it_may_show_the_concept_still():
    unsafe = torch.zeros(1, 2, 3)
    clips = torch.stack([unsafe + distance for distance in (0.0, 3.0, 2.0, 4.0)])
    assert nearest_first(clips)[:, 0, 0, 0].tolist() == [0.0, 2.0, 3.0, 4.0]
    clips = torch.stack([unsafe + distance for distance in (0.0, 3.0, 1.0, 4.0)])
    assert nearest_first(clips)[:, 0, 0, 0].tolist() == [0.0, 3.0, 1.0, 4.0]
    assert torch.equal(nearest_first(clips[:2]), clips[:2])


def test_further_safe_clips_of_a_scene_must_stay(pipe):
    site = find_video_sites(pipe)[0]
    moments, weight = VideoMoments(pipe, [site]), 0.5
    features = pipe.transformer.config.num_attention_heads * pipe.transformer.config.attention_head_dim
    tokens = torch.randn(3 * 4, 5, features, generator=torch.Generator().manual_seed(0))
    moments._add(site.name, tokens, (3, 4), weight)
    sums, scenes = moments.sums[site.name], tokens.unflatten(0, (3, 4)).double()

    def gram(rows: Tensor, others: Tensor) -> Tensor:
        return weight * torch.einsum("stf,stg->fg", rows, others)

    unsafe, safe = scenes[:, 0], scenes[:, 1]
    assert torch.allclose(sums.shown, gram(unsafe, unsafe))
    assert torch.allclose(sums.cross, gram(unsafe - safe, unsafe))
    assert torch.allclose(sums.kept, sum(gram(scenes[:, copy], scenes[:, copy]) for copy in (1, 2, 3)))


def test_clips_take_a_third_of_the_steps_and_passes_a_few(pipe):
    assert rough(pipe, {"num_inference_steps": 30})["num_inference_steps"] == 10
    assert rough(pipe, {"num_inference_steps": 3})["num_inference_steps"] == 3
    assert rough(pipe, None)["num_inference_steps"] == 16
    assert few_levels(pipe, {"num_inference_steps": 30})["num_inference_steps"] == 7
    schedule = {"sigmas": [1.0, 0.5]}
    assert rough(pipe, schedule) == few_levels(pipe, schedule) == schedule


def test_of_a_unet_a_warning_says_that_convolutions_draw(pipe):
    (text,) = scope_warnings(make_zeroscope(), "red")
    assert "TextToVideoSDPipeline are drawn by convolutions" in text
    assert text.endswith("Measure 'red', or build with scope=\"word\".")
    assert list(scope_warnings(pipe, "red")) == []


def test_a_build_gives_the_warnings_of_its_scope(pipe, monkeypatch):
    monkeypatch.setattr("unlearning_adapters.building.build.scope_warnings", lambda _, name: [f"weak on {name}"])
    with pytest.warns(UserWarning, match=f"weak on {CONCEPT.name}"):
        build(pipe)
