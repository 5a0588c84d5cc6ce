"""Targets in the embedded world: prompts with known truth, and prompts that ask for two bodies."""

from dataclasses import replace

import numpy as np

from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.errors import ConceptError
from unlearning_adapters.evaluation.arms.generate import ClipRequest
from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite
from unlearning_adapters.shapeworld.world.captions import compose_pair, draw_wording, is_held_out
from unlearning_adapters.shapeworld.world.prompts import PREFIX, find_factor
from unlearning_adapters.shapeworld.world.scenes import FACTORS, sample_scene

from .target import Target, target_of

SEED = 2028  # of the prompts
FILLERS = {"shape": "shape"}  # what stands where the concept's word is left out; others leave a sentence without one


def shapeworld_target(value: str, count: int, seed: int = SEED) -> Target:
    """Return the target of a value of the embedded world, such as "red".

    Args:
        value: The value.
        count: Prompts of each kind.
        seed: Seed of the prompts and of their noise.
    """
    factor = find_factor(value)
    suite = shapeworld_suite(value, 2 * count, seed)  # half as many paraphrases as prompts
    try:
        pairs = tuple((pair.unsafe, pair.safe) for pair in load_concept(f"{PREFIX}{value}").pairs)
    except ConceptError:  # a value without a shipped concept
        pairs = ()
    target = target_of(suite, pairs, count, FILLERS.get(factor, ""))
    return replace(target, together=prompts_of_two(value, count, seed) if factor in ("colour", "shape") else ())


def reference_value(value: str) -> str:
    """Return another value of the same factor: a concept that was not erased."""
    values = FACTORS[find_factor(value)]
    return values[(values.index(value) + 2) % len(values)]


def second_value(value: str) -> str:
    """Return a value of another factor, of which a shipped concept can be stacked."""
    return "left" if find_factor(value) == "shape" else "circle"


def prompts_of_two(value: str, count: int, seed: int) -> tuple[ClipRequest, ...]:
    """Draw captions of two bodies that training never saw; the first named has the value."""
    rng, factor, requests = np.random.default_rng((seed, 2)), find_factor(value), list[ClipRequest]()
    while len(requests) < count:
        scene = sample_scene(rng, bodies=2, **{factor: value})
        second = scene.bodies[1]
        wording = draw_wording(rng, scene.factors, 0.0, synonyms=False)
        caption = compose_pair(scene, wording, (second.colour, second.shape))
        if is_held_out(caption):
            requests.append(ClipRequest(caption, int(rng.integers(2**31))))
    return tuple(requests)
