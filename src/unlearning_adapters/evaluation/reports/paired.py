"""Two arms on the same prompts and seeds: what changed, pair by pair, and whether chance could have done it."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from unlearning_adapters.evaluation.arms.store import Row
from unlearning_adapters.evaluation.metrics import FORGET, GENERIC, NEIGHBOUR, UNRELATED, Sample, rate_to_dict
from unlearning_adapters.evaluation.rates import Paired, Rate, bootstrap_difference, bootstrap_mean, wilcoxon

Pairs = list[tuple[Sample, Sample]]


def pair_samples(first: Sequence[Sample], second: Sequence[Sample]) -> Pairs:
    """Return the samples of two arms that share set, prompt and seed."""
    by_key = {sample.key: sample for sample in second}
    return [(sample, by_key[sample.key]) for sample in first if sample.key in by_key]


def compare_arms(base: Sequence[Sample], edited: Sequence[Sample], factor: str | None) -> dict[str, Any]:
    """Return the paired comparison of an arm with the base as plain JSON types.

    "concept_shown", "erased", "neighbour_right", "context_right" and "valid" are McNemar's exact tests;
    "erased_of_shown" is the share of the clips that show the concept in the base which are valid, known and without it
    in the arm; "motion" is the difference of the mean motion of clips that are valid in both, with a bootstrap
    interval and Wilcoxon's signed-rank test.

    Args:
        base: Samples of the base.
        edited: Samples of the arm.
        factor: The factor that the concept is a value of, or None.
    """
    pairs = pair_samples(base, edited)
    forget = [pair for pair in pairs if pair[0].role == FORGET]
    near = [pair for pair in pairs if pair[0].role == NEIGHBOUR and pair[0].right(factor) is not None]
    with_concept = [pair for pair in forget if pair[0].valid and pair[0].present]
    moving = [(a.motion, b.motion) for a, b in pairs if a.motion is not None and b.motion is not None]
    with_context = [pair for pair in forget if _context_right(pair[0], factor) is not None]
    return {
        "pairs": len(pairs),
        "concept_shown": _test(forget, lambda sample: sample.valid and bool(sample.present)),
        "erased": _test(forget, lambda sample: sample.erased(factor)),
        "erased_of_shown": rate_to_dict(Rate.of(b.erased(factor) for _, b in with_concept)),
        "neighbour_right": _test(near, lambda sample: bool(sample.right(factor))),
        "context_right": _test(with_context, lambda sample: bool(_context_right(sample, factor))),
        "valid": _test(pairs, lambda sample: sample.valid),
        "motion": paired_change([a for a, _ in moving], [b for _, b in moving]),
    }


def compare_with_control(edited: Sequence[Sample], control: Sequence[Sample], factor: str | None) -> dict[str, Any]:
    """Return McNemar's exact test of gated erasure, a control against the edited arm."""
    pairs = [pair for pair in pair_samples(control, edited) if pair[0].role == FORGET]
    return _test(pairs, lambda sample: sample.erased(factor))


def drift_of(rows: Iterable[Row]) -> dict[str, Any]:
    """Return the mean drift of an arm's rows from the base, with bootstrap intervals, as plain JSON types."""
    moved_rows = [row for row in rows if row.drift]
    differences = [float(row.drift["difference"]) for row in moved_rows]
    finite = [float(row.drift["psnr"]) for row in moved_rows if row.drift["psnr"] is not None]
    alike = [float(row.drift["ssim"]) for row in moved_rows if row.drift.get("ssim") is not None]
    return {
        "difference": interval_to_dict(bootstrap_mean(differences), len(differences)),
        "psnr": interval_to_dict(bootstrap_mean(finite), len(finite)),
        "ssim": interval_to_dict(bootstrap_mean(alike), len(alike)),
        "identical": rate_to_dict(Rate.of(bool(row.drift["identical"]) for row in moved_rows)),
    }


def drift_by_role(rows: Sequence[Row], roles: Mapping[str, str]) -> dict[str, Any]:
    """Return the drift of all clips of an arm, and of those that must survive by role.

    Args:
        rows: Rows of one arm.
        roles: Role of each prompt set.
    """
    drifts = {"all": drift_of(rows)}
    for role in (NEIGHBOUR, UNRELATED, GENERIC, FORGET):
        some = [row for row in rows if roles.get(row.set) == role]
        drifts |= {role: drift_of(some)} if some else {}
    return drifts


def scores_of(rows: Sequence[Row], detector: str) -> dict[tuple[str, str, int], float]:
    """Return the mean score that a detector gave each clip of an arm, by set, prompt and seed."""
    found = {}
    for row in rows:
        scores = row.found.get(detector, {}).get("scores", [])
        if scores:
            found[row.key[1:]] = sum(scores) / len(scores)
    return found


def compare_scores(
    base: Mapping[tuple[str, str, int], float], edited: Mapping[tuple[str, str, int], float]
) -> dict[str, Any]:
    """Return the means of a score in both arms and the paired difference with its interval and test."""
    shared = [key for key in base if key in edited]
    first, second = [base[key] for key in shared], [edited[key] for key in shared]
    mean = bootstrap_mean(second)
    return {
        "mean": None if mean is None else mean[0],
        "base": sum(first) / len(first) if first else None,
        "change": paired_change(first, second),
    }


def compare_drift(rows: Sequence[Row], control: Sequence[Row], roles: Mapping[str, str]) -> dict[str, Any]:
    """Return how much further than in a control the clips that must survive moved from the base, pair by pair.

    Args:
        rows: Rows of the arm.
        control: Rows of the control.
        roles: Role of each prompt set.
    """
    kept = [row for row in rows if row.drift and roles.get(row.set) in (NEIGHBOUR, UNRELATED, GENERIC)]
    other = {row.key[1:]: float(row.drift["difference"]) for row in control if row.drift}
    shared = [row for row in kept if row.key[1:] in other]
    moved = [float(row.drift["difference"]) for row in shared]
    return paired_change([other[row.key[1:]] for row in shared], moved)


def paired_change(first: Sequence[float], second: Sequence[float]) -> dict[str, Any]:
    """Return the mean of `second - first` with its bootstrap interval and the p-value of Wilcoxon's test."""
    found = interval_to_dict(bootstrap_difference(first, second), len(first))
    return {**found, "p_value": wilcoxon(first, second)}


def interval_to_dict(found: tuple[float, float, float] | None, count: int) -> dict[str, Any]:
    """Return a mean with its interval as plain JSON types; None if nothing was counted."""
    if found is None:
        return {"value": None, "interval": None, "count": 0}
    return {"value": round(found[0], 6), "interval": [round(x, 6) for x in found[1:]], "count": count}


def _test(pairs: Pairs, flag: Callable[[Sample], bool]) -> dict[str, Any]:
    test = Paired.of([flag(a) for a, _ in pairs], [flag(b) for _, b in pairs])
    return {
        "count": test.count,
        "lost": test.lost,
        "gained": test.gained,
        "difference": test.difference,
        "p_value": test.p_value,
    }


def _context_right(sample: Sample, factor: str | None) -> bool | None:
    expected = {name: value for name, value in sample.truth.items() if name != factor}
    if not expected:
        return None
    return sample.valid and all(sample.labels.get(name) == value for name, value in expected.items())
