"""The layers that read a picture alone, in every denoiser that has them: structure, measurement and the edit agree."""

from __future__ import annotations

import re
import zlib
from types import SimpleNamespace

import denoiser_inputs as given
import diffusers
import pytest
import torch
from conformance import ROUNDING, changed, densely_edited, expand, shape, state, weights
from denoiser_inputs import Noise, Words
from picture_sites import IMAGE_KEYS, SITES
from PIL import Image
from tiny_denoisers import ANIMATE, ANIMATE_2, PICTURES, PROMPT, TEXT, TINY, Tiny, TinyPipeline, _tensors
from torch import Tensor, nn
from traces import count_hooks

from planted import planted
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import SiteError
from unlearning_adapters.pipelines.activations import record
from unlearning_adapters.pipelines.probes import measure_sites
from unlearning_adapters.pipelines.sites import find_sites
from unlearning_adapters.runtime.verbs import (
    delete_unlearning_adapters,
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
)

# Layers that read a picture alone and prepare it for the sites.
FRONT = r"image_embedder\.|^image_projection\.down$|^img_context_proj\.|^img_emb\."
# And those that are no sites: what single-token attention returns; inputs that are no picture of the pair (the face of
# the driving video, identity features, camera rays); I2VGen-XL's latents, which then join the prompt.
ELSEWHERE = (
    r"attn2\.to_out\.|^face_|^vace_blocks\.\d+\.proj_in$|^local_facial_extractor\.|plucker|^context_embedding\.2$"
    r"|^image_latents_temporal_encoder\."
)


def animate(text: Words, noise: Noise, image: Noise) -> dict:
    return {**given.wan_animate(text, noise, image), "encoder_hidden_states": text(1, 512, TEXT)}


def animate_2(text: Words, noise: Noise, image: Noise) -> dict:
    return {**given.wan_animate_2(text, noise, image), "encoder_hidden_states_image": image(1, 257, 1280)}


MORE = (
    Tiny("WanAnimateTransformer3DModel", IMAGE_KEYS, {**ANIMATE, **PICTURES}, animate, "image keys"),
    Tiny("WanAnimate2Transformer3DModel", "", {**ANIMATE_2, "use_img_emb": True}, animate_2, "image keys"),
)
EVERY = (*TINY, *MORE)


def takes_picture(item: Tiny) -> bool:
    """Whether an input of a tiny denoiser comes from the picture."""
    image = Noise(0)
    untouched = image.maker.get_state()
    item.inputs(Words(PROMPT), Noise(0), image)
    return not torch.equal(image.maker.get_state(), untouched)


with_sites = pytest.mark.parametrize("tiny", [item for item in EVERY if item.name in SITES], ids=lambda item: item.name)


class PicturePipeline(TinyPipeline):
    """A pipeline of a denoiser that takes a picture: each picture stands for other inputs."""

    def __call__(self, prompt: str = PROMPT, generator: torch.Generator | None = None, image=None) -> Tensor:
        seed = 3000 if image is None else zlib.crc32(image.tobytes())
        inputs = self.tiny.inputs(
            Words(prompt or PROMPT), Noise(generator.initial_seed() if generator else 0), Noise(seed)
        )
        with torch.no_grad():
            return torch.cat([part.flatten() for part in _tensors(self.model(**inputs, return_dict=False))])


def image_paths(pipe: TinyPipeline) -> set[str]:
    return {site.module for site in find_sites(pipe, "image")}


def test_every_name_of_the_table_is_a_denoiser():
    assert set(SITES) <= {item.name for item in EVERY}


@with_sites
def test_image_sites(tiny: Tiny):
    sites = find_sites(tiny.pipe(), "image")
    assert {shape(site.module) for site in sites} == expand(SITES[tiny.name])
    assert {site.kind for site in sites} == {"image"}


@pytest.mark.parametrize("tiny", [item for item in EVERY if item.name not in SITES], ids=lambda item: item.name)
def test_the_others_have_none_and_say_what_to_do(tiny: Tiny):
    expected = rf"No image site was found in {tiny.component} \({tiny.model}\)\. Select 'hidden' sites"
    with pytest.raises(SiteError, match=expected):
        find_sites(tiny.pipe(), "image")


@pytest.mark.parametrize("tiny", [item for item in EVERY if takes_picture(item)], ids=lambda item: item.name)
def test_image_sites_agree_with_measurement(tiny: Tiny):
    pipe = PicturePipeline(tiny)
    sites = image_paths(pipe) if tiny.name in SITES else set()
    measured = {site.module for site in measure_sites(pipe, "image")}
    assert sites <= measured
    assert {path for path in measured - sites if not re.search(f"{FRONT}|{ELSEWHERE}", path)} == set()
    assert not measured & {site.module for site in measure_sites(pipe, "text")}


@with_sites
def test_attach_fuse_unfuse(tiny: Tiny):
    pipe = tiny.pipe()
    base, clean, original = pipe(), state(pipe), weights(pipe)
    adapter = planted(pipe, sites="image")
    expected = densely_edited(tiny, adapter)
    name = load_unlearning_adapter(pipe, adapter)
    attached = pipe()
    torch.testing.assert_close(attached, expected, **ROUNDING)
    assert not torch.equal(attached, base)
    fuse_unlearning_adapters(pipe)
    torch.testing.assert_close(pipe(), attached, **ROUNDING)
    assert changed(original, weights(pipe)) == {f"{site.partition('.')[2]}.weight" for site in adapter.sites}
    unfuse_unlearning_adapters(pipe)
    assert changed(original, weights(pipe)) == set() and torch.equal(pipe(), attached)
    delete_unlearning_adapters(pipe, name)
    assert torch.equal(pipe(), base) and state(pipe) == clean


@with_sites
def test_a_build_finds_what_the_pictures_add(tiny: Tiny):
    """Each image site learns the mean difference of its own inputs."""
    pipe = PicturePipeline(tiny)
    pictures = [Image.new("RGB", (2, 2), (50 * index, 9, 9)) for index in range(4)]
    pairs = tuple(Pair(unsafe_image=pictures[index], safe_image=pictures[index + 1]) for index in (0, 2))
    config = BuildConfig("mean", sites="image")
    adapter = build_adapter(pipe, Concept("x", pairs), config, progress=False)
    assert {site.partition(".")[2] for site in adapter.sites} == image_paths(pipe)
    seen = record(pipe, [""] * 4, find_sites(pipe, "image"), images=pictures, seed=[0] * 4, progress=False)
    for site, direction in adapter.directions.items():
        means = [rows.mean(dim=0) for rows in seen.of(site)]
        expected = means[0] - means[1] + means[2] - means[3]
        assert torch.cosine_similarity(direction.read[0], expected, dim=0) > 0.99


def test_keys_of_a_picture_that_are_never_called_are_no_sites():
    with torch.device("meta"):
        model = diffusers.HeliosTransformer3DModel(num_layers=1, added_kv_proj_dim=8)
    assert isinstance(model.blocks[0].attn2.add_k_proj, nn.Linear)
    with pytest.raises(SiteError, match="No image site was found"):
        find_sites(SimpleNamespace(components={"transformer": model}), "image")


def test_names_that_nobody_knows_are_measured_in_the_blocks():
    class Odd(nn.Module):
        def __init__(self):
            super().__init__()
            self.front = nn.Linear(4, 4)
            self.blocks = nn.ModuleList(nn.ModuleDict({"see": nn.Linear(4, 4)}) for _ in range(2))
            self.words, self.video = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, video, text, picture):
            seen = self.front(picture)
            return self.video(video) + self.words(text) + sum(block["see"](seen) for block in self.blocks)

    class OddPipeline:
        def __init__(self):
            torch.manual_seed(0)
            self.components = {"transformer": Odd()}

        def __call__(self, prompt, image, generator):
            picture = torch.randn(1, 4, generator=torch.Generator().manual_seed(zlib.crc32(image.tobytes())))
            return self.components["transformer"](
                torch.randn(1, 4, generator=generator), Words(prompt)(1, 1, 4), picture
            )

    pipe = OddPipeline()
    pictures = [Image.new("RGB", (2, 2), (60 * index, 9, 9)) for index in range(2)]
    concept = Concept("x", (Pair("a dog", "a dog", *pictures),))
    for sites in (None, "image"):
        adapter = build_adapter(pipe, concept, BuildConfig("mean", sites=sites), progress=False)
        assert adapter.sites == ("transformer.blocks.0.see", "transformer.blocks.1.see")
    assert count_hooks(pipe) == 0
