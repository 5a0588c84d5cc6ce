"""Short runs of real pipelines that resist: they take one video, cannot run unguided, or swap attention processors."""

import pytest
import torch

from unlearning_adapters.activations import record
from unlearning_adapters.partial_run import PartialRun
from unlearning_adapters.sites import find_sites
from whole_t5 import SIZE, make_cogvideox, make_cogvideox_video
from whole_t5 import VIDEO as COG_VIDEO

PROMPTS = ("a red car moves left on the street", "two blue cats")


def test_a_pipeline_that_is_given_a_video_gets_one_prompt_at_a_time():
    pipe = make_cogvideox_video()
    run = PartialRun(pipe, {**SIZE, "video": COG_VIDEO}, text_only=True)
    assert run.one_by_one and not PartialRun(make_cogvideox(), SIZE, text_only=True).one_by_one
    sites = find_sites(pipe)
    both = record(pipe, PROMPTS, sites, call_kwargs={**SIZE, "video": COG_VIDEO}, progress=False)
    for prompt, rows in zip(PROMPTS, both.rows[0], strict=True):
        alone = record(pipe, [prompt], sites, call_kwargs={**SIZE, "video": COG_VIDEO}, progress=False)
        assert torch.equal(rows, alone.rows[0][0])


@pytest.mark.parametrize("schedule", [{"timesteps": torch.tensor([900, 500])}, {"timesteps": [900, 500]}])
def test_a_schedule_is_no_picture(schedule):
    assert not PartialRun(make_cogvideox(), {**SIZE, **schedule}, text_only=True).one_by_one
