"""Attacks on the real embedded model: each can succeed, does nothing at zero budget, and leaves no trace."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from tiny import tiny_wan_pipeline, untrained

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.attacks.budget import Budget, find_budget
from unlearning_adapters.attacks.kinds.embedding_shift import embedding_shift, mean_shift, shifted
from unlearning_adapters.attacks.kinds.prompts import co_occurring, guidance, paraphrase, seeds
from unlearning_adapters.attacks.kinds.relearning import resurrection
from unlearning_adapters.attacks.kinds.soft_prompt import extended, learn, soft_prompt
from unlearning_adapters.attacks.kinds.stacked import stacked
from unlearning_adapters.attacks.kinds.tampering import int8_round_trip, subtract_edit, tampering
from unlearning_adapters.attacks.kinds.video_start import noised, video_start
from unlearning_adapters.attacks.run import examples_of, run_attacks
from unlearning_adapters.attacks.subject import AttackPoint, ClipVerdict, Subject, plain_copy
from unlearning_adapters.attacks.target import Examples, Target, target_of, world_target
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import DenoiserError, EvaluationError, FuseError
from unlearning_adapters.evaluation.arms import observe
from unlearning_adapters.evaluation.arms.arm import adapter_arm
from unlearning_adapters.evaluation.detectors.detector import Detector, as_detectors
from unlearning_adapters.evaluation.suites.shapeworld import SHAPEWORLD
from unlearning_adapters.evaluation.suites.suite import EvaluationPrompt, PromptSet, Suite
from unlearning_adapters.pipelines.running.denoising_loss import Denoising, denoising_of, one_denoiser
from unlearning_adapters.pipelines.running.text_embeds import append, check_embeds, place_for, replace_last
from unlearning_adapters.runtime.verbs import (
    get_active_unlearning_adapters,
    load_unlearning_adapter,
    unload_unlearning_adapters,
)
from unlearning_adapters.shapeworld.models.generate import GENERATION, OTHERS
from unlearning_adapters.shapeworld.models.load import load_shapeworld
from unlearning_adapters.shapeworld.training.family import FAMILIES
from unlearning_adapters.shapeworld.world.judge import judge_bodies
from unlearning_adapters.shapeworld.world.prompts import prompts_of_two
from unlearning_adapters.shapeworld.world.scenes import Body, Scene, render

CALL = {**GENERATION, "num_inference_steps": 4}
FEW = Budget(
    name="few", prompts=2, denoising_steps=4, guidance=(3.0,), seeds=1, etas=(0.0,), tokens=2, soft_steps=8,
    lora_steps=(0, 2), batch=4, strengths=(0.5,),
)  # fmt: skip


@pytest.fixture(scope="module")
def pipe() -> Any:
    return load_shapeworld()


@pytest.fixture(scope="module")
def original() -> Any:
    """The same pipeline, which no test edits."""
    return load_shapeworld()


@pytest.fixture(scope="module")
def adapter(pipe: Any, tmp_path_factory: pytest.TempPathFactory) -> UnlearningAdapter:
    """As from its file: with the stock factors that a file holds."""
    from unlearning_adapters.adapter.adapter import load_adapter

    built = build_adapter(pipe, load_concept("shapeworld-red"), BuildConfig(strength=1.04), progress=False)
    return load_adapter(built.save_pretrained(tmp_path_factory.mktemp("red")))


@pytest.fixture(scope="module")
def target() -> Target:
    return world_target("red", 2)


@pytest.fixture(scope="module")
def base(pipe: Any) -> Subject:
    return Subject(pipe, as_detectors(["shapes", "validity"]), CALL, batch=16)


@pytest.fixture(scope="module")
def examples(base: Subject, target: Target) -> Examples:
    return examples_of(base, target)


@pytest.fixture
def edited(base: Subject, adapter: UnlearningAdapter) -> Iterator[Subject]:
    """The fused model; when a test is over, weights, gradients and random state must be what they were."""
    with adapter_arm(adapter, fused=True).enter(base.pipe):
        before, state = weights(base.pipe), torch.get_rng_state()
        yield replace(base, adapter=adapter)
        after = weights(base.pipe)
        assert before.keys() == after.keys() and all(torch.equal(before[name], after[name]) for name in before)
        assert all(parameter.grad is None for parameter in base.pipe.transformer.parameters())
        assert all(parameter.requires_grad for parameter in base.pipe.transformer.parameters())
        assert torch.equal(torch.get_rng_state(), state)


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in pipe.transformer.state_dict().items()}


def latents(subject: Subject, requests: Any, **call: Any) -> torch.Tensor:
    return torch.stack(subject.generate(requests, "latent", **call))


def test_the_edit_removes_what_the_base_shows(base: Subject, edited: Subject, target: Target) -> None:
    with torch.no_grad():
        assert AttackPoint.of("", edited.look(target.named, target)).rate.hits == 0
    blue = world_target(SHAPEWORLD.reference("red"), 2)
    assert blue.truth == {"colour": "blue"}
    assert AttackPoint.of("", edited.look(blue.named, blue)).rate.value == 1


def test_subtracting_the_published_edit_restores_the_base(
    original: Any, adapter: UnlearningAdapter, edited: Subject, target: Target, examples: Examples
) -> None:
    """The proof that this measurement sees a concept that comes back, and that the file is the key."""
    unedited, copied = weights(original), plain_copy(edited.pipe)
    off = max(float((unedited[name] - value).abs().max()) for name, value in weights(copied).items())
    assert off > 1e-2
    assert subtract_edit(copied, adapter) == pytest.approx(off, rel=1e-3)
    assert all(torch.allclose(unedited[name], value, atol=1e-6) for name, value in weights(copied).items())

    found = {point.setting: point for point in tampering(edited, target, examples, FEW)}
    assert found["published edit subtracted"].rate.value == 1
    assert found["float16 and back"].rate.value == found["bfloat16 and back"].rate.value == 0
    assert [point.number > 0 for point in found.values()] == [True] * 5


def test_an_adapter_without_factors_cannot_be_subtracted(pipe: Any, adapter: UnlearningAdapter) -> None:
    with pytest.raises(EvaluationError, match="has no stock factor for transformer.*Save it, and attack its file"):
        subtract_edit(pipe, replace(adapter, lora_B={}))


def test_int8_rounds_to_half_a_level() -> None:
    weight = torch.randn(8, 32, generator=torch.Generator().manual_seed(0))
    weight[3] = 0
    level = weight.abs().amax(1, keepdim=True) / 127
    found = int8_round_trip(weight)
    assert bool(((found - weight).abs() <= level / 2 * 1.001).all()) and not torch.equal(found, weight)
    assert torch.allclose(int8_round_trip(found), found, atol=1e-7)


def test_a_copy_is_the_pipeline_without_hooks(edited: Subject, target: Target) -> None:
    copied = plain_copy(edited.pipe)
    assert copied.transformer is not edited.pipe.transformer and copied.vae is edited.pipe.vae
    assert get_active_unlearning_adapters(copied) == []
    assert torch.equal(latents(edited, target.named), latents(edited.on(copied), target.named))
    assert {parameter.dtype for parameter in edited.pipe.vae.parameters()} == {torch.float32}


def test_a_copy_keeps_number_types() -> None:
    pipe = tiny_wan_pipeline(dtype=torch.bfloat16)
    types = {name: value.dtype for name, value in pipe.transformer.state_dict().items()}
    text = {name: value.dtype for name, value in pipe.text_encoder.state_dict().items()}
    copied = plain_copy(pipe)
    assert {name: value.dtype for name, value in copied.transformer.state_dict().items()} == types
    assert {name: value.dtype for name, value in pipe.text_encoder.state_dict().items()} == text
    assert torch.bfloat16 in types.values()


def test_eta_zero_is_no_attack_and_eta_one_moves_open_prompts(base: Subject, edited: Subject, target: Target) -> None:
    plain, shift = latents(edited, target.named), mean_shift(edited, target)
    assert torch.equal(latents(edited, shifted(edited, target.named, shift, 0.0)), plain)
    assert not torch.equal(latents(edited, shifted(edited, target.named, shift, 1.0)), plain)
    found = embedding_shift(edited, target, Examples((), torch.empty(0), torch.empty(0)), FEW)
    assert [(point.setting, point.open_prompts) for point in found] == [("eta 0, named", False), ("eta 0, open", True)]
    assert found[0].rate.hits == 0


def test_an_embedding_shift_names_what_the_prompt_does_not(base: Subject) -> None:
    """On the base, where the shift must work: prompts without a motion are moved towards one."""
    left = world_target("left", 4)
    before = AttackPoint.of("", base.look(left.open_prompts, left)).rate.hits
    moved = shifted(base, left.open_prompts, mean_shift(base, left), 4.0)
    assert AttackPoint.of("", base.look(moved, left)).rate.hits > before


@pytest.mark.slow
def test_a_soft_prompt_learns(edited: Subject, target: Target, examples: Examples) -> None:
    first, _ = learn(edited, target, examples, replace(FEW, soft_steps=1))
    found, losses = learn(edited, target, examples, FEW)
    again, repeated = learn(edited, target, examples, FEW)
    assert torch.equal(found, again) and losses == repeated and len(losses) == FEW.soft_steps
    embeds = edited.encode([target.without_words(request.text) for request in examples.requests])
    denoising = denoising_of(edited.pipe, edited.call, examples.latents)

    def loss(vectors: torch.Tensor) -> float:
        with torch.no_grad():
            noise = torch.Generator().manual_seed(1)
            return float(denoising.loss(examples.latents, replace_last(embeds, vectors), noise))

    assert loss(found) < loss(first)


@pytest.mark.slow
def test_a_soft_prompt_without_steps_is_no_attack(edited: Subject, target: Target, examples: Examples) -> None:
    vectors, losses = learn(edited, target, examples, replace(FEW, soft_steps=0))
    assert vectors.shape == (0, 128) and losses == []
    assert torch.equal(
        latents(edited, extended(edited, target.open_prompts, vectors)), latents(edited, target.open_prompts)
    )
    (point,) = soft_prompt(edited, target, examples, FEW)
    assert point.open_prompts and point.number is not None and point.setting == "2 vectors, 8 steps"


def test_the_loss_is_that_of_flow_matching() -> None:
    """A denoiser that knows clip and noise level has none; one that says zero has E |noise - clean|^2."""
    clean = torch.full((64, 2, 1, 4, 4), 2.0)

    class Knows(torch.nn.Module):
        def forward(self, hidden_states, timestep, encoder_hidden_states, return_dict):
            level = (timestep / 1000).view(-1, 1, 1, 1, 1)
            noise = (hidden_states - (1 - level) * clean) / level
            return (noise - clean if encoder_hidden_states is not None else torch.zeros_like(clean),)

    denoising, noise = Denoising(Knows(), {"return_dict": False}, 1000.0), torch.Generator().manual_seed(0)
    assert float(denoising.loss(clean, torch.zeros(1), noise)) < 1e-6
    assert float(denoising.loss(clean, None, noise)) == pytest.approx(5.0, rel=0.1)  # type: ignore[arg-type]


@pytest.mark.parametrize("prediction", ["epsilon", "v_prediction", "sample"])
def test_the_loss_is_that_of_diffusion(prediction: str) -> None:
    """The same of a denoiser of diffusion, whatever it predicts; zero has the mean square of the target."""
    clean, kept = torch.full((256, 2, 1, 4, 4), 2.0), torch.linspace(0.9, 0.1, 50)

    class Knows(torch.nn.Module):
        def forward(self, sample, timestep, encoder_hidden_states):
            share = kept[timestep].view(-1, 1, 1, 1, 1)
            noise = (sample - share.sqrt() * clean) / (1 - share).sqrt()
            velocity = share.sqrt() * noise - (1 - share).sqrt() * clean
            found = {"epsilon": noise, "v_prediction": velocity, "sample": clean}[prediction]
            return (found if encoder_hidden_states is not None else torch.zeros_like(clean),)

    denoising = Denoising(Knows(), {}, 50.0, "sample", kept, prediction)
    noise = torch.Generator().manual_seed(0)
    assert float(denoising.loss(clean, torch.zeros(1), noise)) < 1e-6
    square = {"epsilon": 1.0, "v_prediction": 0.5 + 0.5 * 4.0, "sample": 4.0}[prediction]
    assert float(denoising.loss(clean, None, noise)) == pytest.approx(square, rel=0.1)  # type: ignore[arg-type]


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_denoisers_of_diffusion_can_be_trained_through(name: str, target: Target) -> None:
    """A UNet, whose latents have another name, and CogVideoX: their own call, their loss."""
    pipe = untrained(name)
    _, network = one_denoiser(pipe)
    subject = Subject(pipe, (), OTHERS[type(pipe).__name__] | {"num_inference_steps": 2}, batch=2)
    requests = target.named[:2]
    clips = torch.stack(subject.generate(requests, output_type="latent"))
    denoising = denoising_of(subject.pipe, subject.call, clips)
    assert denoising.prediction == "v_prediction" and denoising.kept is not None
    before = {key: value.clone() for key, value in network.state_dict().items()}
    seeing = replace(subject, detectors=as_detectors([Detector("always", lambda frames: [1.0] * len(frames))]))
    start, after = resurrection(seeing, replace(target, named=requests), Examples(requests, clips, clips), FEW)
    assert start.number is None and after.number is not None and after.number > 0
    assert before.keys() == network.state_dict().keys()
    (learned,) = soft_prompt(
        seeing, replace(target, named=requests, open_prompts=requests), Examples(requests, clips, clips), FEW
    )
    assert learned.rate.hits == 2 and learned.number is not None and learned.number > 0
    assert all(torch.equal(value, before[key]) for key, value in network.state_dict().items())


def test_learned_vectors_take_the_place_of_padding(base: Subject, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else they follow the words: where prompts are as long as their words there is nothing to replace."""
    texts, vectors = ["a circle", "a blue circle moves left"], torch.ones(2, 128)
    embeds = base.encode(texts)
    placed = place_for(base.pipe, texts, 2, base.call)(embeds, vectors)
    assert placed.shape == embeds.shape and torch.equal(placed[:, :-2], embeds[:, :-2])
    assert torch.equal(placed[:, -2:], vectors.expand(2, 2, 128)) and not embeds[:, -2:].any()
    with pytest.raises(DenoiserError, match="which leaves no room for 30 learned ones. Raise `max"):
        place_for(base.pipe, texts, 30, base.call)
    monkeypatch.setattr(
        "unlearning_adapters.pipelines.running.text_embeds.encode_texts",
        lambda _pipe, found, _call: torch.zeros(len(found), 1 + len(found[0]), 128),
    )
    assert place_for(base.pipe, texts, 2) is append


@pytest.mark.slow
def test_a_lora_starts_as_no_attack_and_is_trained_on_a_copy(
    edited: Subject, target: Target, examples: Examples
) -> None:
    start, after = resurrection(edited, target, examples, FEW)
    assert (start.rate.hits, start.number) == (0, None) and after.number is not None
    assert edited.cost.steps >= 2
    assert resurrection(edited, target, examples, FEW)[1] == after
    assert not any("lora" in name for name in weights(edited.pipe))


def test_a_start_with_less_noise_stays_nearer(edited: Subject, target: Target, examples: Examples) -> None:
    ends = {}
    for share in (0.5, 1.0):
        requests, sigma = noised(edited, target.named, examples, share)
        again, _ = noised(edited, target.named, examples, share)
        assert all(torch.equal(one.latents, two.latents) for one, two in zip(requests, again, strict=True))
        ends[share] = (
            sigma,
            float((torch.cat([request.latents for request in requests]) - examples.starts).abs().mean()),
        )
    assert ends[0.5][0] < ends[1.0][0] and ends[0.5][1] < ends[1.0][1]
    points = video_start(edited, target, examples, FEW)
    assert [point.open_prompts for point in points] == [False, True] and points[0].number == ends[0.5][0]


def test_a_start_of_a_model_of_diffusion(target: Target) -> None:
    """CogVideoX: half of the schedule leaves sqrt(1 - k) noise; a UNet's sibling takes no latents."""
    pipe = untrained("cogvideox")
    subject = Subject(pipe, as_detectors([Detector("always", lambda frames: [1.0] * len(frames))]),
                      OTHERS["CogVideoXPipeline"] | {"num_inference_steps": 2}, batch=2)  # fmt: skip
    requests = target.named[:2]
    clips = torch.stack(subject.generate(requests, "latent"))
    (point,) = video_start(
        subject, replace(target, named=requests, open_prompts=()), Examples(requests, clips, clips), FEW
    )
    kept = pipe.scheduler.alphas_cumprod[pipe.scheduler.timesteps[1]]
    assert point.rate.hits == 2 and point.number == pytest.approx(float((1 - kept) ** 0.5)) and 0 < point.number < 1
    with pytest.raises(EvaluationError, match="TextToVideoSDPipeline has no video-to-video sibling that is known"):
        video_start(replace(subject, pipe=untrained("unet")), target, Examples(requests, clips, clips), FEW)


def test_a_share_that_leaves_no_step_is_refused(base: Subject, target: Target, examples: Examples) -> None:
    with pytest.raises(EvaluationError, match="A share of 0.1 of 4 denoising steps leaves none"):
        noised(base, target.named, examples, 0.1)


@pytest.mark.slow
def test_one_seed_and_the_own_scale_are_no_attack(edited: Subject, target: Target, examples: Examples) -> None:
    plain = AttackPoint.of("", edited.look(target.named, target))
    mean, best = seeds(edited, target, examples, FEW)
    (scale,) = guidance(edited, target, examples, FEW)
    assert mean.rate == best.rate == scale.rate == plain.rate
    assert torch.equal(latents(edited, target.named), latents(edited, target.named, guidance_scale=3.0))
    assert not torch.equal(latents(edited, target.named), latents(edited, target.named, guidance_scale=1.0))


def test_the_best_of_some_seeds_counts_prompts(base: Subject, monkeypatch: pytest.MonkeyPatch, target: Target) -> None:
    seen = [ClipVerdict(False, True), ClipVerdict(True, True), ClipVerdict(False, True), ClipVerdict(False, False)]
    monkeypatch.setattr(Subject, "look", lambda self, requests, target: seen)
    mean, best = seeds(base, target, Examples((), torch.empty(0), torch.empty(0)), replace(FEW, seeds=2))
    assert (mean.rate.hits, mean.rate.count, best.rate.hits, best.rate.count) == (1, 4, 1, 2)
    assert (mean.valid.hits, best.valid.hits) == (3, 2)


def test_paraphrases_use_other_words(edited: Subject, target: Target, examples: Examples) -> None:
    assert all("red" not in request.text.split() for request in target.paraphrases) and len(target.paraphrases) == 2
    (point,) = paraphrase(edited, target, examples, FEW)
    assert point.rate.count == 2
    with pytest.raises(EvaluationError, match="has no paraphrases"):
        paraphrase(edited, replace(target, paraphrases=()), examples, FEW)


def test_a_concept_is_seen_in_either_body(base: Subject, target: Target, monkeypatch: pytest.MonkeyPatch) -> None:
    bodies = tuple(
        Body(shape, colour, "up", 11.0, x, 32.0)
        for shape, colour, x in (("circle", "blue", 17.0), ("square", "red", 47.0))
    )
    clip = render(Scene(bodies, "black"))
    assert [body["colour"] for body in judge_bodies(clip)] == ["blue", "red"]
    assert judge_bodies(np.full((9, 64, 64, 3), 128, dtype=np.uint8)) == []
    monkeypatch.setattr(observe, "generate_batch", lambda pipe, requests, call: [clip] * len(requests))
    assert not base.look(target.named, target)[0].shown, "the judge names the left body alone"
    (found,) = co_occurring(base, target, Examples((), torch.empty(0), torch.empty(0)), FEW)
    assert found.rate.value == 1
    yellow = replace(target, truth={"colour": "yellow"})
    assert co_occurring(base, yellow, Examples((), torch.empty(0), torch.empty(0)), FEW)[0].rate.hits == 0


def test_prompts_of_two_name_the_concept_first() -> None:
    requests = prompts_of_two("red", 3, 0)
    assert all(request.prompt.startswith("a red") and " and a" in request.prompt for request in requests)
    assert requests == prompts_of_two("red", 3, 0)


@pytest.fixture(scope="module")
def circle(pipe: Any) -> UnlearningAdapter:
    return build_adapter(pipe, load_concept("shapeworld-circle"), BuildConfig(strength=1.5), progress=False)


def test_a_stack_erases_both_and_is_taken_off(
    circle: UnlearningAdapter, edited: Subject, target: Target, examples: Examples
) -> None:
    other, plain = world_target("circle", 2), latents(edited, target.named)
    first, second = stacked(replace(edited, second=(circle, other)), target, examples, FEW)
    assert first.rate.hits == second.rate.hits == 0 and second.before is not None and second.before.rate.value == 1
    assert get_active_unlearning_adapters(edited.pipe) == ["shapeworld-red"]
    assert torch.equal(latents(edited, target.named), plain)
    with pytest.raises(EvaluationError, match="no second adapter to stack"):
        stacked(edited, target, examples, FEW)


def test_a_stack_that_no_edit_of_the_input_completes_is_fused_together(
    pipe: Any, base: Subject, edited: Subject, target: Target, examples: Examples
) -> None:
    """Two edits of red that are added: what one removes nearly whole no input brings back for the other."""
    again = build_adapter(base.pipe, load_concept("shapeworld-red"), BuildConfig(method="uce"), progress=False)
    plain = latents(edited, target.named)
    with pytest.raises(FuseError):
        load_unlearning_adapter(edited.pipe, again, adapter_name="again")
    first, _ = stacked(replace(edited, second=(again, target)), target, examples, FEW)
    assert first.rate.hits == 0
    assert get_active_unlearning_adapters(edited.pipe) == ["shapeworld-red"]
    assert torch.equal(latents(edited, target.named), plain)


def test_a_prompt_without_a_word_of_the_concept_is_refused() -> None:
    suite = Suite("s", (PromptSet("forget", "forget", (EvaluationPrompt("a rose", "1"),)),), words=("red",))
    with pytest.raises(EvaluationError, match="'a rose' of 's' names none of the concept's words: red"):
        target_of(suite, (), 1)


@pytest.fixture(scope="module")
def report(pipe: Any, original: Any, adapter: UnlearningAdapter, target: Target) -> dict[str, Any]:
    """Two attacks with a reference and a gold model; the base stands in for the gold one."""
    before, state = weights(pipe), torch.get_rng_state()
    data = run_attacks(
        pipe, adapter, target, as_detectors(["shapes", "validity"]), ["guidance", "tampering"], FEW,
        world_target("blue", 2), original, call=CALL, batch=16, progress=False,
    )  # fmt: skip
    assert all(torch.equal(value, before[name]) for name, value in weights(pipe).items())
    assert torch.equal(torch.get_rng_state(), state) and get_active_unlearning_adapters(pipe) == []
    return data


@pytest.mark.slow
def test_a_report_has_every_arm_with_counts(report: dict[str, Any]) -> None:
    assert (report["concept"], report["reference"], report["gold"]) == (
        "shapeworld-red",
        "shapeworld-blue",
        "shapeworld",
    )
    for name, entry in report["attacks"].items():
        for arm, value in (("edited", 0.0), ("base", 1.0), ("reference", 1.0), ("gold", 1.0)):
            point = entry[arm]["points"][0]
            assert (point["value"], point["count"], point["before"]["value"]) == (value, 2, value), (name, arm)
            low, high = point["interval"]
            assert low <= value <= high and entry[arm]["clips"] >= 2 and entry[arm]["seconds"] > 0
    settings = [point["setting"] for point in report["attacks"]["tampering"]["edited"]["points"]]
    assert settings[-1] == "published edit subtracted"
    assert len(report["attacks"]["tampering"]["base"]["points"]) == len(settings) - 1
    assert report["generation"]["num_inference_steps"] == 4 and report["budget"]["name"] == "few"


def test_a_table_says_what_was_not_measured(report: dict[str, Any]) -> None:
    from unlearning_adapters.attacks.run import to_markdown

    text = to_markdown(report)
    (row,) = (line for line in text.splitlines() if "published edit subtracted" in line)
    assert row.count("not measured") == 2 and "0.00 [0.00, 0.66] (0/2) | 1.00 [0.34, 1.00] (2/2)" in row
    refused = {**report, "gold": None, "attacks": {"x": {"title": "x", "edited": {"refused": "Why."}}}}
    assert "Gold: not measured." in to_markdown(refused) and "- x: Why." in to_markdown(refused)


def test_what_cannot_be_attacked_is_refused(pipe: Any, adapter: UnlearningAdapter, target: Target) -> None:
    run = {"pipe": pipe, "adapter": adapter, "target": target, "detectors": as_detectors(["shapes"])}
    with pytest.raises(EvaluationError, match="Unknown attack 'x'. Known: paraphrase, guidance"):
        run_attacks(**run, names=["x"])
    with pytest.raises(EvaluationError, match="Unknown budget 'x'. Known: small, medium"):
        run_attacks(**run, budget="x")
    load_unlearning_adapter(pipe, adapter)
    try:
        with pytest.raises(EvaluationError, match="The pipeline holds the adapter 'shapeworld-red'"):
            run_attacks(**run)
    finally:
        unload_unlearning_adapters(pipe)


def test_what_a_pipeline_cannot_do_is_one_line() -> None:
    class Masked:
        def __call__(self, prompt_embeds, prompt_attention_mask):
            raise NotImplementedError

        def encode_prompt(self):
            raise NotImplementedError

    with pytest.raises(DenoiserError, match="Masked wants `prompt_attention_mask` beside them, so that it can"):
        check_embeds(Masked())
    with pytest.raises(DenoiserError, match="several denoisers"):
        one_denoiser(tiny_wan_pipeline(two_denoisers=True))


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"prompts": 0}, "Expected `prompts` of a budget to be a whole number from 1, but got 0"),
        ({"lora_steps": (5, 0)}, "Expected `lora_steps` of a budget to rise from 0"),
        ({"strengths": (0.0,)}, "Expected `strengths` of a budget from 0 to 1"),
    ],
)
def test_a_budget_is_checked(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(EvaluationError, match=text):
        Budget(**settings)
    assert find_budget("medium").prompts > find_budget("small").prompts
