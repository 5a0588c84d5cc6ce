"""Held-out prompts with known truth: what the model is asked for when it is measured."""

from dataclasses import dataclass

import numpy as np

from unlearning_adapters.errors import ConfigError

from .captions import compose_pair, draw_wording, held_out_caption, is_held_out
from .scenes import FACTORS, sample_scene


@dataclass(frozen=True)
class LabelledPrompt:
    """A prompt and the factor values that it asks for.

    Args:
        prompt: One sentence that names all four factors.
        factors: The value of each factor.
        seed: Seed of its noise; the same in every arm of a comparison.
    """

    prompt: str
    factors: dict[str, str]
    seed: int


def find_factor(value: str) -> str:
    """Return the factor that a value belongs to, such as "colour" for "red"; `ConfigError` if there is none."""
    for name, values in FACTORS.items():
        if value in values:
            return name
    names = ", ".join(value for values in FACTORS.values() for value in values)
    raise ConfigError(f"ShapeWorld has no value {value!r}. Known values: {names}.")


def draw_prompts(
    count: int, seed: int, synonyms: bool = False, templates: str = "any", **fixed: str
) -> list[LabelledPrompt]:
    """Draw held-out prompts; factors that are not fixed cycle evenly through their values.

    Args:
        count: Number of prompts.
        seed: Seed of the draw.
        synonyms: Whether synonyms such as "crimson" may stand for a value's own name.
        templates: "any" or "held-out", as in `captions.held_out_caption`.
        fixed: Factor values that all prompts share, such as `colour="red"`.

    Returns:
        `count` prompts, all of sentences that training never saw.
    """
    rng = np.random.default_rng((seed, *(ord(letter) for value in fixed.values() for letter in value)))
    free = [name for name in FACTORS if name not in fixed]
    columns = {name: rng.permutation([FACTORS[name][i % len(FACTORS[name])] for i in range(count)]) for name in free}
    prompts = []
    for index in range(count):
        factors = {name: fixed.get(name) or str(columns[name][index]) for name in FACTORS}
        caption = held_out_caption(rng, factors, synonyms, templates)
        prompts.append(LabelledPrompt(caption, factors, int(rng.integers(2**31))))
    return prompts


def neighbour_prompts(count: int, seed: int, target: str, synonyms: bool = False) -> list[LabelledPrompt]:
    """Draw prompts that name the other values of the target's factor, evenly, `count` in all."""
    factor = find_factor(target)
    others = [value for value in FACTORS[factor] if value != target]
    shares = [count // len(others) + (index < count % len(others)) for index in range(len(others))]
    groups = [
        draw_prompts(share, seed + 1, synonyms, **{factor: value}) for share, value in zip(shares, others, strict=True)
    ]
    return [prompt for prompts in groups for prompt in prompts]


def prompts_of_two(value: str, count: int, seed: int) -> list[LabelledPrompt]:
    """Draw captions of two bodies that training never saw; the first named has the value, a colour or a shape.

    Args:
        value: The value; of a factor that all bodies of a scene share there are no such prompts.
        count: Number of prompts.
        seed: Seed of the draw.
    """
    rng, factor, prompts = np.random.default_rng((seed, 2)), find_factor(value), list[LabelledPrompt]()
    while factor in ("colour", "shape") and len(prompts) < count:
        scene = sample_scene(rng, bodies=2, **{factor: value})
        second = scene.bodies[1]
        wording = draw_wording(rng, scene.factors, 0.0, synonyms=False)
        caption = compose_pair(scene, wording, (second.colour, second.shape))
        if is_held_out(caption):
            prompts.append(LabelledPrompt(caption, scene.factors, int(rng.integers(2**31))))
    return prompts
