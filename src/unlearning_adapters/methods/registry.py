"""The methods by name: from the rows that a group of sites reads to a direction and a strength."""

from collections.abc import Mapping

import torch

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import BuildConfig

from .control import RANDOM
from .cure import CURE
from .leace import LEACE
from .method import Method
from .paper import CPCA, MEAN, PCA
from .ridge import RIDGE
from .rows import GroupRows
from .strength import calibrate_strength, concept_differences
from .uce import RECE, UCE

# In the order in which a search offers them: the numbers of its seeded trials rest on it.
METHODS: Mapping[str, Method] = {
    "ridge": RIDGE,
    "cpca": CPCA,
    "mean": MEAN,
    "pca": PCA,
    "leace": LEACE,
    "uce": UCE,
    "rece": RECE,
    "cure": CURE,
    "random": RANDOM,
}


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
