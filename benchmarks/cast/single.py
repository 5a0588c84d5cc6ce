"""Part "single": characters, emblems, motions and styles, each erased alone by the default (things: part "implied")."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import unlearning_adapters as ua
from unlearning_adapters.shapeworld.cast.roster import look_alikes, roster

from . import counting
from .asked import Sets, chosen, mass_sets, other_prompts, value_prompts
from .concepts import DESCRIPTIONS, Target, character_concepts, character_pairs, value_concept
from .store import Cell, Store
from .watch import Clips, World, edited, timed

CHARACTERS = 20
VALUES = (
    *(Target("emblem", value) for value in ("star", "heart", "moon", "bolt")),
    *(Target("motion", value) for value in ("left", "rises", "jumps")),
    *(Target("style", value) for value in ("night", "line")),
)
LANDINGS = {"night": "line", "line": "grain"}  # chosen for "night" on tuning prompts; "flat" does not lead anywhere


def run_single(world: World, store: Store, count: int, characters: int = CHARACTERS) -> None:
    """Measure what is missing; `count` clips of each kind of prompt for all concepts of a kind together."""
    for place, index in enumerate(chosen(world.able, characters, 20)):
        sets = mass_sets([index], 100 + place, world.able, -(-count // characters))
        name = f"character/{roster()[index].name}"
        held = store.part("single").get(name, {})
        arms = {arm: concepts for arm, concepts in character_arms(index).items() if arm not in held}
        if arms:
            store.put("single", name, {**held, **measure(world, "character", sets, arms, name)})
    for target in VALUES:
        each = -(-count // sum(other.factor == target.factor for other in VALUES))
        sets = {"by name": value_prompts(target, each), "kept": other_prompts(target, each)}
        name = f"{target.factor}/{target.name}"
        held = store.part("single").get(name, {})
        arms = {arm: concepts for arm, concepts in value_arms(target).items() if arm not in held}
        if arms:
            store.put("single", name, {**held, **measure(world, target.factor, sets, arms, name)})


def character_arms(index: int) -> dict[str, list[ua.Concept]]:
    """Return the concepts of a character by arm: its name alone, and its descriptions beside it.

    Neutral prompts name every other one of the cast. In two more arms its look-alikes are retained as well, by name and
    by description.
    """
    concepts, alike = character_concepts([index], described=True), look_alikes(index)
    retaining = [concepts[0].retaining([roster()[other].name.capitalize() for other in alike])]
    for concept in concepts[1:]:
        pairs = [pair for other in alike for pair in character_pairs(other, [index], forms=DESCRIPTIONS)]
        retaining.append(replace(concept, neutral=(*dict.fromkeys((*concept.neutral, *(p.unsafe for p in pairs))),)))
    return {
        "word": concepts[:1],
        "word, described too": concepts,
        "word, look-alikes retained": retaining[:1],
        "word, described too, look-alikes retained": retaining,
    }


def value_arms(target: Target) -> dict[str, list[ua.Concept]]:
    """Return the concepts of an emblem, motion or style by arm.

    A style has a second arm, in which one other style stands on all safe sides: a prompt without a style gets any of
    the four, the erased one too.
    """
    arms = {"word": [value_concept(target)]}
    if target.factor == "style":
        arms["word, one safe style"] = [value_concept(target, others=(LANDINGS[target.value],))]
    return arms


def measure(world: World, factor: str, sets: Sets, arms: Mapping[str, Sequence[ua.Concept]], name: str) -> Cell:
    """Return what the base shows, and the default with the concepts of each arm."""
    prompts = [one for items in sets.values() for one in items]
    base = world.look_at_base(prompts, name)
    cell = {"base": counts(factor, sets, base, base)}
    for arm, concepts in arms.items():
        times: dict[str, float] = {}
        with timed(times, "build"):
            adapters = ua.build_adapters(world.pipe, concepts, progress=False, call_kwargs=world.build_arguments())
        with edited(world.pipe, adapters):
            clips = world.look(prompts, f"{name}: {arm}")
        strength = sum(one.strength for one in adapters) / len(adapters)
        cell[arm] = {**counts(factor, sets, clips, base), "strength": strength, "build seconds": times["build"]}
    return cell


def counts(factor: str, sets: Sets, clips: Clips, base: Clips) -> dict[str, Any]:
    """Return the counts of one arm for one concept."""
    kept = sets["kept"]
    found: dict[str, Any] = {
        "by name": counting.shown(sets["by name"], clips, factor),
        "kept": counting.right(kept, clips, factor),
        "by kept": counting.by_value(kept, clips, factor),
        "rest": counting.rest_of_scene(sets["by name"], clips, factor),
        "valid": counting.valid([one for items in sets.values() for one in items], clips),
        "drift": counting.drift(kept, clips, base),
    }
    if factor == "character":
        found["by description"] = counting.shown(sets["by description"], clips, factor)
        found["look-alikes"] = counting.right(sets["look-alikes"], clips, factor)
    return found
