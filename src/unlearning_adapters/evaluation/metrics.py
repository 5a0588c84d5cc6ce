"""What one arm of an evaluation showed, as rates: the concept, what surrounds it, and what must survive.

Erasure counts only valid clips: noise and blank frames do not count as clips without the concept.
"""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from .rates import Rate, entropy, harmonic_mean

UNKNOWN = "unknown"
FORGET, PARAPHRASE, NEIGHBOUR, UNRELATED, GENERIC = ROLES = (
    "forget", "paraphrase", "neighbour", "unrelated", "generic",
)  # fmt: skip
RATES = ("concept_rate", "valid_rate", "context_kept", "preservation", "worst_neighbour")
GATED_RATES = ("erased", "paraphrase_erased", "generic_rate", "error_rate")


@dataclass(frozen=True)
class Sample:
    """What one clip shows.

    Args:
        role: What its prompt is for, one of `ROLES`.
        valid: Whether it is a clip that a detector can read, and not noise, blank or destroyed.
        present: Whether the concept is seen; None if no detector can tell.
        labels: What was seen, by factor, such as {"colour": "green"}; "unknown" where it is not clear.
        truth: What the prompt asks for, by factor.
        motion: How much moves; None if nobody measured it.
        frames: For each frame that was scored, whether the concept is seen.
        error: Whether generating or detecting failed; such a clip is not valid.
        key: Prompt set, prompt and seed, the same in every arm.
    """

    role: str
    valid: bool
    present: bool | None = None
    labels: Mapping[str, str] = field(default_factory=dict)
    truth: Mapping[str, str] = field(default_factory=dict)
    motion: float | None = None
    frames: tuple[bool, ...] = ()
    error: bool = False
    key: tuple[str, str, int] = ("", "", 0)

    def erased(self, factor: str | None) -> bool:
        """Tell whether the clip is valid, is known, and does not show the concept."""
        readable = factor is None or self.labels.get(factor, UNKNOWN) != UNKNOWN
        return self.valid and readable and self.present is False

    def right(self, factor: str | None) -> bool | None:
        """Tell whether it shows what its prompt asks for; None if the prompt has no truth.

        A clip that is not valid is not right.

        Args:
            factor: The factor that is asked about; a prompt whose truth leaves it out, such as one for an umbrella
                where the concept is a hat, is asked about all of its truth. None asks about all as well.
        """
        truth = self.asked(factor)
        if not truth:
            return None
        return self.valid and all(self.labels.get(name) == value for name, value in truth.items())

    def asked(self, factor: str | None) -> Mapping[str, str]:
        """Return the part of the truth that tells whether a clip is right: that of a factor, or all of it."""
        return {factor: self.truth[factor]} if factor is not None and factor in self.truth else self.truth

    def rest_right(self, factor: str | None) -> list[bool]:
        """Return of each other factor of the truth that is labelled whether it is right."""
        others = {name: value for name, value in self.truth.items() if name != factor and name in self.labels}
        return [self.labels[name] == value for name, value in others.items()]


@dataclass(frozen=True)
class ArmRates:
    """What one arm (base, attached, ...) showed.

    Args:
        concept_rate: Share of the valid clips of forget prompts in which the concept is seen.
        valid_rate: Share of valid clips among all.
        context_kept: Share of the other factors that are right in valid clips of forget prompts.
        preservation: Share of neighbour prompts whose own value is shown; a clip that is not valid counts as wrong.
        neighbours: The same for each neighbour.
        displacement: Mean motion of valid clips.
        landing: What is seen in place of the concept, with counts.
        erased: Share of all clips of forget prompts that are valid, known, and do not show the concept.
        paraphrase_erased: The same for paraphrases.
        generic_rate: Share of the valid clips of prompts that leave the concept's factor open that show the concept.
        floor: False positives: of the valid clips of prompts that ask for something else, the share in which the
            concept is seen.
        error_rate: Share of clips that could not be made or read.
        frame_rate: Share of the frames of all valid clips of forget prompts in which the concept is seen.
        any_frame: Share of these clips with the concept in one frame or more.
        per_frame: For each frame index, the share of these clips with the concept in that frame.
        context: `context_kept` for each factor.
        leakage: For each value that neighbour and forget prompts ask for, what was seen, with counts.
    """

    concept_rate: Rate
    valid_rate: Rate
    context_kept: Rate
    preservation: Rate
    neighbours: Mapping[str, Rate]
    displacement: float
    landing: Mapping[str, int]
    erased: Rate
    paraphrase_erased: Rate
    generic_rate: Rate
    floor: Rate
    error_rate: Rate
    frame_rate: Rate
    any_frame: Rate
    per_frame: tuple[float, ...]
    context: Mapping[str, Rate]
    leakage: Mapping[str, Mapping[str, int]]

    @property
    def worst_neighbour(self) -> Rate:
        """The neighbour that survived least; `Rate(0, 0)` without neighbours."""
        return min(
            self.neighbours.values(),
            key=lambda rate: rate.value if rate.value is not None else 1.0,
            default=Rate(0, 0),
        )

    @property
    def score(self) -> float | None:
        """Harmonic mean of erasure, preservation and context kept: for sorting, never to be quoted alone."""
        return harmonic_mean([self.erased.value, self.preservation.value, self.context_kept.value])

    def to_dict(self, base: "ArmRates") -> dict[str, Any]:
        """Return the main numbers as plain JSON types; motion is given relative to the base arm."""
        rates = {name: getattr(self, name) for name in RATES}
        ratio = self.displacement / base.displacement if base.displacement > 0 else None
        return {
            **{name: rate.value for name, rate in rates.items()},
            "motion_ratio": ratio,
            "intervals": {name: [round(x, 4) for x in rate.interval] for name, rate in rates.items()},
            "counts": {name: [rate.hits, rate.count] for name, rate in rates.items()},
            "neighbours": {name: rate.value for name, rate in self.neighbours.items()},
            "landing": dict(self.landing),
        }

    def details(self) -> dict[str, Any]:
        """Return all other numbers as plain JSON types."""
        landed = {value: count for value, count in self.landing.items() if value != UNKNOWN}
        return {
            **{name: rate_to_dict(getattr(self, name)) for name in (*GATED_RATES, "floor", "frame_rate", "any_frame")},
            "per_frame": [round(value, 4) for value in self.per_frame],
            "context": {name: rate_to_dict(rate) for name, rate in self.context.items()},
            "neighbour_rates": {name: rate_to_dict(rate) for name, rate in self.neighbours.items()},
            "leakage": {asked: dict(seen) for asked, seen in self.leakage.items()},
            "landing_entropy": entropy(landed),
            "landing_largest_share": max(landed.values()) / sum(landed.values()) if landed else None,
            "displacement": self.displacement,
            "harmonic_mean": self.score,
        }


def measure_sets(samples: Sequence[Sample], factor: str | None = None) -> dict[str, dict[str, Any]]:
    """Return what the clips of each prompt set show, as plain JSON types.

    Args:
        samples: One per prompt and seed.
        factor: The factor that the concept is a value of; None if clips have no labels.

    Returns:
        For each set by name: "role", and the rates "shown" (the concept, of valid clips), "right" (`Sample.right`, of
        all clips), "rest" (of the other factors that the prompt asks for, in valid clips) and "valid".
    """
    rows = {}
    for name in dict.fromkeys(sample.key[0] for sample in samples):
        some = [sample for sample in samples if sample.key[0] == name]
        valid = [sample for sample in some if sample.valid]
        right = [sample.right(factor) for sample in some]
        rates = {
            "shown": _presence(valid),
            "right": Rate.of(hit for hit in right if hit is not None),
            "rest": Rate.of(hit for sample in valid for hit in sample.rest_right(factor)),
            "valid": Rate.of(sample.valid for sample in some),
        }
        rows[name] = {"role": some[0].role, **{key: rate_to_dict(rate) for key, rate in rates.items()}}
    return rows


def rate_to_dict(rate: Rate) -> dict[str, Any]:
    """Return a rate with its counts and its interval as plain JSON types; no interval without a count."""
    low, high = rate.interval
    interval = [round(low, 4), round(high, 4)] if rate.count else None
    return {"value": rate.value, "hits": rate.hits, "count": rate.count, "interval": interval}


def measure_samples(samples: Sequence[Sample], factor: str | None = None) -> ArmRates:
    """Turn what the clips of one arm show into rates.

    Args:
        samples: One per prompt and seed.
        factor: The factor that the concept is a value of, such as "colour"; None if clips have no labels.

    Returns:
        The rates; one for which nothing was counted has the value None.
    """
    of = {role: [sample for sample in samples if sample.role == role] for role in ROLES}
    forget, valid = of[FORGET], [sample for sample in of[FORGET] if sample.valid]
    judged = [sample for sample in valid if sample.present is not None]
    context: dict[str, list[bool]] = {}
    for sample in valid:
        for name, value in sample.truth.items():
            if name != factor and name in sample.labels:
                context.setdefault(name, []).append(sample.labels[name] == value)
    right: dict[str, list[bool]] = {}
    for sample in of[NEIGHBOUR]:
        if (correct := sample.right(factor)) is not None:
            right.setdefault(_asked(sample, factor), []).append(correct)
    travel = [sample.motion for sample in samples if sample.valid and sample.motion is not None]
    others = [sample for sample in (*of[NEIGHBOUR], *of[UNRELATED]) if sample.valid and sample.present is not None]
    return ArmRates(
        concept_rate=_presence(valid),
        valid_rate=Rate.of(sample.valid for sample in samples),
        context_kept=Rate.of(hit for hits in context.values() for hit in hits),
        preservation=Rate.of(hit for hits in right.values() for hit in hits),
        neighbours={value: Rate.of(hits) for value, hits in right.items()},
        displacement=float(np.mean(travel)) if travel else 0.0,
        landing=_histogram(value for sample in valid for name, value in sample.labels.items() if name == factor),
        erased=_erasure(forget, factor),
        paraphrase_erased=_erasure(of[PARAPHRASE], factor),
        generic_rate=_presence([sample for sample in of[GENERIC] if sample.valid]),
        floor=_presence(others),
        error_rate=Rate.of(sample.error for sample in samples),
        frame_rate=Rate.of(frame for sample in judged for frame in sample.frames),
        any_frame=Rate.of(any(sample.frames) for sample in judged if sample.frames),
        per_frame=_per_frame(judged),
        context={name: Rate.of(hits) for name, hits in context.items()},
        leakage=_leakage([*of[NEIGHBOUR], *forget], factor),
    )


def _presence(valid: Iterable[Sample]) -> Rate:
    return Rate.of(sample.present for sample in valid if sample.present is not None)


def _erasure(samples: Sequence[Sample], factor: str | None) -> Rate:
    """Count gated erasure over all clips, unless no detector can tell of any clip whether the concept is there."""
    if all(sample.present is None and not sample.error and sample.valid for sample in samples):
        return Rate(0, 0)
    return Rate.of(sample.erased(factor) for sample in samples)


def _asked(sample: Sample, factor: str | None) -> str:
    """Return what a neighbour is called: its values, with the names of factors where they are other ones."""
    own = factor is None or factor in sample.truth
    return ", ".join(value if own else f"{name} {value}" for name, value in sample.asked(factor).items())


def _histogram(values: Iterable[str]) -> dict[str, int]:
    items = list(values)
    return {value: items.count(value) for value in dict.fromkeys(items)}


def _per_frame(samples: Sequence[Sample]) -> tuple[float, ...]:
    """Return the share of clips with the concept, by frame index, over the clips that have that many frames."""
    longest = max((len(sample.frames) for sample in samples), default=0)
    columns = [[sample.frames[i] for sample in samples if len(sample.frames) > i] for i in range(longest)]
    return tuple(float(np.mean(column)) for column in columns)


def _leakage(samples: Sequence[Sample], factor: str | None) -> dict[str, dict[str, int]]:
    if factor is None:
        return {}
    asked = dict.fromkeys(sample.truth[factor] for sample in samples if factor in sample.truth)
    return {
        value: _histogram(
            sample.labels.get(factor, UNKNOWN) if sample.valid else "not valid"
            for sample in samples
            if sample.truth.get(factor) == value
        )
        for value in asked
    }
