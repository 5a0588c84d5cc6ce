"""`Method`: the record of one way to find a direction."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import BuildConfig

from .rows import GroupRows


@dataclass(frozen=True)
class Range:
    """The values of a setting that a search tries.

    Args:
        low: The smallest; two integers make a range of integers.
        high: The largest.
        log: Whether values are drawn on a logarithmic scale.
    """

    low: float
    high: float
    log: bool = False


@dataclass(frozen=True)
class Method:
    """One way to find the direction of a concept.

    Args:
        find: From what a group of sites reads to the direction; only a control uses the generator.
        needs_neutral: Whether it protects neutral prompts, so that a build without them warns.
        needs_gram: Whether it reads `GroupRows.gram`, which takes the weights of the sites.
        calibrates: Whether `read . x` is a part of the concept. Then a build calibrates the strength on pairs that are
            left out, and warns of pairs that survive and of neutral prompts that change.
        find_with_extra_rows: The same with a further row for each pair of the given indices, which the direction of
            all pairs hardly removes; None if the method cannot do that.
        searched: The settings that a search varies beside the strength, and their values; None excludes the method from
            searches.
        control: Whether it is a control, which must not erase.
    """

    find: Callable[[GroupRows, BuildConfig, torch.Generator], Direction]
    needs_neutral: bool = False
    needs_gram: bool = False
    calibrates: bool = False
    find_with_extra_rows: Callable[[GroupRows, BuildConfig, Sequence[int]], Direction] | None = None
    searched: Mapping[str, Range] | None = None
    control: bool = False
