"""Several clips in one call of the pipeline: which cases go together, and whether the pipeline can do that."""

import inspect
import json
import re
from collections.abc import Iterator, Sequence
from typing import Any

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.suites.suite import Case

MANY = re.compile(r"list|sequence|tuple|iterable|\bany\b", re.IGNORECASE)  # in the annotation of an argument
LISTS = {"prompt": "prompts", "generator": "generators"}


def batches(cases: Sequence[Case], size: int) -> Iterator[list[Case]]:
    """Yield cases, in order, in groups that one call can make.

    A group has one set of call arguments. A case with a picture is alone: pipelines differ in whether they take one
    picture for all prompts or one for each.

    Args:
        cases: The cases.
        size: Largest number of cases in a group.
    """
    group: list[Case] = []
    for case in cases:
        if group and (len(group) == size or not _alike(group[0], case)):
            yield group
            group = []
        group.append(case)
    if group:
        yield group


def check_batch(pipe: Any, size: int) -> None:
    """Raise `EvaluationError` if `size` is no number of clips, or the pipeline's call says that it takes no lists.

    A call that does not say what it takes is tried: `check_count` sees what came of it.
    """
    if isinstance(size, bool) or not isinstance(size, int) or size < 1:
        raise EvaluationError(f"Expected the batch to be a whole number of clips from 1, but got {size!r}.")
    accepted = inspect.signature(type(pipe).__call__).parameters
    for name, plural in LISTS.items() if size > 1 else ():
        found = accepted.get(name)
        if found is not None and found.annotation is not found.empty and not MANY.search(str(found.annotation)):
            raise EvaluationError(
                f"{type(pipe).__name__} takes no list of {plural}, and cannot make {size} clips in one call. "
                "Use batch 1."
            )


def check_count(pipe: Any, frames: Sequence[Any], cases: Sequence[Case]) -> None:
    """Raise `EvaluationError` if a call for several prompts did not return one clip for each."""
    if len(cases) > 1 and len(frames) != len(cases):
        raise EvaluationError(
            f"{type(pipe).__name__} returned {len(frames)} clip{'s' if len(frames) != 1 else ''} for {len(cases)} "
            "prompts, so that none belongs to a prompt for sure. Use batch 1, and another folder."
        )


def _alike(one: Case, other: Case) -> bool:
    """Whether two cases have the same call arguments, compared by identity where they are no JSON, and no picture."""
    if one.prompt.image or other.prompt.image:
        return False
    first, second = (json.dumps(dict(case.prompt.call), sort_keys=True, default=id) for case in (one, other))
    return first == second
