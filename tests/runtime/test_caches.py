"""Adapters beside the caches of diffusers, in each order: the clip, its repetition, and what stays when they go."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from caches import BLOCKS, ORDERS, STEPS, STRENGTH, pipeline, run, sample
from diffusers import FirstBlockCacheConfig, MagCacheConfig, PyramidAttentionBroadcastConfig, TaylorSeerCacheConfig

from planted import lora_that_reads, planted

CALLS = 2 * STEPS  # two branches of guidance


def first_block(pipe: Any) -> None:
    pipe.transformer.enable_cache(FirstBlockCacheConfig(threshold=1e9))


def pyramid(pipe: Any) -> None:
    config = PyramidAttentionBroadcastConfig(
        spatial_attention_block_skip_range=2,
        cross_attention_block_skip_range=2,
        spatial_attention_timestep_skip_range=(0, 1000),
        cross_attention_timestep_skip_range=(0, 1000),
        current_timestep_callback=lambda: pipe.current_timestep,
    )
    pipe.transformer.enable_cache(config)


def mag(pipe: Any) -> None:
    ratios = [1.0] * STEPS
    pipe.transformer.enable_cache(MagCacheConfig(num_inference_steps=STEPS, mag_ratios=ratios, retention_ratio=0.2))


def taylor(pipe: Any) -> None:
    pipe.transformer.enable_cache(TaylorSeerCacheConfig(cache_interval=2, disable_cache_before_step=1, max_order=1))


def disable(pipe: Any) -> None:
    pipe.transformer.disable_cache()


CACHES = {"FirstBlockCache": first_block, "PAB": pyramid, "MagCache": mag, "TaylorSeer": taylor}


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("name", CACHES)
def test_a_cached_clip_is_that_of_edited_weights(name: str, order: str) -> None:
    found = run(order, CACHES[name], disable)
    assert found["moved"] > 1e-3
    told = {key: found[key] for key in ("right", "again", "unloaded", "cached", "bare")}
    assert told == dict.fromkeys(told, True), found
    if name in ("FirstBlockCache", "PAB", "MagCache"):
        assert max(found["calls"][1:]) < CALLS and len(found["calls"]) == BLOCKS, "the cache saves nothing"


@pytest.mark.parametrize("name", CACHES)
def test_a_lora_of_others_stays_beneath_a_cache(name: str) -> None:
    """It reads what the adapter removes; afterwards it is active as before, and the clip has the same bits."""
    pipe = pipeline()
    adapter = planted(pipe)
    pipe.load_lora_weights(lora_that_reads(adapter, pipe), adapter_name="style")
    CACHES[name](pipe)
    styled = sample(pipe)
    pipe.load_unlearning_adapter(adapter, strength=STRENGTH)
    edited = sample(pipe)
    assert not torch.allclose(edited, styled, atol=1e-3) and torch.equal(sample(pipe), edited)
    pipe.unload_unlearning_adapters()
    assert torch.equal(sample(pipe), styled) and pipe.get_active_adapters() == ["style"]
    disable(pipe)
    assert pipe.get_active_adapters() == ["style"]
