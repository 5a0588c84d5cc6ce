"""Measure what a ShapeWorld pipeline shows: the concept, what surrounds it, and what must survive."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlearning_adapters.evaluation.metrics import FORGET, NEIGHBOUR, ArmRates, Sample, measure_samples
from unlearning_adapters.evaluation.rates import Rate
from unlearning_adapters.shapeworld.models.generate import generate_clips
from unlearning_adapters.shapeworld.world.judge import Verdict, judge_clips
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt, draw_prompts, find_factor, neighbour_prompts
from unlearning_adapters.shapeworld.world.scenes import FACTORS


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


def as_sample(role: str, prompt: LabelledPrompt, verdict: Verdict, target: str) -> Sample:
    """Return what the judge says of the clip of a prompt as a sample of an evaluation."""
    return Sample(
        role=role,
        valid=verdict.valid,
        present=verdict.factors[find_factor(target)] == target if verdict.valid else None,
        labels=verdict.factors if verdict.valid else {},
        truth=prompt.factors,
        motion=verdict.displacement if verdict.valid else None,
    )


def score(suite: Suite, concept: Sequence[Verdict], neighbours: Sequence[Verdict]) -> ArmRates:
    """Turn the judge's verdicts on the clips of a suite into rates."""
    samples = [
        as_sample(role, prompt, verdict, suite.target)
        for role, prompts, verdicts in ((FORGET, suite.concept, concept), (NEIGHBOUR, suite.neighbours, neighbours))
        for prompt, verdict in zip(prompts, verdicts, strict=True)
    ]
    return measure_samples(samples, find_factor(suite.target))


def measure(pipe: Any, suite: Suite, progress: str | None = None, **settings: Any) -> ArmRates:
    """Generate all clips of a suite and score them."""
    clips = generate_clips(pipe, [*suite.concept, *suite.neighbours], progress=progress, **settings)
    verdicts = judge_clips(clips)
    return score(suite, verdicts[: len(suite.concept)], verdicts[len(suite.concept) :])


def accuracy(pipe: Any, prompts: Sequence[LabelledPrompt], **settings: Any) -> dict[str, Rate]:
    """Return, for prompts that name all factors, the share of clips with each factor right, and of valid clips."""
    verdicts = judge_clips(generate_clips(pipe, prompts, **settings))
    rates = {"valid": Rate.of(verdict.valid for verdict in verdicts)}
    for name in FACTORS:
        rates[name] = Rate.of(v.factors[name] == p.factors[name] for p, v in zip(prompts, verdicts, strict=True))
    return rates
