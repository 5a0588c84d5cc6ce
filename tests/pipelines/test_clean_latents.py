"""Clips' own latents, and runs of the denoiser on noised ones, through the pipeline's own loop, without a trace."""

import pytest
import torch
from cases.t5 import SIZE, make_cogvideox
from tiny import CALL, tiny_wan_pipeline

from unlearning_adapters.errors import DenoiserError, UnlearningError
from unlearning_adapters.pipelines.running.clean_latents import (
    add_noise,
    clean_latents,
    exchanged,
    run_noised,
    steps_exchanged,
)
from unlearning_adapters.pipelines.running.partial_run import PartialRun

PROMPTS = ("a red car moves left", "two blue cats")
FOUR = {**CALL, "num_inference_steps": 4}


def run_of(pipe, call=FOUR, **options):
    return PartialRun(pipe, call, any_video=False, **options)


def test_clean_latents_are_those_of_the_pipelines_own_clips():
    pipe = tiny_wan_pipeline()
    latents = clean_latents(run_of(pipe, own_guidance=True), PROMPTS, (3, 4))
    generators = [torch.Generator().manual_seed(seed) for seed in (3, 4)]
    own = pipe(list(PROMPTS), generator=generators, output_type="latent", **FOUR).frames
    assert latents.shape == (2, 1, *own.shape[1:])
    assert torch.equal(latents[:, 0], own)


def test_guidance_stays_on_for_clips_and_off_for_what_is_recorded():
    pipe = tiny_wan_pipeline()
    guided = clean_latents(run_of(pipe, {**FOUR, "guidance_scale": 8.0}, own_guidance=True), PROMPTS, (3, 4))
    plain = clean_latents(run_of(pipe, {**FOUR, "guidance_scale": 8.0}), PROMPTS, (3, 4))
    assert not torch.allclose(guided, plain, atol=1e-4)


@pytest.mark.parametrize(("make", "call"), [(tiny_wan_pipeline, FOUR), (make_cogvideox, {**SIZE})])
def test_the_denoiser_reads_both_copies_at_the_levels_of_the_schedule_with_one_noise(make, call):
    pipe = make()
    call = {**call, "num_inference_steps": 4}
    run = run_of(pipe, call)
    clean = torch.stack([clean_latents(run, PROMPTS, (3, 4)), clean_latents(run, PROMPTS, (5, 6))], dim=1)
    seen = []

    def keep(_module, args, kwargs):
        tensor = kwargs.get("hidden_states", args[0] if args else None)
        seen.append((tensor.detach().clone(), kwargs["timestep"].detach().clone()))

    handle = pipe.transformer.register_forward_pre_hook(keep, with_kwargs=True)
    kind = type(pipe.scheduler)
    run_noised(run, clean, PROMPTS, seed=9)
    handle.remove()
    assert type(pipe.scheduler) is kind and len(seen) == 4
    flat = clean.flatten(0, 2)
    noise = torch.randn(clean[:, :1].shape, generator=torch.Generator().manual_seed(9)).expand_as(clean).flatten(0, 2)
    scheduler = kind.from_config(pipe.scheduler.config)
    scheduler.set_timesteps(4)
    for tensor, timestep in seen[1:]:
        expected = add_noise(scheduler, flat, noise, timestep.flatten()[:1].expand(len(flat)))
        assert torch.allclose(tensor, expected, atol=1e-5)
    assert (seen[1][0] - seen[3][0]).abs().max() > 0.1


def test_a_run_that_fails_leaves_the_scheduler_as_it_was():
    pipe = tiny_wan_pipeline()
    kind, before = type(pipe.scheduler), sorted(vars(pipe.scheduler))

    def fail(_scheduler, _step, _latents):
        raise RuntimeError("stop")

    run = run_of(pipe)
    with pytest.raises(UnlearningError, match="stop"), steps_exchanged(run, fail):
        run(PROMPTS, (1, 2))
    assert type(pipe.scheduler) is kind and sorted(vars(pipe.scheduler)) == before


def test_a_copy_of_the_scheduler_steps_as_it_would():
    import copy

    pipe = tiny_wan_pipeline()
    shown = []
    with exchanged(pipe, lambda scheduler, step, latents: shown.append(step)):
        other = copy.deepcopy(pipe.scheduler)
        other.set_timesteps(4)
        other.step(torch.ones(1, 2), other.timesteps[0], torch.ones(1, 2))
    assert shown == []


def test_clips_of_another_size_are_refused():
    pipe = tiny_wan_pipeline()
    run = run_of(pipe)
    clean = clean_latents(run, PROMPTS, (3, 4))[:, None]
    with pytest.raises(DenoiserError, match=r'WanPipeline steps latents of shape .*scope="word"'):
        run_noised(run, clean[..., :1], PROMPTS, seed=1)
