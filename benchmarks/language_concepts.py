"""Concepts in real language for `shapeworld-language`: few pairs of different phrases, and all others held out."""

from collections.abc import Callable

import numpy as np

from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.shapeworld.world.captions import TRAIN_TEMPLATES, Wording, compose, draw_wording
from unlearning_adapters.shapeworld.world.phrases import TRAINED
from unlearning_adapters.shapeworld.world.prompts import find_factor
from unlearning_adapters.shapeworld.world.scenes import FACTORS

from .language_prompts import phrases_of

PAIRS = 5
NEUTRAL = 160


def language_concept(value: str, seed: int = 0) -> Concept:
    """Return the concept of a factor value: five pairs, each with another phrase for it.

    The phrases are the value's own name, two other words and two paraphrases, drawn at random; the safe sides name the
    other values by their own names in turn. Neutral prompts name the other values by all of their phrases.

    Args:
        value: A factor value, such as "red".
        seed: Seed of the draw.

    Returns:
        The concept; `concept.words` holds the phrases of its pairs.

    Raises:
        ConfigError: If no factor has the value, or it has fewer than five phrases, as backgrounds have.
    """
    factor = find_factor(value)
    if (count := len(TRAINED[factor][value])) < PAIRS:
        raise ConfigError(f"Expected a value with {PAIRS} phrases or more, but the {factor} {value!r} has {count}.")
    rng = np.random.default_rng((seed, *(ord(letter) for letter in value)))
    phrases = [
        *phrases_of(value, "plain"),
        *(str(word) for word in rng.choice(phrases_of(value, "synonyms"), 2, replace=False)),
        *(str(phrase) for phrase in rng.choice(phrases_of(value, "paraphrases"), 2, replace=False)),
    ]
    others = [other for other in FACTORS[factor] if other != value]
    pairs = []
    for index, phrase in enumerate(phrases):
        say = _sentence(rng, factor, value)
        pairs.append(Pair(unsafe=say(phrase), safe=say(TRAINED[factor][others[index % len(others)]][0])))
    return Concept(
        f"shapeworld-language-{value}",
        pairs=tuple(pairs),
        neutral=tuple(_neutral(rng, factor, others) for _ in range(NEUTRAL)),
        words=tuple(phrases),
        description=f"The {factor} {value} in the ShapeWorld model that reads real language.",
    )


def _sentence(rng: np.random.Generator, factor: str, value: str) -> Callable[[str], str]:
    """Return a function that says one sentence with any phrase for the value."""
    factors = {name: value if name == factor else str(rng.choice(FACTORS[name])) for name in FACTORS}
    drawn = draw_wording(rng, factors, 0.0, True)
    template = TRAIN_TEMPLATES[rng.integers(len(TRAIN_TEMPLATES))]

    def say(phrase: str) -> str:
        words = {**drawn.words, factor: phrase}
        return compose(template, Wording(words, drawn.verb, drawn.any_shape, drawn.filler, drawn.setting))

    return say


def _neutral(rng: np.random.Generator, factor: str, others: list[str]) -> str:
    factors = {name: str(rng.choice(others if name == factor else FACTORS[name])) for name in FACTORS}
    wording = draw_wording(rng, factors, 0.1, True, TRAINED, 0.2)
    return compose(TRAIN_TEMPLATES[rng.integers(len(TRAIN_TEMPLATES))], wording)
