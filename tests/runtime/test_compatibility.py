import warnings
from dataclasses import replace

import pytest
import torch
from tiny import tiny_wan_pipeline

from planted import planted, snapshot
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.errors import BaseMismatchError, FuseError, SiteError
from unlearning_adapters.runtime.compatibility import check_sites, warn_of_other_base, with_stock_factors
from unlearning_adapters.runtime.verbs import load_unlearning_adapter


@pytest.fixture(scope="module")
def pipe():
    return tiny_wan_pipeline()


def renamed(adapter, change):
    directions = {change(site): value for site, value in adapter.directions.items()}
    return replace(adapter, directions=directions, lora_B={})


def test_directions_come_by_component_and_path(pipe):
    adapter = planted(pipe)
    assert {f"transformer.{path}" for path in check_sites(pipe, adapter)["transformer"]} == set(adapter.sites)


@pytest.mark.parametrize(
    ("change", "text"),
    [
        (
            lambda site: site.replace("blocks.1", "blocks.9"),
            r"'red' does not fit: 2 of the 4 sites are missing\. .*blocks\.9",
        ),
        (
            lambda site: site.replace("attn2", "attn7"),
            r"all 4 sites are missing.*'transformer\.blocks\.0\.attn7\.to_k'",
        ),
        (lambda site: site.replace("transformer", "unet"), r"all 4 sites are missing.*WanPipeline has the denoisers"),
        (lambda site: site.replace("to_k", "norm_k"), r"2 of the 4 sites are missing.*'tiny/wan'; load that base"),
    ],
)
def test_missing_sites_are_counted_and_nothing_is_changed(pipe, change, text):
    adapter, before = renamed(planted(pipe), change), snapshot(pipe)
    with pytest.raises(SiteError, match=text):
        load_unlearning_adapter(pipe, adapter)
    assert snapshot(pipe) == before


def test_other_widths_are_named(pipe):
    wide, narrow = planted(tiny_wan_pipeline(heads=6)), planted(pipe)
    with pytest.raises(
        BaseMismatchError, match=r"in_features = 72 at transformer\.blocks\.0\.attn2\.to_k, and .* 48\."
    ):
        load_unlearning_adapter(pipe, wide)
    taller = replace(narrow, lora_B={site: torch.zeros(60, 1) for site in narrow.sites})
    with pytest.raises(BaseMismatchError, match=r"out_features = 60 .* and the pipeline has 48"):
        load_unlearning_adapter(pipe, taller)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_the_base_that_it_was_built_on_raises_no_warning(dtype):
    adapter = planted(tiny_wan_pipeline())
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_base(tiny_wan_pipeline(dtype=dtype), adapter)


def test_another_base_or_a_changed_file_is_said_in_one_line(pipe):
    adapter = planted(tiny_wan_pipeline(seed=3))
    with pytest.warns(UserWarning, match=r"'red' was built on other weights .*'tiny/wan'.* deviate by \d+%") as caught:
        load_unlearning_adapter(tiny_wan_pipeline(), adapter)
    assert len(caught) == 1 and "\n" not in str(caught[0].message)
    own = planted(pipe)
    swapped = {site: Direction(d.read.roll(1, 0), d.write) for site, d in own.directions.items()}
    tampered = replace(own, directions=swapped, lora_B={site: -factor for site, factor in own.lora_B.items()})
    with pytest.warns(UserWarning, match="or its file was changed"):
        warn_of_other_base(pipe, tampered)


def test_weights_that_say_nothing_are_not_compared():
    pipe = tiny_wan_pipeline()
    adapter = planted(tiny_wan_pipeline(seed=3))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_other_base(pipe, replace(adapter, lora_B={}))
        pipe.load_unlearning_adapter(planted(pipe, "fused"))
        pipe.fuse_unlearning_adapters()
        warn_of_other_base(pipe, adapter)


def test_a_denoiser_that_still_knows_the_concept_is_named():
    adapter = planted(tiny_wan_pipeline())
    with pytest.warns(
        UserWarning, match="edits transformer only; transformer_2 of WanPipeline still knows the concept"
    ):
        load_unlearning_adapter(tiny_wan_pipeline(two_denoisers=True), adapter)


def test_missing_stock_factors_are_computed_from_the_weights_before_any_edit():
    pipe = tiny_wan_pipeline()
    adapter = planted(pipe, strength=1.3, rank=2)
    bare = with_stock_factors(pipe, replace(adapter, lora_B={}))
    for site, factor in adapter.lora_B.items():
        torch.testing.assert_close(bare.lora_B[site], factor)
    assert with_stock_factors(pipe, adapter).lora_B == adapter.lora_B
    pipe.load_unlearning_adapter(planted(pipe, "fused", seed=2))
    pipe.fuse_unlearning_adapters()
    beside = with_stock_factors(pipe, replace(adapter, lora_B={}))
    assert all(torch.equal(beside.lora_B[site], factor) for site, factor in bare.lora_B.items())
    with torch.no_grad():
        pipe.transformer.blocks[0].attn2.to_k.weight.add_(1)
    with pytest.raises(FuseError, match=r"blocks\.0\.attn2\.to_k changed after it was fused"):
        with_stock_factors(pipe, replace(adapter, lora_B={}))
