"""Prompts that the benchmark reports, held out from training, from the pairs and from its own tuning; who is erased."""

from collections.abc import Collection, Iterable, Sequence

import numpy as np

from unlearning_adapters.shapeworld.cast.prompts import draw_cast_prompts, draw_thing_prompts
from unlearning_adapters.shapeworld.cast.roster import is_described, look_alikes, roster
from unlearning_adapters.shapeworld.cast.sprites import OBJECTS
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt

from .concepts import KINDS, Target

TUNE, REPORT, WHO = 5302, 5303, 5304  # seeds of prompts to tune on, of those that are reported, and of who is erased
REPEATS = 4  # prompts of one kept character, where there are enough for four characters
MOST_ERASED = 0.8  # of the characters that the base shows; the others are asked for as kept ones
Sets = dict[str, list[LabelledPrompt]]


def character_prompts(index: int, count: int, form: str = "name", seed: int = REPORT) -> list[LabelledPrompt]:
    """Draw prompts of one character; each character has scenes and noise of its own."""
    return draw_cast_prompts(count, 1000 * seed + index, form, character=index) if count else []


def spread(characters: Sequence[int], count: int, form: str = "name", repeats: int = 1) -> list[LabelledPrompt]:
    """Draw prompts of some characters, `repeats` of each until there are `count`, and more if there are too few."""
    if not characters:
        return []
    used = list(characters[: max(1, count // repeats)])
    shares = [count // len(used) + (place < count % len(used)) for place in range(len(used))]
    return [
        prompt
        for index, share in zip(used, shares, strict=True)
        for prompt in character_prompts(index, share, form)
    ]  # fmt: skip


def who_is_erased(size: int, draw: int, able: Collection[int]) -> list[int]:
    """Draw who is erased: from those whom the base shows, as long as a fifth of them is left to be kept."""
    rng = np.random.default_rng((WHO, size, draw))
    shown = rng.permutation(sorted(able)).tolist()
    others = rng.permutation([index for index in range(len(roster())) if index not in set(able)]).tolist()
    first = shown[: min(size, int(MOST_ERASED * len(shown)))]
    return sorted([*first, *others[: size - len(first)]])


def mass_sets(erased: Sequence[int], draw: int, able: Collection[int], count: int) -> Sets:
    """Draw the prompts of one set of erased characters; only those whom the base shows are asked for.

    Args:
        erased: Numbers of the erased.
        draw: Number of the draw.
        able: Characters whom the base shows.
        count: Prompts of each kind.

    Returns:
        "by name" and "by description" of the erased, "kept" of all others, and "look-alikes" of the erased that are
        kept themselves.
    """
    rng = np.random.default_rng((WHO, 1, len(erased), draw))
    gone = rng.permutation([index for index in erased if index in able]).tolist()
    kept = rng.permutation([index for index in sorted(able) if index not in erased]).tolist()
    alike = {other for index in gone for other in look_alikes(index)}
    repeats = REPEATS if count >= REPEATS * REPEATS else 1
    return {
        "by name": spread(gone, count),
        "by description": spread([index for index in gone if is_described(index)], count, "description"),
        "kept": spread(kept, count, repeats=repeats),
        "look-alikes": spread([index for index in kept if index in alike], count),
    }


def value_prompts(target: Target, count: int) -> list[LabelledPrompt]:
    """Draw prompts that ask for an emblem, motion or style; emblems on each object in turn."""
    place = [value for values in KINDS.values() for value in values].index(target.value)
    seed = 1000 * REPORT + 200 + 10 * place
    if target.factor != "emblem":
        return draw_cast_prompts(count, seed, **{target.factor: target.value})
    shares = [count // len(OBJECTS) + (number < count % len(OBJECTS)) for number in range(len(OBJECTS))]
    return [
        prompt
        for number, share in enumerate(shares)
        for prompt in draw_cast_prompts(share, seed + number, emblem=target.value, object=OBJECTS[number])
    ]


def other_prompts(target: Target, count: int) -> list[LabelledPrompt]:
    """Draw prompts that ask for other values of the factor, evenly as far as the draw goes."""
    place = [value for values in KINDS.values() for value in values].index(target.value)
    drawn = draw_cast_prompts(8 * count, 1000 * REPORT + 600 + place)
    return [one for one in drawn if one.factors[target.factor] not in (target.value, "none")][:count]


def thing_sets(thing: str, count: int) -> Sets:
    """Draw prompts that name a thing, imply it, negate it, and are silent in other settings."""
    mentions = ("named", "implied", "negated", "elsewhere")
    return {mention: draw_thing_prompts(count, REPORT, thing, mention) for mention in mentions}


def chosen(able: Iterable[int], count: int, salt: int) -> list[int]:
    """Draw some characters whom the base shows and training describes, no two of one group of look-alikes."""
    rng, groups = np.random.default_rng((WHO, salt)), dict[int, int]()
    for index in rng.permutation(sorted(able)).tolist():
        if is_described(index):
            groups.setdefault(roster()[index].group, index)
    return list(groups.values())[:count]
