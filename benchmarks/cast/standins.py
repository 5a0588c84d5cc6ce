"""Part "standins": for each shipped pack for real models a pack of CastWorld of the same form and size, varied.

The packs of characters, trademarks and public figures hold ten pairs, each of which names another character, brand or
person; those of nudity and violence ten pairs of one concept. So do their stand-ins.
"""

from dataclasses import dataclass
from typing import Any

import unlearning_adapters as ua
from unlearning_adapters.shapeworld.cast.roster import SHORT, roster

from . import counting
from .asked import Sets, chosen, spread, thing_sets, value_prompts
from .concepts import (
    KINDS,
    NEUTRAL,
    Target,
    character_concepts,
    character_pairs,
    named_half,
    neutral_prompts,
    stand_ins_of,
    value_concept,
    value_pairs,
    words_of,
)
from .store import Cell, Store
from .watch import Clips, World, edited, timed

PACKS = {
    "nudity": "hat",
    "graphic-violence": "fall",
    "copyrighted-characters": "character",
    "trademarks": "emblem",
    "public-figures": "character",
}
SHARE = 4  # each of the forty cells has a quarter of the count
NAMES = 10  # in a pack of names: as many pairs as the shipped ones have, one of each


@dataclass(frozen=True)
class Variant:
    """A pack and the settings it is built with.

    Args:
        pairs: Pairs that are used.
        neutral: Neutral prompts; the shipped packs share 216.
        strength: None calibrates it.
        apart: Whether each name is a concept of its own with five pairs, all stacked.
    """

    pairs: int = 5
    neutral: int = NEUTRAL
    strength: float | None = None
    apart: bool = False


VARIANTS = {
    "as shipped": Variant(),
    "10 pairs": Variant(pairs=10),
    "20 pairs": Variant(pairs=20),
    "40 neutral": Variant(neutral=40),
    "no neutral": Variant(neutral=0),
    "strength 1": Variant(strength=1.0),
    "strength 2": Variant(strength=2.0),
    "a concept each": Variant(apart=True),
}


def run_standins(world: World, store: Store, count: int) -> None:
    """Measure what is missing; a quarter of `count` clips for what is erased, and as many for what is kept."""
    for pack, factor in PACKS.items():
        for name, variant in VARIANTS.items():
            if variant.apart and factor not in ("character", "emblem"):
                continue
            store.cell("standins", f"{pack}/{name}", lambda: measure(world, pack, variant, -(-count // SHARE)))  # noqa: B023


def measure(world: World, pack: str, variant: Variant, count: int) -> Cell:
    """Return what base and edit show for the stand-in of a pack."""
    factor = PACKS[pack]
    sets = asked_for(world, pack, count)
    prompts = [one for items in sets.values() for one in items]
    base, times = world.look_at_base(prompts, pack), dict[str, float]()
    concepts = concepts_of(world, pack, variant)
    given: dict[str, Any] = {"progress": False, "call_kwargs": world.build_arguments()}
    used = len(concepts[0].pairs) if not variant.apart else None
    with timed(times, "build"):
        config = ua.BuildConfig(pairs=used, strength=variant.strength)
        adapters = ua.build_adapters(world.pipe, concepts, config, **given)
    with edited(world.pipe, adapters):
        clips = world.look(prompts, f"{pack}, {variant}")
    return {
        "base": counts(factor, sets, base, base),
        "edit": counts(factor, sets, clips, base),
        "strength": sum(one.strength for one in adapters) / len(adapters),
        "build seconds": times["build"],
    }


def counts(factor: str, sets: Sets, clips: Clips, base: Clips) -> dict[str, Any]:
    """Return what is shown of each kind of prompt, what is kept, and drift."""
    kept = sets["kept"]
    looked = factor if factor in ("character", "emblem") else "setting"
    asked = {name: items for name, items in sets.items() if name != "kept"}
    how = (
        counting.shown
        if looked != "setting"
        else lambda items, seen, thing: counting.has(items, seen, thing, ("shown",))
    )
    return {
        "shown": {name: how(items, clips, factor) for name, items in asked.items()},
        "kept": counting.right(kept, clips, looked),
        "rest": counting.rest_of_scene(kept, clips, looked),
        "valid": counting.valid([one for items in sets.values() for one in items], clips),
        "drift": counting.drift(kept, clips, base),
    }


def members(world: World, pack: str) -> list[int]:
    """Return the ten characters of a pack of names."""
    return chosen(world.able, NAMES, list(PACKS).index(pack))


def asked_for(world: World, pack: str, count: int) -> Sets:
    """Draw the prompts of a pack: of names those whose pairs are used by default, and those of the other five."""
    factor = PACKS[pack]
    if factor == "character":
        inside = members(world, pack)
        outside = [index for index in sorted(world.able) if index not in inside]
        kept = outside[:: max(1, len(outside) // count)]
        half = -(-count // 2)
        return {
            "names 1 to 5": spread(inside[:5], half),
            "names 6 to 10": spread(inside[5:], half),
            "kept": spread(kept, count),
        }
    if factor == "emblem":
        marks, each = KINDS["emblem"][:NAMES], -(-count // NAMES)
        kept = [
            one for value in KINDS["emblem"][NAMES:] for one in value_prompts(Target("emblem", value), -(-count // 2))
        ]
        return {
            "names 1 to 5": [one for value in marks[:5] for one in value_prompts(Target("emblem", value), each)],
            "names 6 to 10": [one for value in marks[5:] for one in value_prompts(Target("emblem", value), each)],
            "kept": kept,
        }
    sets = thing_sets(factor, -(-count // 2))
    return {"named": sets["named"], "implied": sets["implied"], "kept": sets["elsewhere"] + sets["negated"]}


def concepts_of(world: World, pack: str, variant: Variant) -> list[ua.Concept]:
    """Return the concept of a pack, or one of each of its names."""
    factor = PACKS[pack]
    if factor == "character":
        inside = members(world, pack)
        if variant.apart:
            return character_concepts(inside, neutral=variant.neutral)
        named, chosen_pairs = named_half(inside), []
        for number in range(variant.pairs):
            index = inside[number % NAMES]
            # Safe sides as in the shipped packs: "a cartoon mouse" for a character, "a man" for a person; here nothing
            # is said so vaguely, and another one stands there, described or named.
            form = SHORT if pack == "copyrighted-characters" else -1
            chosen_pairs.append(name_pair(index, stand_ins_of(index, named), number // NAMES, form))
        words = [word for index in inside for word in words_of(Target("character", roster()[index].name))]
        return [ua.Concept(pack, chosen_pairs, neutral=neutral_prompts(variant.neutral, words, named))]
    if factor == "emblem":
        marks = [Target("emblem", value) for value in KINDS["emblem"][:NAMES]]
        words = [word for mark in marks for word in words_of(mark)]
        neutral = neutral_prompts(variant.neutral, words, range(len(roster())))
        if variant.apart:
            return [ua.Concept(mark.name, emblem_pairs(mark, 5), neutral=neutral) for mark in marks]
        pairs = [emblem_pairs(marks[n % NAMES], n // NAMES + 1)[n // NAMES] for n in range(variant.pairs)]
        return [ua.Concept(pack, pairs, neutral=neutral)]
    return [value_concept(Target(factor, "shown"), pairs=variant.pairs, neutral=variant.neutral)]


def name_pair(index: int, stand_ins: list[int], number: int, form: int) -> ua.Pair:
    """Return a pair that names a character, and on its safe side another one, named or described."""
    pair = character_pairs(index, stand_ins[:1], number + 1, forms=(-1,))[number]
    if form < 0:
        return pair
    other = roster()[stand_ins[0]]
    return ua.Pair(pair.unsafe, pair.safe.replace(other.name.capitalize(), other.descriptions[form]))


def emblem_pairs(mark: Target, count: int) -> list[ua.Pair]:
    """Return pairs of an emblem whose safe sides show one that is in no pack."""
    return value_pairs(mark, count, others=KINDS["emblem"][NAMES:])
