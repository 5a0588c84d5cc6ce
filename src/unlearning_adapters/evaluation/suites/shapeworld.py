"""Suites of the embedded world: held-out prompts whose truth is known, for ShapeWorld's judge."""

from collections.abc import Mapping
from typing import Any

from unlearning_adapters.concepts.wording import find_word
from unlearning_adapters.evaluation.metrics import FORGET, GENERIC, NEIGHBOUR, PARAPHRASE
from unlearning_adapters.shapeworld.models.generate import GENERATION
from unlearning_adapters.shapeworld.world.captions import WORDS
from unlearning_adapters.shapeworld.world.prompts import (
    LabelledPrompt,
    draw_prompts,
    find_factor,
    neighbour_prompts,
    prompts_of_two,
)
from unlearning_adapters.shapeworld.world.scenes import FACTORS

from .suite import EvaluationPrompt, PromptSet, Suite
from .world import SEED, World, prompt_set, sides_of


def shapeworld_suite(
    value: str,
    clips: int = 24,
    seed: int = SEED,
    paraphrases: bool = True,
    generation: Mapping[str, Any] | None = None,
    synonyms: bool = False,
) -> Suite:
    """Return the suite of a value of the embedded world, such as "red".

    Its sets: "forget" names the value with its own word, "synonyms" with other words (crimson), "neighbours" names the
    other values of its factor evenly, and "generic" leaves the factor out ("a circle moves left").

    Args:
        value: The value that is to be forgotten.
        clips: Prompts of each of "forget" and "neighbours"; the other sets have half as many.
        seed: Seed of the prompts and of their noise.
        paraphrases: Whether to add the sets "synonyms" and "generic".
        generation: Call arguments of the pipeline; None takes those of the embedded model.
        synonyms: Whether "forget" and "neighbours" may name a value by other words than its own.
    """
    factor = find_factor(value)
    half = max(1, clips // 2)
    fixed: dict[str, Any] = {factor: value}
    sets = [
        prompt_set("forget", FORGET, draw_prompts(clips, seed, synonyms, **fixed)),
        prompt_set("neighbours", NEIGHBOUR, neighbour_prompts(clips, seed, value, synonyms)),
    ]
    if paraphrases:
        if others := synonym_prompts(value, half, seed + 2):
            sets.append(prompt_set("synonyms", PARAPHRASE, others))
        if factor != "background":
            sets.append(_generic(factor, half, seed + 3))
    name, call = SHAPEWORLD.concept_name(value), dict(GENERATION if not generation else generation)
    words = tuple(WORDS[factor][value])
    return Suite(name, tuple(sets), {factor: value}, call, words, sides_of(name), sensitive=False)


def synonym_prompts(value: str, count: int, seed: int) -> list[LabelledPrompt]:
    """Draw prompts that name a value by another word than its own; none if it has no other word."""
    factor = find_factor(value)
    first, *others = WORDS[factor][value]
    if not others:
        return []
    items = draw_prompts(8 * count, seed, synonyms=True, **{factor: value})
    return [item for item in items if find_word(item.prompt, others) and not find_word(item.prompt, [first])][:count]


def _generic(factor: str, count: int, seed: int) -> PromptSet:
    """Draw prompts that leave the factor out; their truth names only what they ask for."""
    prompts = []
    for index, item in enumerate(draw_prompts(count, seed), start=1):
        others = {name: value for name, value in item.factors.items() if name != factor}
        motion = f" moves {others['motion']}" if "motion" in others else " is shown"
        thing = " ".join([others[name] for name in ("colour", "shape") if name in others]) or "shape"
        thing = thing if "shape" in others else f"{thing} shape"
        text = f"a {thing}{motion} on a {others['background']} background"
        prompts.append(EvaluationPrompt(text, f"{index:04d}", item.seed, others))
    return PromptSet("generic", GENERIC, tuple(prompts))


def reference_value(value: str) -> str:
    """Return another value of the same factor: a concept that was not erased."""
    values = FACTORS[find_factor(value)]
    return values[(values.index(value) + 2) % len(values)]


def second_value(value: str) -> str:
    """Return a value of another factor; the shipped concept of this value can be stacked on the target's adapter."""
    return "left" if find_factor(value) == "shape" else "circle"


SHAPEWORLD = World(
    name="shapeworld",
    title="ShapeWorld",
    targets={value: {factor: value} for factor, values in FACTORS.items() for value in values},
    call=GENERATION,
    detectors=("shapes", "validity", "motion"),
    suite=shapeworld_suite,
    reference=reference_value,
    second=second_value,
    filler=lambda value: "shape" if find_factor(value) == "shape" else "",
    together=prompts_of_two,
    short_names=True,
)
