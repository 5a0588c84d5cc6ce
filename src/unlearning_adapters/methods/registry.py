"""The methods by name: from the rows that a group of sites reads to a direction and a strength."""

from collections.abc import Mapping
from importlib import import_module

import torch

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import METHODS as ENTRIES
from unlearning_adapters.config import BuildConfig

from .method import Method
from .rows import GroupRows
from .strength import calibrate_strength, concept_differences


def _load(record: str) -> Method:
    file, _, name = record.partition(":")
    method: Method = getattr(import_module(f".{file}", __package__), name)
    return method


METHODS: Mapping[str, Method] = {name: _load(entry.record) for name, entry in ENTRIES.items()}


def find_direction(rows: GroupRows, config: BuildConfig, generator: torch.Generator) -> Direction:
    """Return the direction of a concept in the input space of a group of sites, by the method of `config`.

    Args:
        rows: What the sites read.
        config: Method and its settings.
        generator: Source of randomness of a control.

    Raises:
        ConceptError: If the two sides of the pairs read alike.
    """
    return METHODS[config.method].find(rows, config, generator)


def find_strength(rows: GroupRows, config: BuildConfig, generator: torch.Generator) -> float:
    """Return the strength of `config`; without one, that which removes the concept from left-out pairs, or 1.

    Args:
        rows: What the sites read.
        config: Method and its settings.
        generator: Source of randomness of a control.
    """
    if config.strength is not None:
        return config.strength
    if not METHODS[config.method].calibrates:
        return 1.0
    return calibrate_strength(
        concept_differences(rows), lambda others: find_direction(rows.only(others), config, generator)
    )
