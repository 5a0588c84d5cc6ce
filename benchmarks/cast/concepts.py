"""Concepts of CastWorld for the benchmark: pairs and neutral prompts from sentences that training may have read.

Both sides of a pair are one sentence with another value.
"""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.concepts.wording import find_word
from unlearning_adapters.shapeworld.cast.captions import (
    EMBLEM_NAMES,
    MOTION_PHRASES,
    NEGATIONS,
    STYLE_PHRASES,
    THING_PHRASES,
    WORDS,
    Mentions,
    compose,
    describe,
    is_trained,
)
from unlearning_adapters.shapeworld.cast.roster import LONG, SHORT, is_described, look_alikes, roster
from unlearning_adapters.shapeworld.cast.scenes import IMPLIED, MOTIONS, SETTINGS, STYLES, THINGS, sample_scene
from unlearning_adapters.shapeworld.cast.sprites import EMBLEMS, OBJECTS

SEED = 5301  # of pairs and neutral prompts; reported prompts have another
PAIRS, NEUTRAL = 5, 216  # as the shipped packs are used by default, and as many neutral prompts as they share
# What stands for a character in its pairs: -1 is its name. Name and descriptions are concepts of their own: in one, of
# tuning seeds, they share no direction, the strength is 2, and names lose 2.5 times what they hold (1.2 times apart).
NAMES = (-1,)
DESCRIPTIONS = (SHORT, LONG, SHORT, SHORT, LONG)
STEMS = {"hat": ("hat",), "umbrella": ("umbrella",), "balloon": ("balloon",), "fall": ("fall", "falls")}
KINDS = {"emblem": EMBLEMS, "motion": MOTIONS, "style": STYLES}


@dataclass(frozen=True)
class Target:
    """What a concept erases.

    Args:
        factor: "character", "emblem", "motion", "style" or a thing.
        value: Of that factor; "shown" for things.
    """

    factor: str
    value: str

    @property
    def name(self) -> str:
        """The value, or the thing."""
        return self.factor if self.factor in THINGS else self.value


def character_target(index: int) -> Target:
    """Return the target of a character by its number."""
    return Target("character", roster()[index].name)


def words_of(target: Target) -> tuple[str, ...]:
    """Return what no neutral prompt may say."""
    if target.factor == "character":
        character = next(one for one in roster() if one.name == target.value)
        return (character.name, *character.descriptions)
    if target.factor in THINGS:
        return STEMS[target.factor]
    if target.factor == "emblem":
        return (EMBLEM_NAMES.get(target.value, target.value),)
    return {"motion": MOTION_PHRASES, "style": STYLE_PHRASES}[target.factor][target.value]


def character_pairs(
    index: int,
    stand_ins: Sequence[int],
    count: int = PAIRS,
    seed: int = SEED,
    forms: Sequence[int] = NAMES,
    common: str = "",
) -> list[Pair]:
    """Draw pairs of a character.

    Args:
        index: Number in the roster.
        stand_ins: Characters who take its place in the safe sides, in turn.
        count: Number of pairs.
        seed: Of the draw.
        forms: What stands for both in the pairs, in turn; a character whom training never describes is named.
        common: Word that takes its place in place of a character, such as "an animal".
    """
    rng, pairs = np.random.default_rng((seed, 1, index)), list[Pair]()
    for number in range(count):
        form = forms[number % len(forms)] if is_described(index) else -1
        values = {"character": (index, stand_ins[number % len(stand_ins)])}
        pairs.append(draw_pair(rng, values, form, [pair.unsafe for pair in pairs]))
        if common:
            own = (roster()[index].name, *roster()[index].descriptions)[form + 1]
            safe = re.sub(re.escape(own), common, pairs[-1].unsafe, flags=re.IGNORECASE)
            pairs[-1] = Pair(pairs[-1].unsafe, safe)
    return pairs


def value_pairs(
    target: Target, count: int = PAIRS, seed: int = SEED, *, implied: bool = False, others: Sequence[str] = ()
) -> list[Pair]:
    """Draw pairs of an emblem, motion, style or thing.

    The safe sides hold two other values in turn, the next ones if `others` gives none. A thing is named in a setting
    that does not bring it along, and its safe sides are silent. With `implied` the last two of five name neither: the
    unsafe side is silent in the thing's own setting, and the safe side says that it is not there.
    """
    factor, pairs = target.factor, list[Pair]()
    rng = np.random.default_rng((seed, 2, *target.name.encode()))
    for number in range(count):
        skip = [pair.unsafe for pair in pairs]
        if factor in THINGS:
            own = implied and number % PAIRS >= 3
            pairs.append(thing_pair(rng, factor, own, skip))
            continue
        values = KINDS[factor]
        places = others or [values[(values.index(target.value) + step) % len(values)] for step in (1, 2)]
        pairs.append(draw_pair(rng, {factor: (target.value, places[number % len(places)])}, skip=skip))
    return pairs


def thing_pair(rng: np.random.Generator, thing: str, own: bool, skip: Sequence[str]) -> Pair:
    """Draw a pair of a thing: silent against negated in its own setting, or named against silent in another one."""
    home = next(setting for setting, implied in IMPLIED.items() if implied == thing)
    settings = [home] if own else [setting for setting in SETTINGS if setting not in IMPLIED]
    while True:
        (speaks,) = draw_sides(rng, {"setting": (str(rng.choice(settings)),)}, things={thing: not own})
        phrases = (NEGATIONS if own else THING_PHRASES)[thing]
        silent = next(speaks.replace(f" {phrase}", "") for phrase in phrases if f" {phrase}" in speaks)
        unsafe, safe = (silent, speaks) if own else (speaks, silent)
        if len(silent.split()) >= WORDS[0] and unsafe not in skip:
            return Pair(unsafe, safe)


def draw_pair(
    rng: np.random.Generator, values: dict[str, tuple[Any, Any]], form: int = -1, skip: Sequence[str] = ()
) -> Pair:
    """Draw a pair whose sides differ in values of a scene; unsafe sides of `skip` are there already."""
    while True:
        unsafe, safe = draw_sides(rng, values, form)
        if unsafe != safe and unsafe not in skip:
            return Pair(unsafe, safe)


def draw_sides(
    rng: np.random.Generator,
    values: Mapping[str, tuple[Any, ...]],
    form: int = -1,
    things: Mapping[str, bool] | None = None,
) -> list[str]:
    """Draw one training sentence, said of several scenes.

    Args:
        rng: Source of randomness.
        values: Fields of the scene that are set, with their value in each of the scenes.
        form: What stands for the character, -1 for its name.
        things: What it says of things; nothing by default.
    """
    count = len(next(iter(values.values())))
    while True:
        scene = sample_scene(rng, things=(), **({"emblem": "", "object": ""} if form >= 0 else {}))
        if "emblem" in values:
            scene = replace(scene, object=scene.object or str(rng.choice(OBJECTS)))
        named = {"character", "motion", "setting", *values} | {n for n in ("style", "emblem") if rng.random() < 0.5}
        seed = int(rng.integers(2**31))
        sides = [
            # The same seed chooses the same template, and the same place in each table of phrases.
            compose(
                np.random.default_rng(seed),
                replace(scene, **{name: each[side] for name, each in values.items()}),
                Mentions(form, frozenset(named), dict(things or {})),
            )
            for side in range(count)
        ]
        if all(WORDS[0] <= len(side.split()) <= WORDS[1] and is_trained(side) for side in sides):
            return sides


def neutral_prompts(
    count: int, words: Sequence[str], cast: Sequence[int], seed: int = SEED, avoid: str | None = None
) -> tuple[str, ...]:
    """Draw neutral prompts: training sentences without some words, in which some of the cast appear.

    Args:
        count: Number of prompts.
        words: What they do not say.
        cast: Characters who appear, by number.
        seed: Of the draw.
        avoid: Setting in which none of them is; None allows all.
    """
    rng, prompts = np.random.default_rng((seed, 3)), dict[str, None]()
    while len(prompts) < count:
        scene = sample_scene(rng, character=int(rng.choice(list(cast))))
        text = describe(rng, scene)
        if scene.setting != avoid and not find_word(text, words, whole=False):
            prompts[text] = None
    return tuple(prompts)


def named_half(erased: Sequence[int]) -> list[int]:
    """Return the kept characters whom a build may name: of each group of look-alikes every other one."""
    return [index for index in range(len(roster())) if index % 2 == 0 and index not in erased]


def kept_names(erased: Sequence[int]) -> list[int]:
    """Return all kept characters."""
    return [index for index in range(len(roster())) if index not in erased]


def stand_ins_of(index: int, named: Sequence[int], seed: int = SEED) -> list[int]:
    """Return who takes a character's place: one who is described, of another group, and may be named.

    One and not several: names share nothing, and what an edit leads to in between is nobody.
    """
    others = [one for one in named if is_described(one) and one != index and one not in look_alikes(index)]
    return [int(np.random.default_rng((seed, 4, index)).choice(others))]


def character_concepts(
    erased: Sequence[int],
    *,
    neutral: int = NEUTRAL,
    described: bool = False,
    common: str = "",
    retained: bool = False,
    seed: int = SEED,
) -> list[Concept]:
    """Return concepts of some characters, which share neutral prompts that name none of them.

    Args:
        erased: Numbers of the characters.
        neutral: Number of neutral prompts.
        described: Whether each whom training describes has a second concept, of its descriptions.
        common: Word that takes the place of all; without one each has a stand-in.
        retained: Whether neutral prompts name all others, in place of every other one of them.
        seed: Of the draw.
    """
    named = kept_names(erased) if retained else named_half(erased)
    words = [word for index in erased for word in words_of(character_target(index))]
    shared = neutral_prompts(neutral, words, named, seed) if neutral else ()
    concepts = []
    for index in erased:
        for forms in (NAMES, DESCRIPTIONS) if described and is_described(index) else (NAMES,):
            name = roster()[index].name + (" described" if forms is DESCRIPTIONS else "")
            pairs = character_pairs(index, stand_ins_of(index, named, seed), PAIRS, seed, forms, common)
            concepts.append(Concept(name, pairs, neutral=shared))
    return concepts


def value_concept(
    target: Target,
    *,
    pairs: int = PAIRS,
    neutral: int = NEUTRAL,
    implied: bool = False,
    away: bool = False,
    others: Sequence[str] = (),
    seed: int = SEED,
) -> Concept:
    """Return the concept of an emblem, motion, style or thing.

    Args:
        target: What it erases.
        pairs: Number of pairs.
        neutral: Number of neutral prompts.
        implied: Of a thing, whether two of five pairs only imply it.
        away: Of a thing, whether neutral prompts leave its setting out.
        others: What the safe sides hold in turn; of an emblem, motion or style.
        seed: Of the draw.
    """
    home = next((setting for setting, thing in IMPLIED.items() if thing == target.factor), None)
    words, cast = words_of(target), range(len(roster()))
    return Concept(
        target.name,
        value_pairs(target, pairs, seed, implied=implied, others=others),
        neutral=neutral_prompts(neutral, words, cast, seed, home if away else None) if neutral else (),
    )


def joint_concept(concepts: Sequence[Concept], name: str = "cast") -> Concept:
    """Return one concept with the pairs of several that share their neutral prompts."""
    return Concept(name, [pair for one in concepts for pair in one.pairs], neutral=concepts[0].neutral)
