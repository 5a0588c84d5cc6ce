"""Builds on pipelines of a user's own that take fewer arguments, or refuse some values of them."""

import pytest
import torch
from diffusers import WanPipeline
from planted_words import CONCEPT
from tiny import CALL, tiny_wan_pipeline

from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.config import BuildConfig

CONFIG = BuildConfig(pairs=2)


class OneSize(WanPipeline):
    """Makes clips of one size and length alone, and says so by the same words each time."""

    def __call__(self, prompt, height=48, width=80, num_frames=21, guidance_scale=5.0, negative_prompt=None, **more):
        if (height, width, num_frames) != (48, 80, 21):
            raise ValueError("this size is not supported")
        return super().__call__(prompt, negative_prompt, height, width, num_frames, 2, guidance_scale, **more)


class Guided(WanPipeline):
    """Refuses to run without guidance."""

    def __call__(self, prompt, negative_prompt=None, guidance_scale=5.0, generator=None, max_sequence_length=16):
        if guidance_scale <= 1:
            raise ValueError("guidance_scale has to be above 1")
        return super().__call__(
            prompt, negative_prompt, 16, 16, 5, 2, guidance_scale,
            generator=generator, max_sequence_length=max_sequence_length,
        )  # fmt: skip


class GuidedInAnyCase(WanPipeline):
    """Guides, and has no argument for it: first the prompt, then the negative prompt, in two calls."""

    def __call__(self, prompt, negative_prompt=None, generator=None):
        return super().__call__(prompt, negative_prompt, 16, 16, 5, 2, 5.0, generator=generator, max_sequence_length=16)


class GuidedInOneCall(WanPipeline):
    """Guides in one call of the denoiser, the negative prompts first, and has no argument for it."""

    def __call__(self, prompt, negative_prompt=None, generator=None):
        texts = [prompt] if isinstance(prompt, str) else prompt
        options = {"max_sequence_length": 16, "device": torch.device("cpu")}
        wanted, negative = self.encode_prompt(texts, [negative_prompt or ""] * len(texts), **options)
        latents = torch.zeros(2 * len(texts), 16, 2, 2, 2)
        for time in (900, 500):
            times = torch.full((2 * len(texts),), time)
            self.transformer(latents, times, torch.cat([negative, wanted]), return_dict=False)


@pytest.mark.parametrize("own", [OneSize, Guided, GuidedInAnyCase, GuidedInOneCall])
def test_the_builder_finds_how_a_pipeline_of_the_users_own_is_called(own):
    pipe = tiny_wan_pipeline()
    wanted = build_adapter(pipe, CONCEPT, CONFIG, progress=False, call_kwargs=CALL)
    pipe.__class__ = own
    adapter = build_adapter(pipe, CONCEPT, CONFIG, progress=False)
    assert adapter.sites == wanted.sites
    for site, item in adapter.directions.items():
        torch.testing.assert_close(item.write, wanted.directions[site].write, rtol=1e-3, atol=1e-4)


def test_guidance_that_the_user_gives_to_a_pipeline_that_needs_it_is_no_error():
    pipe = tiny_wan_pipeline()
    pipe.__class__ = Guided
    assert build_adapter(pipe, CONCEPT, CONFIG, progress=False, call_kwargs={"guidance_scale": 3.0}).sites
