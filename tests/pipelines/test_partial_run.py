"""Short runs of real pipelines that resist: they take one video, cannot run unguided, or swap attention processors."""

import pytest
import tiny
import torch
from cases.minimax import make_minimax
from cases.t5 import SIZE, make_cogvideox, make_cogvideox_video
from cases.t5 import VIDEO as COG_VIDEO
from cases.unet import FRAMES, ZERO, make_svd, make_zero
from diffusers.models.attention_processor import AttnProcessor2_0
from planted_words import CONCEPT
from traces import count_hooks

from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.pipelines.activations import record
from unlearning_adapters.pipelines.probes import measure_sites
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.pipelines.sites import find_sites

PROMPTS = ("a red car moves left on the street", "two blue cats")


def test_a_pipeline_that_is_given_a_video_gets_one_prompt_at_a_time():
    pipe = make_cogvideox_video()
    run = PartialRun(pipe, {**SIZE, "video": COG_VIDEO}, any_video=True)
    assert run.one_by_one and not PartialRun(make_cogvideox(), SIZE, any_video=True).one_by_one
    sites = find_sites(pipe)
    both = record(pipe, PROMPTS, sites, call_kwargs={**SIZE, "video": COG_VIDEO}, progress=False)
    for prompt, rows in zip(PROMPTS, both.rows[0], strict=True):
        alone = record(pipe, [prompt], sites, call_kwargs={**SIZE, "video": COG_VIDEO}, progress=False)
        assert torch.equal(rows, alone.rows[0][0])


@pytest.mark.parametrize("schedule", [{"timesteps": torch.tensor([900, 500])}, {"timesteps": [900, 500]}])
def test_a_schedule_is_no_picture(schedule):
    assert not PartialRun(make_cogvideox(), {**SIZE, **schedule}, any_video=True).one_by_one


def test_a_pipeline_that_is_always_guided_shows_the_rows_of_its_prompts_alone():
    pipe = make_zero()
    with pytest.raises(TypeError, match="expected Tensor as element 0 in argument 0, but got NoneType"):
        pipe(prompt=PROMPTS[0], guidance_scale=1.0, **ZERO)  # a defect of diffusers 0.42.1
    sites = find_sites(pipe)
    recording = record(pipe, PROMPTS, sites, call_kwargs=ZERO, progress=False)
    for prompt, rows in zip(PROMPTS, recording.rows[0], strict=True):
        tokens = pipe.tokenizer(prompt, padding="max_length", return_tensors="pt").input_ids
        expected = pipe.text_encoder(tokens)[0][0]
        assert torch.equal(rows.unique(dim=0), expected.unique(dim=0))


def test_a_stopped_run_gives_the_attention_processors_back():
    pipe = make_zero()
    before = pipe.unet.attn_processors
    assert all(type(processor) is AttnProcessor2_0 for processor in before.values())
    assert measure_sites(pipe, "text", call_kwargs=ZERO)
    assert pipe.unet.attn_processors == before and count_hooks(pipe) == 0


def test_stable_video_diffusion_is_recorded_without_guidance():
    pipe = make_svd()
    run = PartialRun(pipe, FRAMES, any_video=False)
    assert run.arguments["min_guidance_scale"] == run.arguments["max_guidance_scale"] == 1.0
    batches = []
    handle = pipe.unet.register_forward_pre_hook(lambda _module, args: batches.append(len(args[0])))
    run(["unused"], [0])
    handle.remove()
    assert batches == [1, 1]


def test_the_smallest_video_of_minimax_is_one_that_it_accepts():
    pipe = make_minimax()
    run = PartialRun(pipe, {"height": 8, "width": 8}, any_video=True)
    assert run.arguments["num_frames"] == 120
    assert measure_sites(pipe, "text", call_kwargs={"height": 8, "width": 8})[0].module == "context_embedder"


def test_a_stopped_run_leaves_no_weight_on_the_device_that_is_offloaded():
    from accelerate import cpu_offload

    pipe = tiny.tiny_wan_pipeline()
    cpu_offload(pipe.transformer, torch.device("cpu"))
    build_adapter(pipe, CONCEPT, BuildConfig(pairs=2), progress=False)
    assert all(parameter.is_meta for parameter in pipe.transformer.parameters())
