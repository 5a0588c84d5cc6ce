"""Stack a second adapter on the first: whether either concept comes back where two are erased."""

from dataclasses import replace

from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.subject import AttackPoint, Subject
from unlearning_adapters.attacks.target import Examples, Target
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.runtime.verbs import delete_unlearning_adapters, load_unlearning_adapter


def stacked(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[AttackPoint, ...]:
    """Return the rate of the target and that of the second concept with both adapters; on a base, without any.

    Raises:
        EvaluationError: If there is no second adapter.
    """
    del examples, budget
    if subject.second is None:
        raise EvaluationError("There is no second adapter to stack. Give one.")
    adapter, other = subject.second
    before = AttackPoint.of("alone", subject.look(other.named, other))
    name = None if subject.adapter is None else load_unlearning_adapter(subject.pipe, adapter)
    try:
        first = AttackPoint.of(f"first, {target.concept}", subject.look(target.named, target))
        second = AttackPoint.of(f"second, {other.concept}", subject.look(other.named, other))
        return first, replace(second, before=before)
    finally:
        if name is not None:
            delete_unlearning_adapters(subject.pipe, name)
