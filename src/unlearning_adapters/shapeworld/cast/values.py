"""What can be erased of CastWorld: any character, emblem, thing, motion or style; its words and its prompts."""

from collections.abc import Mapping
from functools import lru_cache

import numpy as np

from unlearning_adapters.errors import ConfigError
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt

from .captions import EMBLEM_NAMES, MOTION_PHRASES, STYLE_PHRASES, THING_PHRASES
from .prompts import draw_cast_prompts, draw_thing_prompts
from .roster import SIBLINGS, find_character, roster
from .scenes import MOTIONS, STYLES, THINGS
from .sprites import EMBLEMS, OBJECTS

NEIGHBOURS = 6  # other characters, or other emblems, that a suite asks for
STEP = 5  # groups of look-alikes from one of them to the next


@lru_cache
def cast_targets() -> Mapping[str, Mapping[str, str]]:
    """Return the factor and the value of everything that can be erased, by name: {"hat": {"hat": "shown"}, ...}."""
    by_factor = {
        "character": [character.name for character in roster()],
        "emblem": EMBLEMS,
        "motion": MOTIONS,
        "style": STYLES,
    }
    named = {name: {factor: name} for factor, names in by_factor.items() for name in names}
    return {**named, **{thing: {thing: "shown"} for thing in THINGS}}


def cast_factor(value: str) -> str:
    """Return the factor of a value: "character" for "otto", "hat" for "hat"; `ConfigError` if there is none."""
    targets = cast_targets()
    if value not in targets:
        kinds = f"emblems {', '.join(EMBLEMS)}; things {', '.join(THINGS)}; motions {', '.join(MOTIONS)}; "
        raise ConfigError(
            f"CastWorld has no value {value!r}. Known: {len(roster())} characters, such as {roster()[0].name}; "
            f"{kinds}styles {', '.join(STYLES)}."
        )
    return next(iter(targets[value]))


def other_values(value: str) -> tuple[str, ...]:
    """Return values of the same kind that must survive; of characters, six of other groups of look-alikes."""
    factor = cast_factor(value)
    if factor == "character":
        index, count = find_character(value), len(roster())
        # One place further in the group at each step, so that siblings of every place take part.
        numbers = [(index + k * (SIBLINGS * STEP + 1)) % count for k in range(1, NEIGHBOURS + 1)]
        return tuple(roster()[number].name for number in numbers)
    kind: tuple[str, ...] = {"emblem": EMBLEMS, "motion": MOTIONS, "style": STYLES}.get(factor, THINGS)
    start = kind.index(value)
    return (kind[start + 1 :] + kind[:start])[:NEIGHBOURS]


def words_of(value: str) -> tuple[str, ...]:
    """Return the words and phrases by which prompts name a value, the plainest first."""
    factor = cast_factor(value)
    if factor == "character":
        character = roster()[find_character(value)]
        return (character.name, *character.descriptions)
    if factor == "emblem":
        return (EMBLEM_NAMES.get(value, value),)
    return {"motion": MOTION_PHRASES, "style": STYLE_PHRASES}.get(factor, THING_PHRASES)[value]


def draw_value_prompts(count: int, seed: int, value: str, form: str = "name") -> list[LabelledPrompt]:
    """Draw held-out prompts that name a value.

    Args:
        count: Number of prompts.
        seed: Seed of the draw.
        value: A character, emblem, thing (in the setting that implies it), motion or style.
        form: For characters, as in `draw_cast_prompts`.

    Returns:
        `count` prompts, whose factors hold what each asks for.
    """
    factor = cast_factor(value)
    if factor in THINGS:
        return draw_thing_prompts(count, seed, value, "named")
    if factor == "character":
        return draw_cast_prompts(count, seed, form, character=find_character(value))
    if factor == "emblem":
        shares = even_shares(count, len(OBJECTS))
        return [
            prompt
            for number, (share, kind) in enumerate(zip(shares, OBJECTS, strict=True))
            for prompt in any_characters(share, seed + 1000 * number, form, emblem=value, object=kind)
        ]
    return any_characters(count, seed, form, **{factor: value})


def any_characters(count: int, seed: int, form: str, **fixed: str) -> list[LabelledPrompt]:
    """Draw prompts about characters from all of the cast, also where there are few prompts."""
    cast = np.random.default_rng(seed).permutation(len(roster()))
    drawn = [
        draw_cast_prompts(1, 10_000 * seed + number, form, character=int(cast[number % len(cast)]), **fixed)
        for number in range(count)
    ]
    return [prompt for prompts in drawn for prompt in prompts]


def even_shares(count: int, parts: int) -> list[int]:
    """Return `count` in `parts` whole numbers that differ by one at most, the larger ones first."""
    return [len(part) for part in np.array_split(np.arange(count), parts)]
