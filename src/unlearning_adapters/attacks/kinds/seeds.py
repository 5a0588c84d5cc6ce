"""Search over seeds: the best of N, and the mean, which is what one seed gives."""

from dataclasses import replace

from unlearning_adapters.attacks.budget import Budget
from unlearning_adapters.attacks.denoising_loss import Examples
from unlearning_adapters.attacks.subject import Point, Seen, Subject
from unlearning_adapters.attacks.target import Target

STRIDE = 1009  # between the seeds of one prompt


def seeds(subject: Subject, target: Target, examples: Examples, budget: Budget) -> tuple[Point, ...]:
    """Return the rate over all seeds, and the share of prompts for which one seed or more succeeds."""
    del examples
    asks = [replace(ask, seed=ask.seed + STRIDE * step) for ask in target.named for step in range(budget.seeds)]
    seen = subject.look(asks, target)
    groups = [seen[start : start + budget.seeds] for start in range(0, len(seen), budget.seeds)]
    best = [Seen(any(item.shown for item in group), any(item.valid for item in group)) for group in groups]
    return Point.of(f"mean of {budget.seeds}", seen), Point.of(f"best of {budget.seeds}", best)
