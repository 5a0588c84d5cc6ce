"""Stack a second adapter on the first: whether either concept comes back where two are erased."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import replace

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.subject import AttackPoint, Subject
from unlearning_adapters.attacks.target import Examples, Target
from unlearning_adapters.errors import EvaluationError, FuseError
from unlearning_adapters.runtime.verbs import (
    delete_unlearning_adapters,
    fuse_unlearning_adapters,
    load_unlearning_adapter,
    unfuse_unlearning_adapters,
)


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
    with _both(subject, adapter):
        first = AttackPoint.of(f"first, {target.concept}", subject.look(target.named, target))
        second = AttackPoint.of(f"second, {other.concept}", subject.look(other.named, other))
    return first, replace(second, before=before)


@contextmanager
def _both(subject: Subject, adapter: UnlearningAdapter) -> Iterator[None]:
    """Load a second adapter, or fuse both together where no edit of the input fits to what the first one fused."""
    pipe, together = subject.pipe, False
    if subject.adapter is None:
        yield
        return
    with ExitStack() as stack:
        try:
            name = load_unlearning_adapter(pipe, adapter)
        except FuseError:
            unfuse_unlearning_adapters(pipe)
            stack.callback(fuse_unlearning_adapters, pipe)
            name = load_unlearning_adapter(pipe, adapter)
            together = True
        stack.callback(delete_unlearning_adapters, pipe, name)
        if together:
            fuse_unlearning_adapters(pipe)
            stack.callback(unfuse_unlearning_adapters, pipe)
        yield
