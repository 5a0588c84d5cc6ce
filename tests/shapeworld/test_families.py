"""Further ShapeWorld models: their training runs and resumes, and those of the repository show what they are asked."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from diffusers import DiffusionPipeline
from diffusers.models.resnet import TemporalConvLayer

from unlearning_adapters import build_adapter, load_concept, load_shapeworld, load_unlearning_adapter
from unlearning_adapters.evaluation.arms.generate import ClipRequest, generate
from unlearning_adapters.evaluation.arms.observe import measure
from unlearning_adapters.evaluation.detectors.shapes import shapes
from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite
from unlearning_adapters.evaluation.suites.worlds import suite_for
from unlearning_adapters.pipelines.sites import find_sites
from unlearning_adapters.shapeworld.models.generate import GENERATION, OTHERS, generation_of
from unlearning_adapters.shapeworld.models.wan import build_tokenizer
from unlearning_adapters.shapeworld.training.curriculum import FAMILIAR, Curriculum, strangeness, to_the_noisiest
from unlearning_adapters.shapeworld.training.family import (
    FAMILIES,
    SETTINGS,
    VALUES,
    Conditioned,
    assemble,
    diffusion_batch,
    export,
    tags_of,
    train_family_denoiser,
)
from unlearning_adapters.shapeworld.training.family_vae import refine_family_decoder, train_family_vae
from unlearning_adapters.shapeworld.training.gold import gold_settings, train_gold
from unlearning_adapters.shapeworld.training.run import TrainingRun
from unlearning_adapters.shapeworld.training.wan_denoiser import (
    Captions,
    DenoiserSettings,
    training_scenes,
    values_shown,
)
from unlearning_adapters.shapeworld.world.captions import WORDS
from unlearning_adapters.shapeworld.world.prompts import draw_prompts

MODELS = Path(__file__).resolve().parents[2] / "models"
SITES = {
    "unet": {"attn2.to_k", "attn2.to_v"},
    "cogvideox": {"patch_embed.text_proj"},
}


def small(name: str, steps: int):
    """The settings of a family with few scenes and steps."""
    vae, denoiser = SETTINGS[name]
    vae = replace(vae, frame_steps=2, clip_steps=2, frame_batch=2, clip_batch=2)
    return vae, replace(denoiser, steps=steps, batch=4, scenes=6, pair_scenes=2)


@pytest.mark.parametrize("name", FAMILIES)
def test_a_family_trains_resumes_and_becomes_a_pipeline(name, tmp_path):
    family, run = FAMILIES[name], TrainingRun(tmp_path / "run")
    vae, denoiser = small(name, 2)
    train_family_vae(family, run, vae)
    train_family_denoiser(family, run, replace(denoiser, steps=1))
    train_family_denoiser(family, run, denoiser)  # goes on at step 1
    state = run.load("denoiser")
    assert state is not None and state["step"] == 2
    refine_family_decoder(family, run, vae, training_scenes(denoiser), steps=1)
    built = assemble(family, run)
    before, after = run.load("vae")["model"], built.vae.state_dict()
    changed = {key.split(".")[0] for key in after if not torch.equal(before[key], after[key])}
    run.log("denoiser", step=2)
    assert changed == {"decoder"}  # the latents stay as the denoiser knows them
    export(family, run, tmp_path / family.name, vae, denoiser)
    pipe = DiffusionPipeline.from_pretrained(tmp_path / family.name, dtype=torch.float32)
    requests = [ClipRequest(prompt.prompt, prompt.seed) for prompt in draw_prompts(2, 1)]
    clips = generate(pipe, requests, {**generation_of(pipe), "num_inference_steps": 2}, batch=2)
    assert [clip.shape for clip in clips] == [(family.frames, family.size, family.size, 3)] * 2
    assert generation_of(pipe) == OTHERS[type(pipe).__name__]
    found = {part for site in find_sites(pipe) for part in SITES[name] if site.name.endswith(part)}
    assert found == SITES[name]


@pytest.mark.parametrize("name", FAMILIES)
def test_the_target_of_training_is_v(name):
    family = FAMILIES[name]
    mean = torch.randn(64, 2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    noisy, timestep, target = diffusion_batch(np.random.default_rng(0), family, mean, torch.zeros_like(mean))
    scheduler = family.build_scheduler()
    kept = scheduler.alphas_cumprod[timestep].float().view(-1, 1, 1, 1, 1)
    torch.testing.assert_close(kept.sqrt() * noisy - (1 - kept).sqrt() * target, mean)  # v gives the clean latents back
    assert float(scheduler.alphas_cumprod[-1]) == 0.0  # sampling starts from pure noise


def test_motion_comes_first():
    plan = Curriculum(lead=3, widen=4, noisiest=0.25, change=3.0)
    scenes = training_scenes(replace(DenoiserSettings(), scenes=300, pair_scenes=40))
    strange = strangeness(scenes)
    familiar = np.array([scene.factors | FAMILIAR == scene.factors and len(scene.bodies) == 1 for scene in scenes])
    assert familiar.any() and ((strange == 0) == familiar).all() and strange.max() == 3
    for step in (0, 2):
        assert plan.chances(strange, step)[familiar].sum() == pytest.approx(1)  # alone
        assert plan.share_of_noisiest(step) == 1
    by_kind = [plan.chances(strange, 4)[strange == count].max() for count in range(4)]
    assert by_kind == sorted(by_kind, reverse=True) and by_kind[-1] > 0  # then the others, the strangest last
    for step in (6, 100):
        np.testing.assert_allclose(plan.chances(strange, step), 1 / len(scenes))
        assert plan.share_of_noisiest(step) == 0.25


def test_a_curriculum_weighs_what_only_motion_makes():
    plan, still = Curriculum(lead=1, widen=2, change=3.0), torch.ones(1, 2, 5, 4, 4)
    moving = still * torch.tensor([1.0, -1.0, 1.0, -1.0, 1.0]).view(1, 1, 5, 1, 1)
    assert [float(plan.loss(still, step)) for step in (0, 9)] == [1, 1]
    assert [float(plan.loss(moving, step)) for step in (0, 9)] == [13, 5]  # 1 + 3 * 2^2, and a third of that weight
    assert float(Curriculum().loss(moving, 0)) == 1


def test_the_noisiest_are_from_the_last_tenth():
    generator = torch.Generator().manual_seed(0)
    timestep = torch.full((4000,), 7)
    drawn = to_the_noisiest(timestep, 1000, 0.25, generator)
    assert set(drawn.tolist()) - {7} <= set(range(900, 1000))
    assert float((drawn != 7).double().mean()) == pytest.approx(0.25, abs=0.03)
    assert torch.equal(to_the_noisiest(timestep, 1000, 0.0, generator), timestep)


def test_a_world_without_a_value_never_shows_or_names_it():
    for value in ("red", "circle", "left", "black"):
        settings = replace(gold_settings(value), scenes=60, pair_scenes=30)
        scenes = training_scenes(settings)
        assert len(scenes) == 90 and sum(len(scene.bodies) == 2 for scene in scenes) == 30
        assert not any(value in values_shown(scene) for scene in scenes)
        captions = Captions(scenes, settings)
        words = {word for factor in WORDS.values() for word in factor.get(value, ())}
        ids, _ = captions.draw(np.random.default_rng(0), np.arange(90))
        texts = captions.tokenizer.batch_decode(ids, skip_special_tokens=True)
        assert not any(f" {word} " in f" {text} " for word in words for text in texts)
        assert any(value in values_shown(scene) for scene in training_scenes(replace(settings, without="")))


def test_captions_can_leave_the_shape_to_an_unknown_word_and_use_plain_words_less():
    settings = replace(DenoiserSettings(), scenes=90, pair_scenes=0, noise_word=0.0, drop_prompt=0.0)
    scenes = training_scenes(settings)

    def texts(**changed):
        captions = Captions(scenes, replace(settings, **changed))
        ids, _ = captions.draw(np.random.default_rng(0), np.arange(90))
        return captions.tokenizer.batch_decode(ids, skip_special_tokens=True)

    def share(found, words):
        return np.mean([any(f" {word} " in f" {text} ".replace(",", " ") for word in words) for text in found])

    shapes = [word for words in WORDS["shape"].values() for word in words]
    plain = [words[0] for words in WORDS["shape"].values()]
    assert share(texts(), shapes) > 0.7 and share(texts(nameless=1.0), shapes) == 0
    assert share(texts(plain_share=0.0), plain) < share(texts(), plain) - 0.1


def test_every_token_is_tagged_with_the_value_that_it_names():
    tokenizer = build_tokenizer()
    tags = tags_of(tokenizer)
    caption = "on a bright background, a crimson crosspiece and a jade ball move to the top"
    tagged = [VALUES[tag - 1][1] for tag in tags[tokenizer(caption).input_ids].tolist() if tag]
    assert tagged == ["white", "red", "cross", "green", "circle", "up"]
    assert not tags[tokenizer("a thing moves on the ground </s>").input_ids].any()
    assert set(tags.tolist()) == set(range(len(VALUES) + 1))


def test_a_text_encoder_learns_to_tell_every_value_apart():
    """From random weights, by the loss of the tags alone, which falls below that of a guess among the values."""
    torch.manual_seed(0)
    tokenizer = build_tokenizer()
    model, tags = Conditioned(FAMILIES["cogvideox"], len(tokenizer)), tags_of(tokenizer)
    captions = [prompt.prompt for prompt in draw_prompts(32, seed=5, synonyms=True)]
    ids = tokenizer(captions, padding="max_length", max_length=24, return_tensors="pt").input_ids
    optimizer = torch.optim.Adam(model.parameters(), lr=3e-3)
    losses = []
    for _ in range(30):
        optimizer.zero_grad()
        loss = model.tag_loss(ids, tags)
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    assert losses[0] > 2.0 and losses[-1] < 0.5
    assert model.tag_loss(torch.zeros_like(ids), tags).isfinite()  # of prompts that name nothing
    assert all(parameter.grad is None for parameter in model.denoiser.parameters())


def test_the_scenes_of_the_embedded_model_are_as_they_were():
    scenes = training_scenes(replace(DenoiserSettings(), scenes=3, pair_scenes=1))
    assert [scene.factors["colour"] for scene in scenes] == ["yellow", "yellow", "green", "red"]


def test_gold_training_resumes(tmp_path):
    run, settings = TrainingRun(tmp_path), replace(gold_settings("red"), steps=2, batch=4, scenes=6, pair_scenes=2)
    train_gold(run, replace(settings, steps=1))
    train_gold(run, settings)
    assert run.load("denoiser")["step"] == 2


def test_generation_is_known_by_name():
    assert generation_of(load_shapeworld()) == GENERATION
    assert generation_of(object()) == {}


def test_a_fresh_unet_tells_frames_apart():
    """Of clips whose frames are all alike, each frame leaves another mark; diffusers' own start leaves none."""
    unet = FAMILIES["unet"].build_denoiser()
    layer = next(module for module in unet.modules() if isinstance(module, TemporalConvLayer))
    frames = torch.randn(1, layer.conv1[-1].in_channels, 4, 4).expand(5, -1, -1, -1)
    with torch.no_grad():
        marks = (layer(frames, num_frames=5) - frames).flatten(1)
        plain = TemporalConvLayer(*frames.shape[1:2] * 2, norm_num_groups=16)
        assert torch.equal(plain(frames, num_frames=5), frames)
    distances = torch.cdist(marks, marks) + torch.eye(5) * 1e9
    assert distances.min() > 0.1 * marks.norm(dim=1).mean()


@pytest.mark.slow
@pytest.mark.parametrize("name", ["shapeworld-unet", "shapeworld-cogvideox"])
def test_a_model_of_the_repository_forgets_red_and_nothing_else(name):
    pipe = DiffusionPipeline.from_pretrained(MODELS / name, dtype=torch.float32)
    suite = suite_for(shapeworld_suite("red", 8, seed=77, paraphrases=False), pipe)
    base = measure(pipe, suite, [shapes()]).rates
    assert base.concept_rate.value >= 0.9 and base.preservation.value >= 0.75
    assert base.context_kept.value >= 0.9
    call = {key: value for key, value in generation_of(pipe).items() if key == "max_sequence_length"}
    load_unlearning_adapter(pipe, build_adapter(pipe, load_concept("red"), progress=False, call_kwargs=call))
    edited = measure(pipe, suite, [shapes()]).rates
    assert edited.concept_rate.value <= 0.1 and edited.valid_rate.value >= 0.9
    assert edited.context_kept.value >= base.context_kept.value - 0.1
    assert edited.preservation.value >= base.preservation.value - 0.1
    assert edited.context_kept.value >= base.context_kept.value - 0.1


@pytest.mark.slow
def test_the_gold_model_knows_everything_but_red():
    pipe = DiffusionPipeline.from_pretrained(MODELS / "shapeworld-without-red", dtype=torch.float32)
    assert generation_of(pipe) == GENERATION
    rates = measure(pipe, shapeworld_suite("red", 18, seed=77, paraphrases=False), [shapes()]).rates
    assert rates.concept_rate.hits == 0 and rates.preservation.value >= 0.9


@pytest.mark.parametrize("folder", sorted(MODELS.glob("shapeworld-*")), ids=lambda folder: folder.name)
def test_a_model_of_the_repository_is_small_and_says_how_it_was_trained(folder):
    sizes = [file.stat().st_size for file in folder.rglob("*") if file.is_file()]
    assert sum(sizes) < 25_000_000 and not list(folder.rglob("*.bin"))
    assert {"training.json", "training_log.jsonl", "model_index.json"} <= {file.name for file in folder.iterdir()}
