"""Part "single": characters, emblems, motions and styles, each erased alone by the default (things: part "implied")."""

from typing import Any

import unlearning_adapters as ua
from unlearning_adapters.shapeworld.cast.roster import roster

from . import counting
from .asked import Sets, chosen, mass_sets, other_prompts, value_prompts
from .concepts import Target, character_concepts, value_concept
from .store import Cell, Store
from .watch import Clips, World, edited, timed

CHARACTERS = 20
VALUES = (
    *(Target("emblem", value) for value in ("star", "heart", "moon", "bolt")),
    *(Target("motion", value) for value in ("left", "rises", "jumps")),
    *(Target("style", value) for value in ("night", "line")),
)
SHARE = 4  # a concept gets a quarter of the count for each kind of prompt; there are twenty of characters


def run_single(world: World, store: Store, count: int, characters: int = CHARACTERS) -> None:
    """Measure what is missing; `count // 4` clips of each kind for each concept."""
    each = max(1, count // SHARE)
    for place, index in enumerate(chosen(world.able, characters, 20)):
        sets = mass_sets([index], 100 + place, world.able, each)
        name = f"character/{roster()[index].name}"
        concept = character_concepts([index])[0]
        store.cell("single", name, lambda: measure(world, "character", sets, concept, name))  # noqa: B023
    for target in VALUES:
        sets = {"by name": value_prompts(target, 2 * each), "kept": other_prompts(target, 2 * each)}
        name = f"{target.factor}/{target.name}"
        if name not in store.part("single"):
            concept = value_concept(target)
            store.cell("single", name, lambda: measure(world, target.factor, sets, concept, name))  # noqa: B023


def measure(world: World, factor: str, sets: Sets, concept: ua.Concept, name: str) -> Cell:
    """Return what base and default show for one concept."""
    prompts = [one for items in sets.values() for one in items]
    base, times = world.look_at_base(prompts, name), dict[str, float]()
    with timed(times, "build"):
        adapter = ua.build_adapter(world.pipe, concept, progress=False, call_kwargs=world.build_arguments())
    with edited(world.pipe, [adapter]):
        clips = world.look(prompts, name)
    return {
        "base": counts(factor, sets, base, base),
        "word": {**counts(factor, sets, clips, base), "strength": adapter.strength, "build seconds": times["build"]},
    }


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
