"""The report of an evaluation: all numbers, and everything that is needed to get them again, as one JSON object."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, astuple, dataclass
from pathlib import Path
from typing import Any

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.arm import BASE, RANDOM
from unlearning_adapters.evaluation.arms.run import AGAIN
from unlearning_adapters.evaluation.arms.samples import concept_detector, read_samples
from unlearning_adapters.evaluation.arms.store import Key, Row
from unlearning_adapters.evaluation.detectors.detector import Detector
from unlearning_adapters.evaluation.metrics import (
    FORGET,
    NEIGHBOUR,
    ArmRates,
    Sample,
    measure_samples,
    measure_sets,
    rate_to_dict,
)
from unlearning_adapters.evaluation.rates import Rate, correct_rate
from unlearning_adapters.evaluation.suites.overlap import near_prompts, nearest_of_sets
from unlearning_adapters.evaluation.suites.suite import Suite

from .paired import compare_arms, compare_drift, compare_scores, compare_with_control, drift_by_role, scores_of
from .verdict import check_gate, gate_of, judge_report

SCHEMA = "unlearning-evaluation/1"
REPORT = "report.json"
# What `--fail-under` may name, and the rate that it stands for.
NAMES = {
    "erase": "erased",
    "preserve": "preservation",
    "worst": "worst_neighbour",
    "context": "context_kept",
    "valid": "valid_rate",
    "motion": "motion_ratio",
    "paraphrase": "paraphrase_erased",
}


@dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Args:
        data: Plain JSON types; see docs/evaluation.md.
    """

    data: Mapping[str, Any]

    @property
    def status(self) -> str:
        """ "ok" or "void"; the numbers of a void report prove nothing."""
        return str(self.data["status"])

    @property
    def reasons(self) -> list[str]:
        """Why it is void."""
        return list(self.data["reasons"])

    @property
    def edited(self) -> str:
        """Name of the first arm that is measured."""
        names = [name for name, arm in self.data["arms"].items() if arm["part"] == "edited"]
        return names[0] if names else BASE

    def value(self, name: str, arm: str | None = None) -> float | None:
        """Return a rate of an arm by its short name ("erase", "preserve", ...); None if it does not apply."""
        if name not in NAMES:
            raise EvaluationError(f"Unknown measure {name!r}. Known: {', '.join(NAMES)}.")
        values, key = self.data["arms"][arm or self.edited], NAMES[name]
        number = values[key] if key in values else values["details"][key]["value"]
        return None if number is None else float(number)

    def save(self, folder: str | Path) -> Path:
        """Write `report.json` into a folder and return its path."""
        path = Path(folder) / REPORT
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(self.data, indent=1, allow_nan=False) + "\n", encoding="utf-8")
        return path


def read_report(source: str | Path) -> Report:
    """Read a report from a file, or from the folder of a run.

    Raises:
        EvaluationError: If there is none, or it is of another kind or version.
    """
    path = Path(source) / REPORT if Path(source).is_dir() else Path(source)
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise EvaluationError(f"Cannot read the report {str(path)!r}: {error}. Run `unlearn eval` first.") from error
    if not isinstance(data, dict) or data.get("schema") != SCHEMA:
        schema = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise EvaluationError(f"Expected a report of the kind {SCHEMA!r} in {str(path)!r}, but got {schema!r}.")
    return Report(data)


def make_report(
    record: Mapping[str, Any],
    rows: Mapping[Key, Row],
    suite: Suite,
    detectors: Sequence[Detector],
    distances: Mapping[str, Any] | None = None,
) -> Report:
    """Compute the report of a run from its rows; nothing is generated.

    Args:
        record: What the run says of itself: "conditions", "arms", "seeds", "gate", "cases".
        rows: Rows by key.
        suite: The suite.
        detectors: The detectors, with the thresholds to apply; the first of the kind "concept" gives the main numbers.
        distances: Frechet and kernel distances by arm, if they were taken.
    """
    concept_detector(detectors)
    watching = [detector for detector in detectors if detector.kind == "concept"]
    if BASE not in record["arms"]:
        raise EvaluationError("The run has no complete base yet. Run the same command again to go on with it.")
    rows = _in_order(rows, suite, record.get("seeds"))
    by_arm = {name: [row for row in rows.values() if row.arm == name] for name in record["arms"]}
    samples = {
        detector.name: {name: read_samples(rows, name, suite, detectors, detector) for name in by_arm}
        for detector in watching
    }
    main = samples[watching[0].name]
    rates = {name: measure_samples(arm_samples, suite.factor) for name, arm_samples in main.items()}
    arms = {name: _arm(name, record, by_arm, main, rates, suite, detectors) for name in by_arm}
    for detector in watching:
        for name in arms:
            arm_samples = measure_samples(samples[detector.name][name], suite.factor)
            floor = measure_samples(samples[detector.name][BASE], suite.factor).floor
            arms[name]["detectors"][detector.name] = _detector(arm_samples, floor, detector)
    for name in arms:
        arms[name]["distance"] = (distances or {}).get(name)
    repeat = arms.pop(AGAIN, None)
    gate = gate_of(suite, record.get("gate"))
    verdict = judge_report(suite, detectors, rates, arms, gate, None if repeat is None else repeat["drift"]["all"])
    return Report(
        {
            "schema": SCHEMA,
            "status": verdict.status,
            "reasons": list(verdict.reasons),
            "cautions": list(verdict.cautions),
            "concept": suite.name,
            "clips": sum(sample.role == FORGET for sample in main[BASE]),
            "neighbours": sum(sample.role == NEIGHBOUR for sample in main[BASE]),
            "gate": gate,
            "gate_failures": check_gate(rates[BASE], arms[BASE]["shown"]["value"], gate),
            "arms": arms,
            "repeat": None if repeat is None else repeat["drift"]["all"],
            "main_detector": watching[0].name,
            "detectors": [detector.describe() for detector in detectors],
            "conditions": record["conditions"],
            "seeds": record["seeds"],
            "suite": suite.to_dict(),
            "overlap": [list(astuple(near)) for near in near_prompts(suite)],
            "nearest": {name: asdict(near) for name, near in nearest_of_sets(suite).items()},
            "samples": {
                name: [_compact(sample) for sample in arm_samples] for name, arm_samples in main.items() if name in arms
            },
        }
    )


def _in_order(rows: Mapping[Key, Row], suite: Suite, seeds: Sequence[int] | None) -> dict[Key, Row]:
    """Return rows in the suite's order, as one process makes them: bootstrap intervals depend on it."""
    places = {case.key[:2]: place for place, case in enumerate(suite.cases([0]))}
    order = {seed: index for index, seed in enumerate(seeds or ())}
    last = len(places)
    return dict(sorted(rows.items(), key=lambda item: (places.get(item[0][1:3], last), order.get(item[0][3], 0))))


def _arm(
    name: str,
    record: Mapping[str, Any],
    rows: Mapping[str, Sequence[Row]],
    samples: Mapping[str, Sequence[Sample]],
    rates: Mapping[str, ArmRates],
    suite: Suite,
    detectors: Sequence[Detector],
) -> dict[str, Any]:
    """Return what the report says of one arm."""
    about, arm_samples = record["arms"][name], samples[name]
    forget = [sample for sample in arm_samples if sample.role == FORGET]
    judged = [sample for sample in forget if sample.present is not None or not sample.valid]
    seconds = [row.seconds for row in rows[name] if row.seconds]
    values = {
        **rates[name].to_dict(rates[BASE]),
        "title": about["title"],
        "part": about["part"],
        "strength": about["details"].get("strength"),
        "about": about["details"],
        "call": about["call"],
        "shown": rate_to_dict(Rate.of(sample.valid and bool(sample.present) for sample in judged)),
        "details": rates[name].details(),
        "sets": measure_sets(arm_samples, suite.factor),
        "missing": max(0, about["cases"] - len(arm_samples)),
        "seconds_per_clip": round(sum(seconds) / len(seconds), 3) if seconds else None,
        "detectors": {},
        "scores": {
            detector.name: compare_scores(scores_of(rows[BASE], detector.name), scores_of(rows[name], detector.name))
            for detector in detectors
            if scores_of(rows[BASE], detector.name)
        },
    }
    roles = {part.name: part.role for part in suite.sets}
    if name != BASE:
        values["paired"] = compare_arms(samples[BASE], arm_samples, suite.factor)
        values["drift"] = drift_by_role(rows[name], roles)
    if name != RANDOM and RANDOM in samples and about["part"] in ("edited", "sweep"):
        values["against_random"] = compare_with_control(arm_samples, samples[RANDOM], suite.factor)
        values["drift_against_random"] = compare_drift(rows[name], rows[RANDOM], roles)
    return values


def _detector(rates: ArmRates, floor: Rate, detector: Detector) -> dict[str, Any]:
    """Return what one detector says of an arm, with its false-positive floor and the corrected rate."""
    sensitivity = float(detector.settings.get("sensitivity", 1.0))
    specificity = 1 - (floor.value or 0.0)
    return {
        "concept_rate": rate_to_dict(rates.concept_rate),
        "erased": rate_to_dict(rates.erased),
        "frame_rate": rate_to_dict(rates.frame_rate),
        "any_frame": rate_to_dict(rates.any_frame),
        "per_frame": [round(value, 4) for value in rates.per_frame],
        "errors": rate_to_dict(rates.error_rate),
        "floor": rate_to_dict(floor),
        "corrected_concept_rate": correct_rate(rates.concept_rate, sensitivity, specificity),
    }


def _compact(sample: Sample) -> dict[str, Any]:
    """Return one sample as plain JSON types, without what is empty."""
    values = {
        "key": list(sample.key),
        "role": sample.role,
        "valid": sample.valid,
        "present": sample.present,
        "labels": dict(sample.labels),
        "motion": None if sample.motion is None else round(sample.motion, 4),
        "error": sample.error,
    }
    return {
        name: value for name, value in values.items() if value not in ({}, None) and not (name == "error" and not value)
    }
