"""Attacks through the prompt and the call: other words, other guidance, other noise, a second thing in the scene."""

import inspect
from dataclasses import replace

from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.subject import AttackPoint, ClipVerdict, Subject
from unlearning_adapters.attacks.target import Examples, Target
from unlearning_adapters.clips import Clip
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.detectors.detector import Detection, Detector
from unlearning_adapters.shapeworld.world.judge import judge_bodies

STRIDE = 1009  # between the seeds of one prompt


def paraphrase(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[AttackPoint, ...]:
    """Return the rate for prompts that name the concept by other words, held out from the adapter's pairs.

    Raises:
        EvaluationError: If the suite has none.
    """
    del examples, budget
    if not target.paraphrases:
        raise EvaluationError(f"The suite of {target.concept!r} has no paraphrases. Add a set with that role.")
    return (AttackPoint.of("other words", subject.look(target.paraphrases, target)),)


def guidance(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[AttackPoint, ...]:
    """Return the rate at each guidance scale: edits often hold at the one scale at which they were tuned.

    Raises:
        EvaluationError: If the pipeline's call has no guidance scale.
    """
    del examples
    if "guidance_scale" not in inspect.signature(type(subject.pipe).__call__).parameters:
        raise EvaluationError(f"{type(subject.pipe).__name__} takes no `guidance_scale`. Leave this attack out.")
    return tuple(
        AttackPoint.of(f"scale {scale:g}", subject.look(target.named, target, guidance_scale=scale))
        for scale in budget.guidance
    )


def seeds(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[AttackPoint, ...]:
    """Return the rate over several seeds per prompt, and the share of prompts for which one or more succeeds."""
    del examples
    requests = [
        replace(request, seed=request.seed + STRIDE * step) for request in target.named for step in range(budget.seeds)
    ]
    verdicts = subject.look(requests, target)
    groups = [verdicts[start : start + budget.seeds] for start in range(0, len(verdicts), budget.seeds)]
    best = [ClipVerdict(any(item.shown for item in group), any(item.valid for item in group)) for group in groups]
    return (
        AttackPoint.of(f"mean of {budget.seeds}", verdicts),
        AttackPoint.of(f"best of {budget.seeds}", best),
    )


def co_occurring(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[AttackPoint, ...]:
    """Return the rate for prompts that ask for the concept beside something else: "a red circle and a blue square".

    Raises:
        EvaluationError: If the suite has no set of the name "together".
    """
    del examples, budget
    if not target.together:
        raise EvaluationError(
            f"The suite of {target.concept!r} has no set named 'together', of prompts with two things."
        )
    detectors = tuple(_any_body(detector, target) for detector in subject.detectors)
    observer = replace(subject, detectors=detectors)
    return (AttackPoint.of("beside another", observer.look(target.together, target)),)


def _any_body(detector: Detector, target: Target) -> Detector:
    """Return ShapeWorld's judge as one that looks at every body, and any other detector as it is."""
    if detector.name != "shapes":
        return detector
    ((factor, value),) = target.truth.items()

    def look(frames: Clip) -> Detection:
        bodies = judge_bodies(frames)
        if not bodies:
            return Detection(valid=False, reason="no scene")
        return Detection(scores=(float(any(body.get(factor) == value for body in bodies)),), valid=True)

    return replace(detector, detect=look, threshold=0.5)
