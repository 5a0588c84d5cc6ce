"""The embedded worlds by name: which of them a name or a pipeline belongs to."""

from dataclasses import replace
from typing import Any

from unlearning_adapters.pipelines.base_model import base_model_of
from unlearning_adapters.shapeworld.models.generate import generation_of

from .castworld import CASTWORLD
from .shapeworld import SHAPEWORLD
from .suite import Suite
from .world import World

WORLDS = (SHAPEWORLD, CASTWORLD)


def find_value(name: str) -> tuple[World, str] | None:
    """Return the world and the value that a name stands for ("red", "castworld-otto"); None if there is none."""
    for world in WORLDS:
        value = name.removeprefix(f"{world.name}-")
        if value in world.targets and (value != name or world.short_names):
            return world, value
    return None


def world_named(name: str) -> World | None:
    """Return the world with whose name that of a suite, concept or model begins; None if there is none."""
    return next((world for world in WORLDS if name == world.name or name.startswith(f"{world.name}-")), None)


def world_of(pipe: Any) -> World | None:
    """Return the world that a pipeline was trained on, known by its name; None for other pipelines."""
    return world_named(base_model_of(pipe).rpartition("/")[2])


def suite_for(suite: Suite, pipe: Any, **call: Any) -> Suite:
    """Return a suite with further call arguments, and those of a world's model in place of another one's."""
    own = dict(suite.generation) in ({}, *(dict(world.call) for world in WORLDS))
    defaults = generation_of(pipe) if own else {}
    return replace(suite, generation={**(defaults or suite.generation), **call})
