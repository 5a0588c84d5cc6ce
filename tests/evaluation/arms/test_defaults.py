"""Controls, references and attacks are the same numbers whatever torch makes by default."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from tiny import tiny_wan_pipeline

from planted import planted
from unlearning_adapters.attacks.kinds.tampering import random_merge
from unlearning_adapters.evaluation.arms.conditions import conditions_of
from unlearning_adapters.evaluation.arms.controls import flip_signs, random_adapter
from unlearning_adapters.evaluation.comparison.site_lora import start_lora
from unlearning_adapters.evaluation.reports.distances import RandomFeatures
from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite
from unlearning_adapters.pipelines.sites import find_sites

PIPE = tiny_wan_pipeline()
ADAPTER = planted(PIPE, "red")
WEIGHT = torch.linspace(-1, 1, 48 * 32).view(48, 32)


def flipped() -> torch.Tensor:
    weight = WEIGHT.clone()
    flip_signs(weight, 0.5, 0)
    return weight


MADE: dict[str, Callable[[], Any]] = {
    "turned adapter": lambda: next(iter(random_adapter(ADAPTER).directions.values())).read,
    "flipped signs": flipped,
    "merged at random": lambda: random_merge(0)(WEIGHT),
    "start of a LoRA": lambda: next(iter(start_lora(PIPE, find_sites(PIPE), 2, 0).factors.values()))[0].detach(),
    "random features": lambda: RandomFeatures().get_buffer("weight"),
}


@pytest.mark.parametrize("name", MADE)
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_any_default_dtype_and_device(name, dtype):
    expected = MADE[name]()
    torch.set_default_dtype(dtype)
    try:
        with torch.device("meta"):
            made = MADE[name]()
    finally:
        torch.set_default_dtype(torch.float32)
    assert made.dtype == expected.dtype and torch.equal(made, expected)


def test_a_denoiser_without_weights_has_conditions() -> None:
    pipe = tiny_wan_pipeline()
    pipe.transformer = torch.nn.Identity()
    suite = shapeworld_suite("red", 1)
    assert conditions_of(pipe, suite, 1)["dtype"] == "float32"
