"""Rounds against soft prompts: what acts while they are learned, what is read of them, and what a build makes of it."""

from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext

import pytest
import torch
from cases.t5 import SIZE, make_cogvideox
from cases.unet import make_zeroscope
from planted_words import CONCEPT, planted_pipeline
from tiny import CALL, tiny_wan_image_pipeline, tiny_wan_pipeline
from torch import Tensor
from traces import count_hooks, plain_state

from planted import bits, output
from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.building.video import soft_prompts
from unlearning_adapters.building.video.soft_prompts import CLIPS, VECTORS, edited, soft_scenes
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConfigError, DenoiserError
from unlearning_adapters.pipelines.running.clean_latents import clean_latents
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.pipelines.running.text_embeds import encode_texts
from unlearning_adapters.runtime.verbs import load_unlearning_adapter, unload_unlearning_adapters

FOUR = {**CALL, "num_inference_steps": 4}
TEXTS = ("a ball", "a tall tree")


def build(pipe, **settings) -> UnlearningAdapter:
    config = BuildConfig(scope="concept", **settings)
    return build_adapter(pipe, CONCEPT, config, progress=False, call_kwargs=FOUR)


def edit_of(adapter: UnlearningAdapter) -> dict[str, Direction]:
    return {
        site: Direction(one.read, adapter.strength * one.gain * one.write, additive=True)
        for site, one in adapter.directions.items()
    }


@pytest.fixture(scope="module")
def pipe():
    return planted_pipeline()


@pytest.fixture(scope="module")
def adapter(pipe):
    return build(pipe)


@pytest.fixture
def few_steps(monkeypatch):
    monkeypatch.setattr(soft_prompts, "STEPS", 3)


def test_the_edit_acts_as_the_attached_adapter_and_leaves_no_trace(pipe, adapter):
    before, hooks, plain = output(pipe), count_hooks(pipe), plain_state(pipe)
    with edited(pipe, edit_of(adapter)):
        acting = output(pipe)
    load_unlearning_adapter(pipe, adapter)
    attached = output(pipe)
    unload_unlearning_adapters(pipe)
    assert not torch.allclose(acting, before, atol=1e-3)
    assert torch.allclose(acting, attached, atol=1e-5)
    assert torch.equal(output(pipe), before) and count_hooks(pipe) == hooks and plain_state(pipe) == plain


def test_text_embeddings_make_the_clips_of_their_prompts(pipe):
    run = PartialRun(pipe, FOUR, any_video=False, own_guidance=True)
    by_text = clean_latents(run, TEXTS, [1, 2])
    assert torch.equal(clean_latents(run, encode_texts(pipe, TEXTS, FOUR), [1, 2]), by_text)


def test_scenes_are_clips_with_and_without_the_soft_prompt_and_those_without_read_with_it(pipe, adapter, few_steps):
    run = PartialRun(pipe, FOUR, any_video=False, own_guidance=True)
    shown = clean_latents(run, ["a red ball", "a tall red tree"], [1, 2])
    scenes = soft_scenes(pipe, shown, TEXTS, edit_of(adapter), 7, FOUR, batch=3)
    assert scenes.latents.shape[:2] == (2 * CLIPS, 2) and isinstance(scenes.prompts, Tensor)
    with_it, without = scenes.latents[:CLIPS].unbind(1)
    assert not torch.equal(with_it, without)
    assert torch.equal(scenes.latents[CLIPS:, 0], without) and torch.equal(scenes.latents[CLIPS:, 1], without)
    soft, plain = scenes.prompts.unbind(1)
    words = encode_texts(pipe, TEXTS, FOUR)
    assert torch.equal(plain[0, : words.shape[1]], words[0]) and not plain[0, words.shape[1] :].any()
    assert torch.equal(soft[:, :-VECTORS], plain[:, :-VECTORS])
    assert torch.equal(soft[0, -VECTORS:], soft[-1, -VECTORS:])  # one soft prompt behind all
    with edited(pipe, edit_of(adapter)):
        made = clean_latents(PartialRun(pipe, FOUR, any_video=False, own_guidance=True), plain[:2], [2007, 2008])
    assert torch.allclose(made, without[:2], atol=1e-5)


def test_a_build_reads_what_soft_prompts_show_and_leaves_no_trace(pipe, adapter, few_steps):
    weights = {name: bits(value) for name, value in pipe.transformer.state_dict().items()}
    hooks, plain, random_state = count_hooks(pipe), plain_state(pipe), torch.get_rng_state()
    gradients = [parameter.requires_grad for parameter in pipe.transformer.parameters()]
    with torch.no_grad():  # as much code of users has it
        found = build(pipe, soft_prompts=1)
    assert found.info.settings["soft_prompts"] == 1 and found.sites == adapter.sites
    video = set(adapter.additive)
    for site in adapter.sites:
        same = torch.equal(found.directions[site].read, adapter.directions[site].read)
        assert same == (site not in video)
    assert all(torch.equal(bits(value), weights[name]) for name, value in pipe.transformer.state_dict().items())
    assert count_hooks(pipe) == hooks and plain_state(pipe) == plain
    assert torch.equal(torch.get_rng_state(), random_state)
    assert [parameter.requires_grad for parameter in pipe.transformer.parameters()] == gradients
    assert all(parameter.grad is None for parameter in pipe.transformer.parameters())


@pytest.mark.slow
@pytest.mark.parametrize(
    ("make", "call"),
    [
        (make_cogvideox, {**SIZE, "num_inference_steps": 4}),
        (make_zeroscope, {"height": 32, "width": 32, "num_frames": 2, "num_inference_steps": 4}),
    ],
)
def test_joint_blocks_and_a_unet_that_steps_frames_are_built(make, call, few_steps):
    with pytest.warns() if make is make_zeroscope else nullcontext():
        adapter = build_adapter(
            make(), CONCEPT, BuildConfig(scope="concept", soft_prompts=1, pairs=2), progress=False, call_kwargs=call
        )
    assert adapter.additive


def test_a_denoiser_that_reads_a_picture_beside_the_latents_is_refused(few_steps):
    with pytest.raises(DenoiserError, match="WanImageToVideoPipeline gives its denoiser latents of shape"):
        build(tiny_wan_image_pipeline(), soft_prompts=1)


def test_checkpoints_are_computed_again_with_the_edit(pipe, adapter, few_steps):
    """On a GPU another thread of autograd computes them; here one of the test does."""
    pipe.transformer.enable_gradient_checkpointing()
    try:
        with edited(pipe, edit_of(adapter)), ThreadPoolExecutor(1) as other:
            embeds = encode_texts(pipe, TEXTS, FOUR).detach().requires_grad_()
            latents = torch.zeros(2, 16, 2, 4, 4)
            loss = pipe.transformer(latents, torch.tensor([500, 500]), embeds, return_dict=False)[0].square().sum()
            (found,) = other.submit(torch.autograd.grad, loss, [embeds]).result()
        assert found.abs().sum() > 0
    finally:
        pipe.transformer.disable_gradient_checkpointing()


def test_the_edit_that_soft_prompts_attack_is_the_one_that_is_built(pipe, few_steps, monkeypatch):
    seen = []

    def scenes(_pipe, _shown, _texts, edit, *_rest):
        seen.append(edit)
        raise KeyboardInterrupt

    monkeypatch.setattr("unlearning_adapters.building.video.counterfactuals.soft_scenes", scenes)
    settings = {"strength": 0.5, "block_strengths": {1: 0.5}, "blocks": (0, 1)}
    with pytest.raises(KeyboardInterrupt):
        build(pipe, soft_prompts=1, **settings)
    built = edit_of(build(pipe, **settings))
    assert seen[0].keys() == built.keys()
    for site, one in built.items():
        assert seen[0][site].write.norm() / one.write.norm() == pytest.approx(1, abs=0.5)  # another bound, same factors
    block = "transformer.blocks.1.attn2.to_k"
    assert torch.allclose(seen[0][block].write, built[block].write, atol=1e-6)


def test_a_trained_denoiser_draws_for_its_dropout_without_a_trace(few_steps):
    pipe = planted_pipeline()
    pipe.transformer.train()
    for block in pipe.transformer.blocks:
        block.ffn.net[1].p = 0.3
    before = torch.get_rng_state()
    build(pipe, soft_prompts=1)
    assert torch.equal(torch.get_rng_state(), before)


def test_without_gradients_or_room_it_is_refused_before_the_work(pipe, monkeypatch):
    monkeypatch.setattr("unlearning_adapters.building.video.counterfactuals.find_scenes", None)
    with torch.inference_mode(), pytest.raises(DenoiserError, match="outside of torch.inference_mode"):
        build(pipe, soft_prompts=1)
    with pytest.raises(DenoiserError, match="which leaves no room for 8 learned ones"):
        build_adapter(
            pipe,
            CONCEPT,
            BuildConfig(scope="concept", soft_prompts=1),
            progress=False,
            call_kwargs={**FOUR, "max_sequence_length": 10},
        )


def test_what_no_soft_prompt_can_be_learned_for_is_refused_before_the_work(monkeypatch):
    pipe = tiny_wan_pipeline(two_denoisers=True)
    monkeypatch.setattr("unlearning_adapters.building.video.counterfactuals.find_scenes", None)
    with pytest.raises(DenoiserError, match="several denoisers"):
        build(pipe, soft_prompts=1)


def test_soft_prompts_go_with_the_scope_concept_alone():
    with pytest.raises(ConfigError, match="erased with scope=\"concept\" alone, but the scope is 'word'"):
        BuildConfig(soft_prompts=1)
    with pytest.raises(ConfigError, match="Expected `soft_prompts` to be an integer from 0 to 32, but got -1"):
        BuildConfig(scope="concept", soft_prompts=-1)
    config = BuildConfig(scope="concept", soft_prompts=2)
    assert BuildConfig.from_dict(config.to_dict()) == config
