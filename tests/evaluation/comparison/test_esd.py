"""ESD on tiny pipelines: what it learns is what its target says, the base is left as it was, the file is ordinary."""

from pathlib import Path
from typing import Any

import pytest
import tiny
import torch
from cases import t5, unet
from planted_words import CONCEPT, planted_pipeline
from safetensors.torch import save_file
from torch import Tensor

from planted import snapshot
from unlearning_adapters.concepts.concept import Concept, Pair
from unlearning_adapters.errors import AdapterFileError, ConceptError, ConfigError, DenoiserError
from unlearning_adapters.evaluation.comparison.esd import EsdSettings, esd_prompts, train_esd
from unlearning_adapters.evaluation.comparison.site_lora import SiteLora, lora_from, start_lora
from unlearning_adapters.pipelines.running.denoiser_calls import predictions, record_calls, text_of, with_text
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.pipelines.sites import denoisers, find_sites
from whole import changed, output, state

FEW = EsdSettings(steps=2, rank=2, batch_size=2)
UNSAFE, UNRELATED = "a red dog moves right", "the green house"


def gaps(pipe: Any, lora: SiteLora, prompt: str, eta: float = 1.0) -> tuple[float, float]:
    """Distance of the base's prediction for a prompt from ESD's target, and that of the edited one."""
    networks, run = denoisers(pipe), PartialRun(pipe, tiny.CALL, any_video=False)
    with torch.no_grad():
        call = record_calls(run, networks, [prompt], [99], 2)[-1]
        empty = text_of(run, networks, [""], [99], record_calls(run, networks, [prompt], [99], 1)[0])
        (without,), (base,) = predictions(networks, with_text(call, empty)), predictions(networks, call)
        with lora.acting(pipe):
            (edited,) = predictions(networks, call)
    target = without - eta * (base - without)
    return float((base - target).norm()), float((edited - target).norm())


@pytest.mark.parametrize("two_denoisers", [False, True], ids=["one denoiser", "two denoisers"])
def test_the_prediction_moves_to_the_negatively_guided_one(two_denoisers: bool) -> None:
    pipe = planted_pipeline(two_denoisers=two_denoisers)
    settings = EsdSettings(steps=40, learning_rate=0.02, rank=4)
    lora = train_esd(pipe, CONCEPT, settings, call_kwargs=tiny.CALL, progress=False)
    assert {name.split(".")[0] for name in lora.factors} == set(denoisers(pipe))
    base, edited = gaps(pipe, lora, UNSAFE)  # other noise than in the training, and its last step
    assert base > 0 and edited < 0.5 * base


def test_without_steps_on_a_denoiser_nothing_of_it_is_learned_and_the_seed_decides() -> None:
    pipe = planted_pipeline()
    one, again, other = (
        train_esd(pipe, CONCEPT, EsdSettings(steps=2, rank=2, seed=seed), call_kwargs=tiny.CALL, progress=False)
        for seed in (0, 0, 1)
    )
    assert all(torch.equal(*both) for both in zip(one.parameters, again.parameters, strict=True))
    assert not any(torch.equal(*both) for both in zip(one.parameters, other.parameters, strict=True))
    started = start_lora(pipe, find_sites(pipe, "text"), rank=2, seed=0)
    base, edited = gaps(pipe, started, UNSAFE)
    assert base == edited  # a LoRA that starts does nothing


def test_the_pipeline_is_left_as_it_was() -> None:
    pipe = planted_pipeline()
    pipe("a dog", output_type="latent", **tiny.CALL)  # diffusers' own registry comes with the first call
    next(pipe.transformer.parameters()).requires_grad_(False)
    before, chance, shown = snapshot(pipe), torch.get_rng_state(), latents(pipe)
    grads = [parameter.requires_grad for parameter in pipe.transformer.parameters()]
    hooks = count_hooks(pipe)
    lora = train_esd(pipe, CONCEPT, FEW, call_kwargs=tiny.CALL, progress=False)
    with lora.acting(pipe):
        assert not torch.equal(latents(pipe), shown)
    assert snapshot(pipe) == before and torch.equal(torch.get_rng_state(), chance) and count_hooks(pipe) == hooks
    assert [parameter.requires_grad for parameter in pipe.transformer.parameters()] == grads
    assert all(parameter.grad is None for parameter in pipe.transformer.parameters())
    assert torch.equal(latents(pipe), shown)


def test_a_training_that_fails_leaves_no_trace() -> None:
    pipe = planted_pipeline()
    pipe("a dog", output_type="latent", **tiny.CALL)
    before, hooks = snapshot(pipe), count_hooks(pipe)
    with pytest.raises(DenoiserError, match="The training of ESD diverged: the loss of step 2 is (nan|inf)"):
        train_esd(pipe, CONCEPT, EsdSettings(steps=3, learning_rate=1e30), call_kwargs=tiny.CALL, progress=False)
    assert snapshot(pipe) == before and count_hooks(pipe) == hooks
    assert all(parameter.requires_grad for parameter in pipe.transformer.parameters())


def test_the_file_is_an_ordinary_lora(tmp_path: Path) -> None:
    """Stock diffusers loads it, and makes of it what the hooks do."""
    pipe = planted_pipeline()
    lora = train_esd(pipe, CONCEPT, EsdSettings(steps=4, learning_rate=0.05), call_kwargs=tiny.CALL, progress=False)
    base = latents(pipe)
    with lora.acting(pipe):
        edited = latents(pipe)
    save_file(lora.tensors(), tmp_path / "pytorch_lora_weights.safetensors")
    read = lora_from(pipe, lora.tensors(), "a file")
    with read.acting(pipe):
        assert torch.equal(latents(pipe), edited)
    pipe.load_lora_weights(tmp_path)
    assert (edited - base).norm() > 1e-3 * base.norm()
    assert (latents(pipe) - edited).norm() < 1e-3 * (edited - base).norm()


def test_factors_of_another_model_are_refused() -> None:
    pipe = planted_pipeline()
    tensors = start_lora(pipe, find_sites(pipe, "text"), rank=2, seed=0).tensors()
    key = next(iter(tensors))
    site = key.removesuffix(".lora_A.weight")
    with pytest.raises(AdapterFileError, match=rf"Expected the factors of '{site}' in a file to have the shapes"):
        lora_from(pipe, {**tensors, key: torch.zeros(2, 5)}, "a file")
    with pytest.raises(AdapterFileError, match=rf"Expected the factors of '{site}' in a file to have the shapes"):
        lora_from(pipe, {key: tensors[key]}, "a file")
    with pytest.raises(AdapterFileError, match="The tensor 'alpha' in a file is not a factor of a LoRA"):
        lora_from(pipe, {**tensors, "alpha": torch.ones(1)}, "a file")


CASES = {str(case): case for case in (*unet.CASES, *t5.CASES)}


@pytest.mark.parametrize("name", ["TextToVideoSDPipeline", "CogVideoXPipeline"])
def test_pipelines_of_other_kinds(name: str) -> None:
    """A UNet that predicts the noise, and joint attention of text and video; both through their own call."""
    case = CASES[name]
    pipe = case.make()
    base, before = output(case, pipe, UNSAFE), state(pipe)
    concept = Concept("red", (Pair(UNSAFE, "a blue dog moves right"),), ("a dog walks",))
    settings = EsdSettings(steps=3, learning_rate=0.02, batch_size=2)
    lora = train_esd(pipe, concept, settings, call_kwargs=case.call, progress=False)
    with lora.acting(pipe):
        assert (output(case, pipe, UNSAFE) - base).norm() > 1e-4 * base.norm()
    assert changed(before, state(pipe)) == set() and torch.equal(output(case, pipe, UNSAFE), base)


@pytest.mark.parametrize(
    ("settings", "text"),
    [
        ({"steps": 0}, "Expected `steps` of ESD to be at least 1, but got 0."),
        ({"steps": 1.5}, "Expected `steps` of ESD to be of type int, but got 1.5."),
        ({"rank": 65}, "Expected `rank` of ESD to be at most 64, but got 65."),
        ({"eta": -1.0}, "Expected `eta` of ESD to be above 0, but got -1.0."),
        ({"learning_rate": float("nan")}, "Expected `learning_rate` of ESD to be of type float, but got nan."),
        ({"seed": -1}, "Expected `seed` of ESD to be at least 0, but got -1."),
    ],
)
def test_settings_are_checked_where_they_are_made(settings: dict[str, Any], text: str) -> None:
    with pytest.raises(ConfigError) as caught:
        EsdSettings(**settings)
    assert str(caught.value) == text


def test_the_words_of_a_concept_are_asked_for_or_else_its_unsafe_prompts() -> None:
    pairs = (Pair(UNSAFE, "a blue dog moves right"), Pair("a dog", "a dog", "one.png", "two.png"))
    assert esd_prompts(Concept("red", pairs)) == [(UNSAFE, None)]
    assert [prompt for prompt, _ in esd_prompts(Concept("red", pairs, words=("red", "scarlet")))] == ["red", "scarlet"]
    ((prompt, picture),) = esd_prompts(Concept("red", pairs[1:], words=("red",)))
    assert prompt == "red" and Path(picture).name == "one.png"


def test_a_concept_without_prompts_is_refused() -> None:
    concept = Concept("red", (Pair("a dog", "a dog", "one.png", "two.png"),))
    with pytest.raises(ConceptError, match="got WanPipeline and 0 prompts of 'red'. Add `words` to it."):
        train_esd(planted_pipeline(), concept, FEW, call_kwargs=tiny.CALL, progress=False)


def latents(pipe: Any) -> Tensor:
    generator = torch.Generator().manual_seed(3)
    frames: Tensor = pipe(UNSAFE, generator=generator, output_type="latent", **tiny.CALL).frames
    return frames


def count_hooks(pipe: Any) -> list[int]:
    return [len(module._forward_hooks) + len(module._forward_pre_hooks) for module in pipe.transformer.modules()]
