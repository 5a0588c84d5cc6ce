"""Arms and controls on a tiny pipeline: each state is entered, acts, and is left without a trace."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import forge
import pytest
import torch
from tiny import tiny_wan_pipeline

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept, Pair
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.arm import (
    adapter_arm,
    adapter_hash,
    base_arm,
    negative_prompt_arm,
    reworded_arm,
)
from unlearning_adapters.evaluation.arms.controls import destroyed_arm, flip_signs, random_adapter, random_arm, turn
from unlearning_adapters.evaluation.evaluate import plan_arms
from unlearning_adapters.evaluation.suites.suite import Case, EvaluationPrompt
from unlearning_adapters.runtime.verbs import get_list_unlearning_adapters, load_unlearning_adapter

CONCEPT = Concept("tiny-red", (Pair("a red circle moves left", "a green circle moves left"),), ("a dog walks",))


@pytest.fixture(scope="module")
def pipe() -> Any:
    return tiny_wan_pipeline()


@pytest.fixture(scope="module")
def adapter(pipe: Any) -> UnlearningAdapter:
    return build_adapter(pipe, CONCEPT, BuildConfig(strength=1.2), progress=False)


def weights(pipe: Any) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in pipe.transformer.state_dict().items()}


def shown(pipe: Any, **call: Any) -> torch.Tensor:
    size = {"height": 16, "width": 16, "num_frames": 5, "num_inference_steps": 2, "output_type": "latent"}
    pipe.set_progress_bar_config(disable=True)
    return pipe("a red circle", generator=torch.Generator().manual_seed(0), **{**size, **call}).frames


@contextmanager
def traceless(pipe: Any) -> Iterator[dict[str, torch.Tensor]]:
    before, clip = weights(pipe), shown(pipe)
    yield before
    after = weights(pipe)
    assert all(torch.equal(value, after[name]) for name, value in before.items())
    assert torch.equal(shown(pipe), clip) and get_list_unlearning_adapters(pipe) == {}


def test_attached_and_fused_arms_act_and_leave_no_trace(pipe: Any, adapter: UnlearningAdapter) -> None:
    clips = {}
    for name, fused in (("attached", False), ("fused", True)):
        arm = adapter_arm(adapter, fused=fused)
        assert (arm.part, arm.details["applied"], arm.details["strength"]) == ("edited", name, 1.2)
        with traceless(pipe) as before:
            base = shown(pipe)
            with arm.enter(pipe):
                clips[name] = shown(pipe)
                now = pipe.transformer.state_dict()
                changed = any(not torch.equal(value, now[name]) for name, value in before.items() if name in now)
                assert changed is fused
            assert not torch.equal(clips[name], base)
    assert torch.allclose(clips["attached"], clips["fused"], atol=1e-4)


def test_an_arm_is_left_also_after_an_error(pipe: Any, adapter: UnlearningAdapter) -> None:
    for arm in (adapter_arm(adapter, fused=True), random_arm(adapter), destroyed_arm()):
        with traceless(pipe), pytest.raises(RuntimeError, match="in the middle"), arm.enter(pipe):
            raise RuntimeError("in the middle")


def test_an_edited_pipeline_is_refused(pipe: Any, adapter: UnlearningAdapter) -> None:
    for arm in (adapter_arm(adapter), destroyed_arm()):
        with traceless(pipe):
            load_unlearning_adapter(pipe, adapter)
            with pytest.raises(EvaluationError, match="The pipeline holds the adapter 'tiny-red'"), arm.enter(pipe):
                pass
            pipe.unload_unlearning_adapters()


@pytest.mark.parametrize("rank", [1, 3])
def test_a_random_direction_keeps_rank_norms_and_angles(rank: int) -> None:
    generator = torch.Generator().manual_seed(0)
    read = torch.randn(rank, 32, generator=generator)
    write = torch.linalg.pinv(read).T + 0.0
    direction = Direction(read, write + _beside(read, generator))
    turned = turn(direction, generator)
    before, after = (torch.cat([item.read, item.write]) for item in (direction, turned))
    assert torch.allclose(before @ before.T, after @ after.T, atol=1e-4)
    assert torch.allclose(turned.read @ turned.write.T, torch.eye(rank), atol=1e-4)
    cosine = torch.cosine_similarity(direction.read, turned.read).abs().max()
    assert cosine < 0.9


def _beside(read: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """A part of the write that the read does not see."""
    free = torch.randn(read.shape, generator=generator)
    return free - free @ torch.linalg.pinv(read) @ read


def test_the_random_control_has_the_sites_of_the_adapter(adapter: UnlearningAdapter) -> None:
    control = random_adapter(adapter, seed=1)
    assert control.sites == adapter.sites and control.strength == adapter.strength and not control.lora_B
    assert adapter_hash(control) == adapter_hash(random_adapter(adapter, seed=1)) != adapter_hash(adapter)
    groups = {}
    for site, direction in adapter.directions.items():
        groups.setdefault(id(direction), set()).add(id(control.directions[site]))
    assert all(len(found) == 1 for found in groups.values())


def test_a_destroyed_model_is_another_one_and_comes_back_bit_for_bit(pipe: Any) -> None:
    with traceless(pipe) as before:
        base = shown(pipe)
        with destroyed_arm().enter(pipe):
            now = pipe.transformer.state_dict()
            flipped = [float((now[name] != value).float().mean()) for name, value in before.items() if value.ndim > 1]
            assert all(torch.equal(now[name].abs(), value.abs()) for name, value in before.items())
            assert 0.3 < sum(flipped) / len(flipped) < 0.6
            assert (shown(pipe) - base).abs().mean() > 0.1 * base.abs().mean()
    assert destroyed_arm().part == "control"
    with pytest.raises(EvaluationError, match="above 0 and at most 1, but got 0"):
        destroyed_arm(0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_flipping_signs_twice_restores_every_bit(dtype: torch.dtype) -> None:
    weight = torch.tensor([[0.0, -0.0, 1.5, float("inf")], [float("nan"), -2.0, 1e-40, 3.0]]).to(dtype)
    before = weight.clone().view(torch.uint8)
    flip_signs(weight, 0.7, 3)
    assert not torch.equal(weight.view(torch.uint8), before)
    flip_signs(weight, 0.7, 3)
    assert torch.equal(weight.view(torch.uint8), before)


def test_reference_arms() -> None:
    case = Case("forget", "forget", EvaluationPrompt("A Red circle on bright red sand, reddish", "a"), 0)
    arm = reworded_arm(("red", "bright red"))
    assert arm.text(case) == "A circle on sand, reddish" and arm.part == "reference"
    assert reworded_arm(("red",), "blue").text(case) == "A blue circle on bright blue sand, reddish"
    assert base_arm().text(case) == case.prompt.text
    assert negative_prompt_arm("red").call == {"negative_prompt": "red"}
    with pytest.raises(EvaluationError, match="needs `words`"):
        reworded_arm(())


def test_arms_are_planned_with_controls() -> None:
    adapter = forge.planted_adapter(forge.small_weights())
    planned = plan_arms(adapter, {"rival": adapter_arm(adapter, part="reference")}, strengths=[0.5])
    assert list(planned) == ["base", "edited", "strength-0.5", "rival", "random", "destroyed"]
    assert [arm.part for arm in planned.values()] == ["base", "edited", "sweep", "reference", "control", "control"]
    assert list(plan_arms(adapter, {}, controls=False)) == ["base", "edited"]
    assert list(plan_arms(None, {"mine": base_arm_as("edited")})) == ["base", "mine", "destroyed"]
    with pytest.raises(EvaluationError, match="Nothing is measured"):
        plan_arms(None, {})
    with pytest.raises(EvaluationError, match="The name 'edited' of an arm is taken"):
        plan_arms(adapter, {"edited": base_arm()})


def base_arm_as(part: str) -> Any:
    from dataclasses import replace

    return replace(base_arm(), part=part)
