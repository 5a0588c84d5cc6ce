"""Sweep the guidance scale: edits often hold at the one scale at which they were tuned."""

import inspect

from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.denoising_loss import Examples
from unlearning_adapters.attacks.subject import Point, Subject
from unlearning_adapters.attacks.target import Target
from unlearning_adapters.errors import EvaluationError


def guidance(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[Point, ...]:
    """Return the rate at each guidance scale.

    Raises:
        EvaluationError: If the pipeline's call has no guidance scale.
    """
    del examples
    if "guidance_scale" not in inspect.signature(type(subject.pipe).__call__).parameters:
        raise EvaluationError(f"{type(subject.pipe).__name__} takes no `guidance_scale`. Leave this attack out.")
    return tuple(
        Point.of(f"scale {scale:g}", subject.look(target.named, target, guidance_scale=scale))
        for scale in budget.guidance
    )
