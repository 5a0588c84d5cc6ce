"""Suites of the embedded world: held-out prompts whose truth is known, for ShapeWorld's judge."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from unlearning_adapters.concepts.concept import load_concept
from unlearning_adapters.concepts.wording import find_word
from unlearning_adapters.errors import ConceptError
from unlearning_adapters.evaluation.metrics import FORGET, GENERIC, NEIGHBOUR, PARAPHRASE
from unlearning_adapters.shapeworld.models.generate import GENERATION, generation_of
from unlearning_adapters.shapeworld.world.captions import WORDS
from unlearning_adapters.shapeworld.world.prompts import (
    PREFIX,
    LabelledPrompt,
    draw_prompts,
    find_factor,
    neighbour_prompts,
)

from .suite import EvaluationPrompt, PromptSet, Suite

SEED = 2027  # of the prompts; the demo and the benchmark use other ones


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
    words = tuple(WORDS[factor][value])
    try:
        pairs = load_concept(value).pairs
    except ConceptError:  # a value without a shipped concept
        pairs = ()
    sides = dict.fromkeys(side for pair in pairs for side in (pair.unsafe, pair.safe))
    call = dict(GENERATION if not generation else generation)
    return Suite(f"{PREFIX}{value}", tuple(sets), {factor: value}, call, words, tuple(sides), sensitive=False)


def suite_for(suite: Suite, pipe: Any, **call: Any) -> Suite:
    """Return a suite with further call arguments, and those of a ShapeWorld model in place of the embedded one's."""
    defaults = generation_of(pipe) if dict(suite.generation) in ({}, GENERATION) else {}
    return replace(suite, generation={**(defaults or suite.generation), **call})


def prompt_set(name: str, role: str, prompts: Sequence[LabelledPrompt]) -> PromptSet:
    """Return labelled prompts as a set of a suite, numbered from 1, with their seeds and their truth."""
    rows = tuple(
        EvaluationPrompt(item.prompt, f"{index:04d}", item.seed, dict(item.factors))
        for index, item in enumerate(prompts, start=1)
    )
    return PromptSet(name, role, rows)


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
