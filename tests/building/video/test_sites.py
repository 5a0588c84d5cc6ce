"""Layers that read video tokens are found by structure, in denoisers of all kinds."""

import re

import pytest
from conformance import each, on_inputs
from tiny import tiny_wan_pipeline
from tiny_denoisers import Tiny, TinyPipeline
from torch import Tensor

from unlearning_adapters.building.video.sites import find_video_sites
from unlearning_adapters.errors import SiteError
from unlearning_adapters.pipelines.sites import find_sites


def test_the_layers_of_wan_that_read_video_tokens():
    layers = ("attn1.to_q", "attn1.to_k", "attn1.to_v", "attn2.to_q", "ffn.net.0.proj")
    wanted = {f"transformer.blocks.{block}.{layer}" for block in range(2) for layer in layers}
    assert {site.name for site in find_video_sites(tiny_wan_pipeline())} == wanted | {"transformer.proj_out"}


def test_both_experts_and_chosen_blocks():
    sites = find_video_sites(tiny_wan_pipeline(two_denoisers=True), blocks=[1])
    assert {site.block for site in sites} == {1}
    assert {site.component for site in sites} == {"transformer", "transformer_2"}


@each
def test_every_denoiser_has_such_layers_and_none_of_them_reads_the_prompt_alone(tiny: Tiny) -> None:
    pipe = TinyPipeline(tiny)
    sites = find_video_sites(pipe)
    assert len(sites) >= 3 and all(site.kind == "hidden" for site in sites)
    front = [site.name for site in sites if re.search(tiny.front, site.module)]
    assert not front, "a layer that prepares the text"
    text = {site.name for site in find_sites(pipe, "text")} if tiny.sites else set()
    assert text.isdisjoint(site.name for site in sites)


@each
def test_what_they_read_depends_on_the_noise(tiny: Tiny) -> None:
    pipe = TinyPipeline(tiny)
    sites = {site.module: site for site in find_video_sites(pipe)}
    reads: list[dict[str, Tensor]] = []
    for seed in (0, 1):
        seen: dict[str, Tensor] = {}

        def keep(path: str, rows: Tensor, seen: dict[str, Tensor] = seen) -> Tensor:
            if path in sites:
                seen.setdefault(path, rows.detach().clone())
            return rows

        with on_inputs(pipe.model, keep):
            tiny.run(pipe.model, "a red cat walks on grass", seed)
        reads.append(seen)
    called = set(reads[0])
    assert len(called) >= 0.7 * len(sites), sorted(set(sites) - called)
    moved = [path for path in called if (reads[0][path] - reads[1][path]).abs().max() > 1e-6]
    assert len(moved) >= 0.7 * len(called), sorted(called - set(moved))


def test_a_denoiser_without_such_layers_is_refused(monkeypatch):
    pipe = tiny_wan_pipeline()
    monkeypatch.setattr("unlearning_adapters.building.video.sites._reads_video", lambda *_: False)
    with pytest.raises(SiteError, match='No layer that reads video tokens was found in WanPipeline.*scope="word"'):
        find_video_sites(pipe)
