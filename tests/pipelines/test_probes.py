"""Sites that meet the timestep: told from the others, recorded in several steps, and edited for all of them."""

from collections import Counter
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

import pytest
import torch
from cases import llm, ltx
from planted_words import planted_pipeline
from torch import Tensor

from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.methods.refusal import concept_rows
from unlearning_adapters.pipelines.activations import record
from unlearning_adapters.pipelines.hooks import count_calls, on_input
from unlearning_adapters.pipelines.probes import few_steps, find_shared_inputs
from unlearning_adapters.pipelines.running.partial_run import PartialRun
from unlearning_adapters.pipelines.sites import denoisers, find_sites, site_module
from unlearning_adapters.shapeworld.models.load import load_shapeworld
from whole import SAFE, UNSAFE, changed, concept, plant_words, state

LTX_SITE = "transformer.transformer_blocks.0.attn2.to_k"
KANDINSKY_SITE = "transformer.visual_transformer_blocks.0.cross_attention.to_key"
FAST = {"num_inference_steps": 4}


def ltx_2_3() -> tuple[Any, dict[str, Any]]:
    """LTX-2.3: scale and shift of the timestep act on what the text's keys and values read."""
    (case,) = (case for case in ltx.CASES if str(case) == "LTX2Pipeline (as LTX-2.3)")
    return case.make(), {**case.call, **FAST}


def kandinsky() -> tuple[Any, dict[str, Any]]:
    """Kandinsky 5 with blocks of text that are on, as in a trained model, and meet the timestep."""
    pipe = llm.make_kandinsky_5()
    maker = torch.Generator().manual_seed(0)
    for name, weight in pipe.transformer.named_parameters():
        if "text_modulation" in name and not weight.any():
            weight.normal_(std=0.2, generator=maker)
    return pipe, {**llm.KANDINSKY_CALL, **FAST}


MOVING = pytest.mark.parametrize(("make", "site"), [(ltx_2_3, LTX_SITE), (kandinsky, KANDINSKY_SITE)])


def inputs_in(pipe: Any, site: str, prompt: str, call: Mapping[str, Any]) -> list[Tensor]:
    """What a site reads in each call of a run."""
    seen: list[Tensor] = []
    with ExitStack() as stack:
        on_input(stack, site_module(pipe, site), lambda rows: seen.append(rows.detach()[0].clone()))
        PartialRun(pipe, call, any_video=True)([prompt], [0])
    return seen


@MOVING
def test_sites_that_meet_the_timestep_are_found_and_the_pipeline_is_left_as_it_was(make: Any, site: str) -> None:
    pipe, call = make()
    inputs_in(pipe, site, UNSAFE, call)  # the first run of all makes the models add attributes of their own
    before, random_state = state(pipe), torch.get_rng_state()
    moving = find_shared_inputs(pipe, find_sites(pipe, "text"), UNSAFE, call_kwargs=call).moving
    assert moving[site] == (0, 2, 3)  # of four calls, the first and the last among them
    assert changed(before, state(pipe)) == set()
    assert torch.equal(torch.get_rng_state(), random_state)


@pytest.mark.parametrize("two", [False, True])
def test_other_sites_are_settled_by_two_calls_of_each_denoiser(two: bool) -> None:
    pipe = planted_pipeline(two_denoisers=two)
    networks = denoisers(pipe)
    with ExitStack() as stack:
        calls: Counter[str] = count_calls(stack, pipe, networks, lambda _name, _calls: None)
        assert (
            find_shared_inputs(pipe, find_sites(pipe, "text"), UNSAFE, call_kwargs={"num_inference_steps": 50}).moving
            == {}
        )
    assert sum(calls.values()) == (4 if two else 2)


def test_hidden_sites_are_not_measured_and_a_cache_is_none_of_its_business() -> None:
    pipe, call = ltx_2_3()
    assert find_shared_inputs(pipe, find_sites(pipe, ("text", "hidden")), UNSAFE, call_kwargs=call).moving == {}
    assert few_steps({"num_inference_steps": 50, "height": 64}) == {"num_inference_steps": 4, "height": 64}
    assert few_steps({"num_inference_steps": 2}) == {"num_inference_steps": 2}
    assert few_steps({"num_inference_steps": 50, "sigmas": [1.0]})["num_inference_steps"] == 50
    assert few_steps(None) == {}


@MOVING
def test_both_sides_of_a_pair_are_compared_at_the_same_step(make: Any, site: str) -> None:
    pipe, call = make()
    plant_words(pipe)
    (found,) = (item for item in find_sites(pipe, "text") if item.name == site)
    recorded = record(pipe, [UNSAFE, SAFE], [found], calls={site: (0, 2, 3)}, seed=[0, 0], call_kwargs=call,
                      progress=False)  # fmt: skip
    for prompt, rows in zip((UNSAFE, SAFE), recorded.by_call[0], strict=True):
        every = inputs_in(pipe, site, prompt, call)
        for step, kept in zip((0, 2, 3), rows, strict=True):
            assert torch.cdist(kept, every[step]).amin(dim=1).max() < 1e-3  # rounding
            assert torch.cdist(kept, every[1]).amin(dim=1).max() > 1e-2
    (alone,) = record(pipe, [UNSAFE], [found], call_kwargs=call, progress=False).rows
    assert torch.allclose(alone[0], recorded.by_call[0][0][0], atol=1e-5)


def test_the_adapter_takes_the_concept_out_at_all_steps() -> None:
    """Less of the concept is left than by a build of the first step, over all steps and at the last one."""
    (pipe, call), site = ltx_2_3(), LTX_SITE
    plant_words(pipe)
    case = next(case for case in ltx.CASES if case.pipeline == "LTX2Pipeline")
    config = BuildConfig("ridge", sites=site, strength=1.0, batch_size=4)
    several = build_adapter(pipe, concept(case), config, progress=False, call_kwargs=call)
    once = build_adapter(pipe, concept(case), config, progress=False, call_kwargs={**call, "num_inference_steps": 1})
    unsafe, safe = (inputs_in(pipe, site, prompt, call) for prompt in (UNSAFE, SAFE))
    left = {}
    for name, adapter in (("several", several), ("once", once)):
        direction = adapter.directions[site]
        gaps = [(pair.concept - pair.counterpart) for pair in map(concept_rows, unsafe, safe)]
        left[name] = [float((gap - (direction.read[0] @ gap) * direction.write[0]).norm() / gap.norm()) for gap in gaps]
    assert sum(left["several"]) < 0.95 * sum(left["once"])
    assert max(left["several"]) < 0.9 * max(left["once"])
    assert left["several"][-1] < left["once"][-1]


def test_a_build_passes_through_the_whole_denoiser_once() -> None:
    """What it finds out about shared inputs in its first call spares all later ones the way behind the first block."""
    pipe = load_shapeworld()
    concept, calls = load_concept("shapeworld-red"), Counter[str]()
    with ExitStack() as stack:
        for name, block in (("first", pipe.transformer.blocks[0]), ("last", pipe.transformer.blocks[-1])):
            on_input(stack, block.attn2.to_k, lambda _rows, name=name: calls.update([name]))
        build_adapter(pipe, concept, BuildConfig(strength=1.0), progress=False, call_kwargs={"max_sequence_length": 32})
    prompts = 2 * 5 + len(concept.neutral) + 1  # guidance's empty prompt
    assert calls["last"] == 1
    assert calls["first"] >= 2 + prompts // BuildConfig().batch_size


def test_known_leaders_change_no_row() -> None:
    pipe = load_shapeworld()
    sites = find_sites(pipe, "text")
    feeds = find_shared_inputs(pipe, sites, UNSAFE)
    assert feeds.leaders.keys() == {site.name for site in sites}
    found, told = (record(pipe, [UNSAFE, SAFE], sites, leaders=x, progress=False) for x in (None, feeds.leaders))
    assert dict(feeds.leaders) == found.leaders == told.leaders
    assert all(torch.equal(*rows) for rows in zip(found.rows[0], told.rows[0], strict=True))


def test_shapeworld_is_recorded_as_ever() -> None:
    """No site of it moves, so that its builds are the same to the bit as from the first step alone."""
    pipe = load_shapeworld()
    pair = load_concept("shapeworld-red").pairs[0]
    sites = find_sites(pipe, "text")
    assert find_shared_inputs(pipe, sites, pair.unsafe).moving == {}
    plain, given = (record(pipe, [pair.unsafe, pair.safe], sites, calls=calls, progress=False) for calls in (None, {}))
    assert plain.by_call == given.by_call == {}
    assert all(torch.equal(*rows) for rows in zip(plain.rows[0], given.rows[0], strict=True))
