"""Part "implied": hat, umbrella, balloon and fall erased: named, implied, negated and elsewhere, by both scopes."""

from dataclasses import dataclass
from typing import Any

import unlearning_adapters as ua
from unlearning_adapters.shapeworld.cast.scenes import THINGS

from . import counting
from .asked import thing_sets
from .concepts import Target, value_concept
from .store import Cell, Store
from .watch import World, edited, timed


@dataclass(frozen=True)
class Arm:
    """How a thing is erased.

    Args:
        config: Of the build; None builds nothing.
        implied: Whether two of the five pairs are silent in the thing's own setting (`value_pairs`).
        away: Whether neutral prompts leave that setting out.
    """

    config: ua.BuildConfig | None = ua.BuildConfig()
    implied: bool = False
    away: bool = False


ARMS = {
    "base": Arm(None),
    "word": Arm(),
    "word, setting not neutral": Arm(away=True),
    "word, setting not neutral, strength 1.5": Arm(ua.BuildConfig(strength=1.5), away=True),
    "word, implied pairs": Arm(implied=True, away=True),
    "concept": Arm(ua.BuildConfig(scope="concept")),
}


def run_implied(world: World, store: Store, count: int) -> None:
    """Measure what is missing; `count` clips for each thing and way to speak of it."""
    for thing in THINGS:
        for arm in ARMS:
            store.cell("implied", f"{thing}/{arm}", lambda: measure(world, thing, arm, count))  # noqa: B023


def measure(world: World, thing: str, arm: str, count: int) -> Cell:
    """Return what one arm shows of a thing."""
    sets = thing_sets(thing, count)
    prompts = [one for items in sets.values() for one in items]
    base = world.look_at_base(prompts, thing)
    how = ARMS[arm]
    config = how.config
    if config is None:
        return counting.thing_counts(sets, base, base, thing)
    times: dict[str, float] = {}
    # The concept scope makes clips, with the arguments of a call; the word scope records a step of one.
    given: dict[str, Any] = dict(world.call) if config.scope == "concept" else world.build_arguments()
    concept = value_concept(Target(thing, "shown"), implied=how.implied, away=how.away)
    with timed(times, "build"):
        adapter = ua.build_adapter(world.pipe, concept, config, progress=False, call_kwargs=given)
    with edited(world.pipe, [adapter]):
        clips = world.look(prompts, f"{thing}: {arm}")
    found = counting.thing_counts(sets, clips, base, thing)
    return {**found, "strength": adapter.strength, "build seconds": times["build"], "sites": len(adapter.sites)}
