"""Measure what a ShapeWorld pipeline shows: the concept, what surrounds it, and what must survive."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import sqrt
from typing import Any

import numpy as np

from .generate import generate_clips
from .judge import Verdict, judge_clips
from .prompts import LabelledPrompt, draw_prompts, find_factor, neighbour_prompts
from .scenes import FACTORS


def wilson(hits: int, count: int, z: float = 1.96) -> tuple[float, float]:
    """Return the Wilson interval (95 % by default) of a rate; (0, 1) if nothing was counted.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n), E. B. Wilson 1927.
    """
    if count == 0:
        return 0.0, 1.0
    share, extra = hits / count, z * z / count
    middle = share + extra / 2
    half = z * sqrt(share * (1 - share) / count + extra / (4 * count))
    return max(0.0, (middle - half) / (1 + extra)), min(1.0, (middle + half) / (1 + extra))


@dataclass(frozen=True)
class Rate:
    """A share with its counts."""

    hits: int
    count: int

    @property
    def value(self) -> float | None:
        """The share; None if nothing was counted, which is not zero."""
        return self.hits / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson(self.hits, self.count)


@dataclass(frozen=True)
class Suite:
    """The prompts of one evaluation, the same for every arm.

    Args:
        target: The value that is to be forgotten, such as "red".
        concept: Prompts that name it.
        neighbours: Prompts that name the other values of its factor.
    """

    target: str
    concept: tuple[LabelledPrompt, ...]
    neighbours: tuple[LabelledPrompt, ...]

    @classmethod
    def draw(cls, target: str, count: int, seed: int = 0, synonyms: bool = False) -> "Suite":
        """Draw `count` prompts of the concept and as many of its neighbours."""
        factor = find_factor(target)
        concept = draw_prompts(count, seed, synonyms, **{factor: target})
        return cls(target, tuple(concept), tuple(neighbour_prompts(count, seed, target, synonyms)))


@dataclass(frozen=True)
class Arm:
    """What one arm (base, attached, ...) showed.

    Args:
        concept_rate: Share of the valid clips of concept prompts in which the judge sees the concept.
        valid_rate: Share of valid clips among all.
        context_kept: Share of the other three factors that are right in valid clips of concept prompts.
        preservation: Share of neighbour prompts whose own value is shown; a clip that is not valid counts as wrong.
        neighbours: The same for each neighbour.
        displacement: Mean distance that bodies travel in valid clips, in pixels.
        landing: What the judge sees in place of the concept, with counts.
    """

    concept_rate: Rate
    valid_rate: Rate
    context_kept: Rate
    preservation: Rate
    neighbours: Mapping[str, Rate]
    displacement: float
    landing: Mapping[str, int]

    @property
    def worst_neighbour(self) -> Rate:
        """The neighbour that survived least."""
        return min(self.neighbours.values(), key=lambda rate: rate.value if rate.value is not None else 1.0)

    def to_dict(self, base: "Arm") -> dict[str, Any]:
        """Return the numbers as plain JSON types; motion is given relative to the base arm."""
        rates = {
            "concept_rate": self.concept_rate,
            "valid_rate": self.valid_rate,
            "context_kept": self.context_kept,
            "preservation": self.preservation,
            "worst_neighbour": self.worst_neighbour,
        }
        ratio = self.displacement / base.displacement if base.displacement > 0 else None
        return {
            **{name: rate.value for name, rate in rates.items()},
            "motion_ratio": ratio,
            "intervals": {name: [round(x, 4) for x in rate.interval] for name, rate in rates.items()},
            "counts": {name: [rate.hits, rate.count] for name, rate in rates.items()},
            "neighbours": {name: rate.value for name, rate in self.neighbours.items()},
            "landing": dict(self.landing),
        }


def score(suite: Suite, concept: Sequence[Verdict], neighbours: Sequence[Verdict]) -> Arm:
    """Turn the judge's verdicts on the clips of a suite into rates."""
    factor = find_factor(suite.target)
    valid = [(p, v) for p, v in zip(suite.concept, concept, strict=True) if v.valid]
    context = [v.factors[name] == p.factors[name] for p, v in valid for name in FACTORS if name != factor]
    seen = [v.factors[factor] for _, v in valid]
    right: dict[str, list[bool]] = {}
    for prompt, verdict in zip(suite.neighbours, neighbours, strict=True):
        wanted = prompt.factors[factor]
        right.setdefault(wanted, []).append(verdict.valid and verdict.factors[factor] == wanted)
    every = [*concept, *neighbours]
    travel = [verdict.displacement for verdict in every if verdict.valid]
    flat = [hit for hits in right.values() for hit in hits]
    return Arm(
        concept_rate=Rate(seen.count(suite.target), len(seen)),
        valid_rate=Rate(sum(verdict.valid for verdict in every), len(every)),
        context_kept=Rate(sum(context), len(context)),
        preservation=Rate(sum(flat), len(flat)),
        neighbours={value: Rate(sum(hits), len(hits)) for value, hits in right.items()},
        displacement=float(np.mean(travel)) if travel else 0.0,
        landing={value: seen.count(value) for value in dict.fromkeys(seen)},
    )


def measure(pipe: Any, suite: Suite, progress: str | None = None, **settings: Any) -> Arm:
    """Generate all clips of a suite and score them."""
    clips = generate_clips(pipe, [*suite.concept, *suite.neighbours], progress=progress, **settings)
    verdicts = judge_clips(clips)
    return score(suite, verdicts[: len(suite.concept)], verdicts[len(suite.concept) :])


def accuracy(pipe: Any, prompts: Sequence[LabelledPrompt], **settings: Any) -> dict[str, Rate]:
    """Return, for prompts that name all factors, the share of clips with each factor right, and of valid clips."""
    verdicts = judge_clips(generate_clips(pipe, prompts, **settings))
    rates = {"valid": Rate(sum(verdict.valid for verdict in verdicts), len(verdicts))}
    for name in FACTORS:
        hits = sum(v.factors[name] == p.factors[name] for p, v in zip(prompts, verdicts, strict=True))
        rates[name] = Rate(hits, len(verdicts))
    return rates
