"""Methods side by side: each built with its defaults and timed, and all run on the same prompts and seeds."""

import json
import time
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.building.build import build_adapter
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.config import METHODS, BuildConfig
from unlearning_adapters.errors import EvaluationError, UnlearningError
from unlearning_adapters.evaluation.arms.arm import RANDOM, Arm, adapter_arm, negative_prompt_arm, reworded_arm
from unlearning_adapters.evaluation.arms.controls import random_arm
from unlearning_adapters.evaluation.evaluate import evaluate
from unlearning_adapters.evaluation.reports.numbers import rate_of
from unlearning_adapters.evaluation.reports.report import Report
from unlearning_adapters.evaluation.suites.suite import Suite
from unlearning_adapters.methods import registry
from unlearning_adapters.shapeworld.models.generate import prompt_length

from .esd import EsdSettings
from .references import ESD, GOLD, esd_arm, gold_arm

SCHEMA = "unlearning-comparison/1"
BUILDS = "builds.json"
COMPARED = tuple(name for name in METHODS if not registry.METHODS[name].control)
DEFAULT = BuildConfig().method
NEGATIVE, ORACLE = "negative-prompt", "words-left-out"
# What the table shows of an arm, and where a report keeps it.
RATES = {
    "concept": "concept_rate",
    "erased": "erased",
    "paraphrases": "paraphrase_erased",
    "valid": "valid_rate",
    "context": "context_kept",
    "preservation": "preservation",
    "worst": "worst_neighbour",
}
MUST_SURVIVE = ("unrelated", "generic", "neighbour")  # roles whose drift is shown, the first that a suite has


def compare_methods(
    pipe: Any,
    concept: Concept,
    suite: Suite,
    output: str | Path,
    methods: Sequence[str] = COMPARED,
    detectors: Sequence[Any] | None = None,
    *,
    esd: EsdSettings | None = None,
    gold: Any = None,
    gate: float | None = None,
    progress: bool = True,
    batch_size: int = 1,
) -> tuple[dict[str, Any], Report]:
    """Build every method with its default settings, and measure all of them in one evaluation.

    Further arms: the base with the concept's first word as the negative prompt, the base without the concept's words
    in its prompts, and the controls: a random direction like that of the default method, or of the first one if that
    is not compared, and a destroyed model. Two more are costly, and run if they are asked for: a LoRA that ESD trains
    on the same pairs and sites, and a gold model.

    A method that cannot be built on this pipeline is left out, with a warning; its reason is in "left_out".

    Args:
        pipe: A diffusers pipeline without adapters of this package.
        concept: What is to be forgotten.
        suite: The prompts.
        output: Folder of the adapters, rows and clips; the same call goes on where it was stopped.
        methods: Names of methods; "random" is a control and always there.
        detectors: As for `evaluate`.
        esd: How ESD trains; None leaves it out.
        gold: A pipeline of the same class that was trained without the concept; None leaves it out.
        gate: As for `evaluate`.
        progress: Whether to show progress bars.
        batch_size: As for `evaluate`.

    Returns:
        The comparison as plain JSON types, and the report that it was taken from.

    Raises:
        EvaluationError: If a method is unknown, named twice, or the suite has no words of the concept, or the gold
            pipeline is of another kind; if none of several methods can be built; and as `evaluate`.
        UnlearningError: What `build_adapter` raises, if there is one method.
    """
    folder = Path(output)
    _check(methods, suite)
    golden = {} if gold is None else {GOLD: gold_arm(pipe, gold, suite)}
    length = prompt_length(suite.generation)
    adapters, left_out = _built_methods(pipe, concept, methods, folder, length, progress)
    arms: dict[str, Arm] = {
        method: adapter_arm(adapter, title=method, build_seconds=seconds)
        for method, (adapter, seconds) in adapters.items()
    }
    if esd is not None:
        arms[ESD] = esd_arm(pipe, concept, suite, esd, folder / ESD, progress)
    arms |= golden
    arms[NEGATIVE] = negative_prompt_arm(suite.words[0])
    arms[ORACLE] = reworded_arm(suite.words)
    arms[RANDOM] = random_arm(adapters[DEFAULT if DEFAULT in adapters else next(iter(adapters))][0])
    report = evaluate(
        pipe, None, suite, detectors, arms=arms, gate=gate, output=folder, progress=progress, batch_size=batch_size
    )
    return comparison_of(report, left_out), report


def comparison_of(report: Report, left_out: Mapping[str, str] | None = None) -> dict[str, Any]:
    """Return the table of a report as plain JSON types: one row per arm, each value with its 95 % interval.

    Args:
        report: The report.
        left_out: Why methods could not be built, by name.
    """
    data = report.data
    return {
        "schema": SCHEMA,
        "status": data["status"],
        "reasons": list(data["reasons"]),
        "cautions": list(data["cautions"]),
        "concept": data["concept"],
        "clips": data["clips"],
        "conditions": data["conditions"],
        "rows": {name: _row(arm) for name, arm in data["arms"].items()},
        "left_out": dict(left_out or {}),
    }


def _row(arm: Mapping[str, Any]) -> dict[str, Any]:
    role = next((role for role in MUST_SURVIVE if role in arm.get("drift", {})), None)
    return {
        "title": arm["title"],
        "part": arm["part"],
        **{name: rate_of(arm, key) for name, key in RATES.items()},
        "drift": None if role is None else {**arm["drift"][role]["difference"], "role": role},
        "motion_ratio": arm["motion_ratio"],
        "motion": arm["paired"]["motion"] if "paired" in arm else None,
        "rank": arm["about"].get("rank"),
        "strength": arm["strength"],
        "build_seconds": arm["about"].get("build_seconds"),
    }


def _check(methods: Sequence[str], suite: Suite) -> None:
    unknown = [method for method in methods if method not in COMPARED]
    if unknown or not methods or len(set(methods)) != len(methods):
        raise EvaluationError(
            f"Expected different methods out of {', '.join(COMPARED)}, but got {', '.join(methods) or 'none'}. "
            "The random direction is a control, and is always run."
        )
    if not suite.words:
        raise EvaluationError(
            f"The suite {suite.name!r} has no words of its concept, which the negative prompt needs. Add `words` to it."
        )


def _built_methods(
    pipe: Any, concept: Concept, methods: Sequence[str], folder: Path, length: dict[str, Any], progress: bool
) -> tuple[dict[str, tuple[UnlearningAdapter, float]], dict[str, str]]:
    """Return the adapters that can be built, with their seconds, and why others cannot."""
    earlier = {method: _stored(concept, method, folder) for method in methods}
    adapters: dict[str, tuple[UnlearningAdapter, float]] = {}
    errors: dict[str, UnlearningError] = {}
    for method in methods:
        try:
            adapters[method] = earlier[method] or _built(pipe, concept, method, folder, length, progress)
        except UnlearningError as error:
            errors[method] = error
    reasons = {method: " ".join(str(error).split()) for method, error in errors.items()}
    if not adapters:
        first = next(iter(errors.values()))
        if len(errors) == 1:
            raise first
        reasons_text = " ".join(f"{method}: {reason}" for method, reason in reasons.items())
        raise EvaluationError(f"None of the methods can be built. {reasons_text}") from first
    for method, reason in reasons.items():
        warnings.warn(f"The method {method!r} cannot be built and is left out: {reason}", stacklevel=3)
    return adapters, reasons


def _stored(concept: Concept, method: str, folder: Path) -> tuple[UnlearningAdapter, float] | None:
    """Return the adapter of an earlier call and the seconds that its build took; None if there is none."""
    file, seconds = _adapter_file(folder, method), _build_log(folder)
    if not file.is_file() or method not in seconds:
        return None
    adapter = load_adapter(file)
    if adapter.info.pairs_hash != concept.pairs_hash:
        raise EvaluationError(
            f"The folder {folder.name!r} holds adapters of other pairs than those of {concept.name!r}. "
            "Choose another folder, or remove that one."
        )
    return adapter, float(seconds[method])


def _built(
    pipe: Any, concept: Concept, method: str, folder: Path, length: dict[str, Any], progress: bool
) -> tuple[UnlearningAdapter, float]:
    """Build an adapter, store it, and return it with the seconds that the build took."""
    start = time.perf_counter()
    config = BuildConfig(method=method)
    adapter = build_adapter(pipe, concept, config, progress=progress, call_kwargs=length)
    took = round(time.perf_counter() - start, 3)
    adapter.save_pretrained(_adapter_file(folder, method))
    log = {**_build_log(folder), method: took}
    (folder / BUILDS).write_text(json.dumps(log, indent=1) + "\n", encoding="utf-8")
    return adapter, took


def _adapter_file(folder: Path, method: str) -> Path:
    return folder / "adapters" / f"{method}.safetensors"


def _build_log(folder: Path) -> dict[str, float]:
    """Return the seconds of each build in a folder."""
    log = folder / BUILDS
    return dict(json.loads(log.read_text(encoding="utf-8"))) if log.is_file() else {}
