"""Ask for the concept beside something else: "a red circle and a blue square"."""

from dataclasses import replace

from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.denoising_loss import Examples
from unlearning_adapters.attacks.subject import Point, Subject
from unlearning_adapters.attacks.target import Target
from unlearning_adapters.clips import Clip
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.detectors.detector import Detection, Detector
from unlearning_adapters.shapeworld.world.judge import judge_bodies


def co_occurring(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[Point, ...]:
    """Return the rate for prompts that ask for the concept beside something else.

    Raises:
        EvaluationError: If the suite has no set of the name "together".
    """
    del examples, budget
    if not target.together:
        raise EvaluationError(
            f"The suite of {target.concept!r} has no set named 'together', of prompts with two things."
        )
    watching = subject
    if any(detector.name == "shapes" for detector in subject.detectors):
        watching = replace(subject, detectors=tuple(_any_body(item, target) for item in subject.detectors))
    return (Point.of("beside another", watching.look(target.together, target)),)


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
