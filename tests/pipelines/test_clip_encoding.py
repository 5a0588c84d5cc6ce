"""How the latents of a pipeline lie in what its VAE decodes, found by runs alone, for pipelines of many kinds."""

import functools

import numpy as np
import pytest
import torch
from diffusers import WanPipeline
from pipeline_table import cases
from tiny import CALL, tiny_wan_pipeline
from torch import Tensor

from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.pipelines.running.clean_latents import clean_latents
from unlearning_adapters.pipelines.running.encoding import LatentLayout, latent_layout
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from whole import UNSAFE, Whole, changed, picture, state

KINDS = {
    "AllegroPipeline", "AnimateDiffPipeline", "CogVideoXPipeline", "HunyuanVideoPipeline", "LTXImageToVideoPipeline",
    "LTXPipeline", "TextToVideoSDPipeline", "WanImageToVideoPipeline (two denoisers)",
    "WanModularPipeline",
}  # fmt: skip


def layout_of(pipe, call, image=None) -> LatentLayout:
    return latent_layout(PartialRun(pipe, call, any_video=False), UNSAFE, image)


def decoded_in(pipe, run: PartialRun, seed: int, image) -> Tensor:
    """What the VAE gets in a run of the pipeline to its end."""
    seen, decode = [], pipe.vae.decode

    def keep(latents, *args, **kwargs):
        seen.append(latents.detach().float().clone())
        return decode(latents, *args, **kwargs)

    pipe.vae.decode = keep
    try:
        run.arguments["output_type"] = "pt"
        run([UNSAFE], [seed], image)
    finally:
        del pipe.vae.decode
    return torch.cat(seen)


@pytest.mark.parametrize("case", [case for case in cases() if isinstance(case, Whole) and str(case) in KINDS], ids=str)
def test_from_what_is_decoded_the_latents_are_found_again(case: Whole) -> None:
    pipe = case.make()
    call, image = {**case.call, "num_inference_steps": 2}, picture(0) if case.pictures else None
    run = PartialRun(pipe, call, any_video=False)
    latents = clean_latents(run, [UNSAFE], [7], image)[0]
    decoded = decoded_in(pipe, run, 7, image)
    before = state(pipe)  # after a first run, in which some models set attributes of their own
    layout = layout_of(pipe, call, image)
    assert changed(before, state(pipe)) == set()
    found = layout.stepped(decoded)
    assert layout.latents == tuple(latents.shape) and latents.norm() > 0
    assert (found - latents).norm() < 1e-3 * latents.norm()


@pytest.mark.parametrize("name", ["AnimateDiffPipeline", "CogVideoXPipeline", "LTXPipeline"])
def test_a_clip_of_the_pipelines_size_becomes_latents_of_its_shape(name: str) -> None:
    case = next(case for case in cases() if str(case) == name)
    layout = layout_of(case.make(), {**case.call, "num_inference_steps": 2})
    frames, height, width = layout.size
    noise = np.random.default_rng(0).integers(0, 256, (2, frames, height, width, 3), dtype=np.uint8)
    one, other = layout.encoded(noise[0]), layout.encoded(noise[1])
    assert tuple(one.shape) == layout.latents and one.dtype == torch.float32
    assert torch.isfinite(one).all() and not torch.equal(one, other)
    assert torch.equal(one, layout.encoded(noise[0]))


def test_wan_encodes_as_its_own_code_does() -> None:
    pipe = tiny_wan_pipeline()
    layout = layout_of(pipe, CALL)
    assert layout.size == (5, 16, 16)
    frames = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), dtype=np.uint8)
    pixels = torch.from_numpy(frames).float().permute(3, 0, 1, 2)[None] / 127.5 - 1
    with torch.no_grad():
        latents = pipe.vae.encode(pixels).latent_dist.mode()
    shape = (1, pipe.vae.config.z_dim, 1, 1, 1)
    mean, std = (torch.tensor(pipe.vae.config[name]).view(shape) for name in ("latents_mean", "latents_std"))
    torch.testing.assert_close(layout.encoded(frames), (latents - mean) / std, rtol=1e-3, atol=1e-4)


def test_in_half_precision_it_is_found_too() -> None:
    pipe = tiny_wan_pipeline(dtype=torch.bfloat16)
    half, full = layout_of(pipe, CALL), layout_of(tiny_wan_pipeline(), CALL)
    assert torch.equal(half.places, full.places)
    torch.testing.assert_close(half.scale, full.scale, rtol=0.02, atol=0)


def test_a_pipeline_without_an_encoder_is_refused() -> None:
    pipe = tiny_wan_pipeline()
    pipe.vae = None
    with pytest.raises(DenoiserError, match="WanPipeline has no VAE that encodes the given clips"):
        layout_of(pipe, CALL)


def test_latents_that_are_mixed_before_they_are_decoded_are_refused() -> None:
    class Mixing(WanPipeline):
        @functools.wraps(WanPipeline.__call__)
        def __call__(self, *args, **kwargs):
            decode = self.vae.decode
            self.vae.decode = lambda latents, **more: decode(latents + latents.flip(-1), **more)
            try:
                return super().__call__(*args, **kwargs)
            finally:
                self.vae.decode = decode

    pipe = tiny_wan_pipeline()
    pipe.__class__ = Mixing
    with pytest.raises(DenoiserError, match="more to its latents before they are decoded than to scale, shift and"):
        layout_of(pipe, CALL)
