"""Part "mass": 1 to 100 of the cast erased by each arm, five draws of who it is."""

from collections.abc import Collection, Sequence
from typing import Any

from unlearning_adapters.errors import UnlearningError
from unlearning_adapters.shapeworld.cast.roster import roster

from . import counting
from .arms import ARMS, build_arm, call_costs, file_bytes
from .asked import Sets, mass_sets, who_is_erased
from .concepts import NEUTRAL, character_concepts, named_half
from .store import Cell, Store
from .watch import Clips, World, edited

SIZES = (1, 5, 10, 30, 100)
FACTOR = "character"


def run_mass(
    world: World, store: Store, count: int, draws: int, sizes: Sequence[int] = SIZES, arms: Collection[str] = ARMS
) -> None:
    """Measure what is missing; `count` clips of each kind for each size, over all draws."""
    for size in sizes:
        for draw in range(draws):
            erased = who_is_erased(size, draw, world.able)
            sets = mass_sets(erased, draw, world.able, -(-count // draws))
            name = f"{size}/{draw}"
            missing = [
                arm
                for arm in ("base", *arms_of(size))
                if arm in {"base", *arms} and f"{name}/{arm}" not in store.part("mass")
            ]
            if not missing:
                continue
            base = world.look_at_base([one for prompts in sets.values() for one in prompts], f"mass {name}")
            store.cell("mass", f"{name}/base", lambda: count_cell(sets, base, base, erased))  # noqa: B023
            for arm in missing:
                if arm != "base":
                    store.cell("mass", f"{name}/{arm}", lambda: measure(world, sets, erased, arm, name))  # noqa: B023


def arms_of(size: int) -> list[str]:
    """Return the arms of a size: one character is one file in any case."""
    return [arm for arm in ARMS if size > 1 or arm != "ridge, one file"]


def measure(world: World, sets: Sets, erased: Sequence[int], arm: str, name: str) -> Cell:
    """Return the counts and the costs of one arm; the error that it ended with if it cannot be built."""
    try:
        how = ARMS[arm]
        concepts = character_concepts(
            erased,
            neutral=NEUTRAL * (2 if how.retained else 1),
            described=how.described,
            common=how.common,
            retained=how.retained,
        )
        adapters, seconds = build_arm(world, arm, concepts)
    except UnlearningError as error:
        return {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"}
    cell: dict[str, Any] = {
        "build seconds": seconds,
        "bytes": file_bytes(adapters),
        "rank": max(one.rank for one in adapters) if len(adapters) == 1 else len(adapters),
        "strength": sum(one.strength for one in adapters) / len(adapters),
    }
    if name.endswith("/0"):  # what a call costs does not depend on who is erased
        cell["call"] = call_costs(world, adapters)
    with edited(world.pipe, adapters):
        clips = world.look([one for prompts in sets.values() for one in prompts], f"mass {name}: {arm}")
    return {**count_cell(sets, clips, world.base, erased), **cell}


def count_cell(sets: Sets, clips: Clips, base: Clips, erased: Sequence[int]) -> Cell:
    """Return the counts of one arm.

    `another` are clips by name of the erased that show another one who is erased; `kept, named` those of kept
    characters whom every arm's neutral prompts may name, and `kept, never named` those whom only arms that name all
    who are kept do.
    """
    names = {roster()[index].name for index in erased}
    may_be_named = {roster()[index].name for index in named_half(erased)}
    by_name, kept = sets["by name"], sets["kept"]
    every = list({(one.prompt, one.seed): one for prompts in sets.values() for one in prompts}.values())
    found = counting.shown(by_name, clips, FACTOR)
    any_erased = counting.has(by_name, clips, FACTOR, names)
    return {
        "by name": found,
        "another": {"hits": any_erased["hits"] - found["hits"], "count": found["count"]},
        "by description": counting.shown(sets["by description"], clips, FACTOR),
        "kept": counting.right(kept, clips, FACTOR),
        "kept, named": counting.right([one for one in kept if one.factors[FACTOR] in may_be_named], clips, FACTOR),
        "kept, never named": counting.right(
            [one for one in kept if one.factors[FACTOR] not in may_be_named], clips, FACTOR
        ),
        "by kept": counting.by_value(kept, clips, FACTOR),
        "look-alikes": counting.right(sets["look-alikes"], clips, FACTOR),
        "rest": counting.rest_of_scene(by_name, clips, FACTOR),
        "valid": counting.valid(every, clips),
        "drift": counting.drift(kept, clips, base),
    }
