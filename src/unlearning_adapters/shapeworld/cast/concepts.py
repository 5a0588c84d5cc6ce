"""Concepts of CastWorld: pairs, neutral prompts and held-out prompts for everything that can be erased, by its name.

Pairs and neutral prompts are sentences that training may have read; the evaluation prompts and the neighbours are held
out, and of another draw than those of the suites.
"""

from collections.abc import Sequence
from dataclasses import replace
from difflib import get_close_matches
from functools import lru_cache

import numpy as np

from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.concepts.wording import find_word, leave_out, near_sides

from .captions import WORDS, Mentions, compose, describe, is_trained
from .roster import find_character, roster
from .scenes import IMPLIED, THINGS, CastScene, sample_scene
from .sprites import OBJECTS
from .values import cast_factor, cast_targets, draw_value_prompts, even_shares, other_values, words_of

PREFIX = "castworld-"  # of the names of concepts and suites
SEED = 1700  # of pairs and neutral prompts; 1701 of what is held out
PAIRS = 8
NEUTRAL = 256  # two sentences about each character, before those that name the concept are left out
EVALUATION, NEIGHBOUR_PROMPTS = 24, 12
PLAIN = ("forest", "snow")  # settings that imply nothing


def concept_named(name: str) -> Concept | None:
    """Return the concept that a name stands for, such as "castworld-otto"; None if CastWorld has no such value."""
    value = name.removeprefix(PREFIX)
    return cast_concept(value) if value != name and value in cast_targets() else None


def names_like(name: str) -> list[str]:
    """Return names of CastWorld's concepts for one that is not known: a value without the prefix, or nearly a name."""
    names, plain = [f"{PREFIX}{value}" for value in cast_targets()], name.casefold()
    if plain.startswith(PREFIX):
        return get_close_matches(plain, names, n=3, cutoff=0.85)
    return [f"{PREFIX}{plain}"] if f"{PREFIX}{plain}" in names else []


@lru_cache(maxsize=256)
def cast_concept(value: str, stand_ins: tuple[str, ...] = ()) -> Concept:
    """Return the concept of a character, emblem, thing, motion or style.

    The safe side of a pair is the same sentence with another value of the kind; characters are named. That of a thing
    is the sentence with its negation, or, in a setting that implies nothing, the sentence that is silent about it.

    Args:
        value: Its name, such as "otto" or "hat".
        stand_ins: Values of the same kind that take its place in the safe sides, in turn; none takes the first of
            `other_values` for characters, whose names share nothing, and the first two for others. Things have none.

    Raises:
        ConfigError: If CastWorld has no such value.

    Example:
        >>> cast_concept("otto").target
        {'character': 'otto'}
    """
    factor, words = cast_factor(value), words_of(value)
    rng = np.random.default_rng((SEED, list(cast_targets()).index(value)))
    pairs = draw_pairs(rng, value, stand_ins or other_values(value)[: 1 if factor == "character" else 2])
    sides = [side for pair in pairs for side in (pair.unsafe, pair.safe)]
    kind = "thing" if factor in THINGS else factor
    return Concept(
        f"{PREFIX}{value}",
        pairs,
        neutral=neutral_prompts(words),
        evaluation=[
            text for text in evaluation_prompts(value) if find_word(text, words) and not near_sides(text, sides)
        ],
        neighbours=[text for text in neighbour_prompts(value) if not near_sides(text, sides)],
        description=f"The {kind} {value!r} of CastWorld.",
        target=dict(cast_targets()[value]),
        words=words,
    )


def draw_pairs(rng: np.random.Generator, value: str, stand_ins: Sequence[str]) -> list[Pair]:
    """Draw pairs of training sentences, which differ in the value alone."""
    words, pairs = words_of(value), list[Pair]()
    while len(pairs) < PAIRS:
        number = len(pairs)
        sides = draw_sides(rng, value, stand_ins[number % len(stand_ins)], number)
        fit = all(WORDS[0] <= len(text.split()) <= WORDS[1] and is_trained(text) for text in sides)
        if fit and not find_word(sides[1], words) and sides[0] not in [pair.unsafe for pair in pairs]:
            pairs.append(Pair(*sides))
    return pairs


def draw_sides(rng: np.random.Generator, value: str, other: str, number: int) -> tuple[str, str]:
    """Draw a sentence with a value and the same one without it; not yet checked for its length."""
    factor, seed = cast_factor(value), int(rng.integers(2**31))
    named = frozenset({"motion", "setting"}) | {name for name in ("style", "emblem") if rng.random() < 0.5}
    scene = sample_scene(rng, things=())
    if factor in THINGS:
        return thing_sides(rng, value, scene, named, silent=number % 2 == 1)
    scenes = [with_value(scene, factor, name, rng) for name in (value, other)]
    scenes[1] = replace(scenes[1], object=scenes[0].object)
    # The same seed chooses the same template and, in tables of equal length, the same words.
    first, second = (compose(np.random.default_rng(seed), each, Mentions(-1, named | {factor}, {})) for each in scenes)
    return first, second


def thing_sides(
    rng: np.random.Generator, thing: str, scene: CastScene, named: frozenset[str], silent: bool
) -> tuple[str, str]:
    """Draw a sentence that names a thing, and the same one with its negation or silent about it."""
    seed = int(rng.integers(2**31))
    own = next(setting for setting, implied in IMPLIED.items() if implied == thing)
    scene = replace(scene, setting=str(rng.choice(PLAIN)) if silent else own)
    named = frozenset({"motion", "setting"}) if silent else named  # nothing is said behind the thing
    first, second = (
        compose(np.random.default_rng(seed), scene, Mentions(-1, named, {thing: shown})) for shown in (True, False)
    )
    return first, leave_out(first, words_of(thing)) if silent else second


def with_value(scene: CastScene, factor: str, name: str, rng: np.random.Generator) -> CastScene:
    """Return a scene with another value of a factor; an emblem gets an object that bears it."""
    if factor == "character":
        return replace(scene, character=find_character(name))
    if factor == "emblem":
        return replace(scene, emblem=name, object=scene.object or str(rng.choice(OBJECTS)))
    return replace(scene, **{factor: name})  # type: ignore[arg-type]


def neutral_prompts(words: Sequence[str]) -> tuple[str, ...]:
    """Return training sentences about the whole cast, without those that hold one of the words."""
    return tuple(prompt for prompt in training_sentences() if not find_word(prompt, words))


@lru_cache(maxsize=1)
def training_sentences() -> tuple[str, ...]:
    """Return training sentences about random scenes, two of each character."""
    rng = np.random.default_rng(SEED)
    scenes = [sample_scene(rng, character=index % len(roster())) for index in range(NEUTRAL)]
    return tuple(dict.fromkeys(describe(rng, scene) for scene in scenes))


def evaluation_prompts(value: str) -> list[str]:
    """Draw held-out prompts that name a value; a third of those of a character describe it."""
    forms = {"name": EVALUATION}
    if cast_factor(value) == "character":
        forms = {"name": 2 * EVALUATION // 3, "held-out description": EVALUATION - 2 * EVALUATION // 3}
    drawn = [draw_value_prompts(count, SEED + 1, value, form) for form, count in forms.items()]
    return list(dict.fromkeys(prompt.prompt for prompts in drawn for prompt in prompts))


def neighbour_prompts(value: str) -> list[str]:
    """Draw held-out prompts that name other values of the kind, evenly."""
    others = other_values(value)
    shares = even_shares(NEIGHBOUR_PROMPTS, len(others))
    drawn = [
        draw_value_prompts(share, SEED + 2 + place, other)
        for place, (other, share) in enumerate(zip(others, shares, strict=True))
    ]
    return list(dict.fromkeys(prompt.prompt for prompts in drawn for prompt in prompts))
