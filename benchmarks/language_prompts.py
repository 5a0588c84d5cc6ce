"""Held-out prompts in real language: what `shapeworld-language` is asked for when it is measured."""

from collections.abc import Collection

import numpy as np

from unlearning_adapters.shapeworld.world.captions import TEMPLATES, Wording, compose, draw_wording, is_held_out
from unlearning_adapters.shapeworld.world.phrases import TRAINED, UNSEEN
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt, find_factor
from unlearning_adapters.shapeworld.world.scenes import FACTORS

KINDS = ("plain", "synonyms", "paraphrases", "unseen")


def phrases_of(value: str, kind: str, known: Collection[str] = ()) -> tuple[str, ...]:
    """Return the phrases of a value.

    Args:
        value: A factor value, such as "red".
        kind: "plain" (its own name), "synonyms" (other single words), "paraphrases" (several words), or "unseen"
            (phrases that the denoiser was not trained on).
        known: Phrases to leave out, such as those that an adapter's pairs hold.

    Returns:
        Phrases that the denoiser was trained on, or was not for "unseen".
    """
    factor = find_factor(value)
    trained = TRAINED[factor][value]
    chosen = {
        "plain": trained[:1],
        "synonyms": tuple(phrase for phrase in trained[1:] if " " not in phrase),
        "paraphrases": tuple(phrase for phrase in trained[1:] if " " in phrase),
        "unseen": UNSEEN[factor][value],
    }[kind]
    return tuple(phrase for phrase in chosen if phrase not in known)


def phrase_prompts(value: str, phrases: Collection[str], count: int, seed: int) -> list[LabelledPrompt]:
    """Draw prompts that name a value by the given phrases in turn, and the other factors in training's words.

    Args:
        value: A factor value, such as "red".
        phrases: What stands for it.
        count: Number of prompts.
        seed: Seed of the draw.

    Returns:
        `count` prompts of sentences that training never saw, that name all four factors.
    """
    factor = find_factor(value)
    rng = np.random.default_rng((seed, *(ord(letter) for letter in value)))
    prompts = []
    for index in range(count):
        factors = {name: value if name == factor else str(rng.choice(FACTORS[name])) for name in FACTORS}
        caption = _held_out(rng, factors, factor, tuple(phrases)[index % len(phrases)])
        prompts.append(LabelledPrompt(caption, factors, int(rng.integers(2**31))))
    return prompts


def _held_out(rng: np.random.Generator, factors: dict[str, str], factor: str, phrase: str) -> str:
    while True:
        template = TEMPLATES[rng.integers(len(TEMPLATES))]
        drawn = draw_wording(rng, factors, 0.0, True)
        wording = Wording({**drawn.words, factor: phrase}, drawn.verb, drawn.any_shape, drawn.filler, drawn.setting)
        caption = compose(template, wording)
        if template.held_out or is_held_out(caption):
            return caption
