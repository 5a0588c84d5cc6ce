"""Two reports side by side, and thresholds that a report must reach, for continuous integration."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.conditions import UNSAID
from unlearning_adapters.evaluation.rates import Paired

from .numbers import NOT_APPLICABLE, number
from .report import NAMES, Report

COMPARED = (
    "pipeline", "model", "dtype", "device", "generator_device", "scheduler", "scheduler_config", "generation", "batch"
)  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """What differs between two reports.

    Args:
        measures: For each short name "before", "after" and "change"; "paired" for erasure on the same prompts.
        conditions: What was run differently, by name: the value before and after.
        same_prompts: Whether both ran the same prompts and seeds under the same conditions.
    """

    measures: Mapping[str, Mapping[str, Any]]
    conditions: Mapping[str, tuple[Any, Any]]
    same_prompts: bool

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types."""
        return {
            "measures": {name: dict(measure) for name, measure in self.measures.items()},
            "conditions": {name: list(pair) for name, pair in self.conditions.items()},
            "same_prompts": self.same_prompts,
        }

    def to_text(self) -> str:
        """Return it as a table for people."""
        lines = [f"{'measure':<12}{'before':>10}{'after':>10}{'change':>10}  paired test"]
        for name, measure in self.measures.items():
            change = NOT_APPLICABLE if measure["change"] is None else f"{measure['change']:+.3f}"
            test = measure.get("paired")
            note = f"  {test['gained']} gained, {test['lost']} lost, p {test['p_value']:.3f}" if test else ""
            lines.append(f"{name:<12}{number(measure['before']):>10}{number(measure['after']):>10}{change:>10}{note}")
        for name, (before, after) in self.conditions.items():
            lines.append(f"run differently: {name}: {before!r}, then {after!r}")
        return "\n".join(lines)


def diff_reports(before: Report, after: Report) -> Difference:
    """Compare the edited arms of two reports.

    Args:
        before: The older report.
        after: The newer one.
    """
    measures: dict[str, dict[str, Any]] = {}
    for name in NAMES:
        one, two = before.value(name), after.value(name)
        measures[name] = {"before": one, "after": two, "change": None if None in (one, two) else two - one}  # type: ignore[operator]
    old, new = ({**UNSAID, **report.data["conditions"]} for report in (before, after))
    conditions = {
        name: (old.get(name), new.get(name)) for name in (*COMPARED, "suite") if old.get(name) != new.get(name)
    }
    same = not conditions and before.data["seeds"] == after.data["seeds"]
    if same and (test := _paired_erasure(before, after)) is not None:
        measures["erase"]["paired"] = test
    return Difference(measures, conditions, same)


def failures(report: Report, thresholds: Mapping[str, float]) -> list[str]:
    """Return why a report does not pass: it is void, or a measure is below its threshold or does not apply.

    Args:
        report: The report.
        thresholds: Least value by short name, such as {"erase": 0.8, "preserve": 0.9}.
    """
    reasons = [f"the report is void: {reason}" for reason in report.reasons]
    for name, least in thresholds.items():
        value = report.value(name)
        if value is None:
            reasons.append(f"{name} does not apply to this report, and {least:g} was asked for")
        elif value < least:
            reasons.append(f"{name} is {value:.3f}, below {least:g}")
    return reasons


def check_thresholds(thresholds: Mapping[str, float]) -> None:
    """Check the names of thresholds.

    Raises:
        EvaluationError: If a report has no measure of this name.
    """
    for name in thresholds:
        if name not in NAMES:
            raise EvaluationError(f"Unknown measure {name!r} of a report. Known: {', '.join(NAMES)}.")


def _paired_erasure(before: Report, after: Report) -> dict[str, Any] | None:
    """Return McNemar's test of gated erasure over the forget prompts that both reports hold."""
    one, two = (_erased_by_key(report) for report in (before, after))
    shared = [key for key in one if key in two]
    if not shared:
        return None
    test = Paired.of([one[key] for key in shared], [two[key] for key in shared])
    return {"count": test.count, "lost": test.lost, "gained": test.gained, "p_value": test.p_value}


def _erased_by_key(report: Report) -> dict[tuple[Any, ...], bool]:
    factor = next(iter(report.data["suite"]["target"]), None)
    erased = {}
    for sample in report.data["samples"][report.edited]:
        if sample["role"] == "forget":
            readable = factor is None or sample.get("labels", {}).get(factor, "unknown") != "unknown"
            erased[tuple(sample["key"])] = sample["valid"] and readable and sample.get("present") is False
    return erased
