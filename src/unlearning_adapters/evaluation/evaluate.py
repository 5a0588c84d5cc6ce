"""Evaluate an adapter: the same prompts and seeds through the base, the edited pipeline and the controls."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.arm import (
    BASE,
    DESTROYED,
    EDITED,
    RANDOM,
    Arm,
    adapter_arm,
    base_arm,
    check_unedited,
)
from unlearning_adapters.evaluation.arms.conditions import conditions_of
from unlearning_adapters.evaluation.arms.controls import destroyed_arm, random_arm
from unlearning_adapters.evaluation.arms.generate import check_batch, check_call
from unlearning_adapters.evaluation.arms.processes import Process, this_process
from unlearning_adapters.evaluation.arms.record import RECORD, check_same, read_record, write_record
from unlearning_adapters.evaluation.arms.run import AGAIN, Run, look_again, run_arm
from unlearning_adapters.evaluation.arms.store import Store
from unlearning_adapters.evaluation.detectors.detector import Detector, as_detectors, load_detector
from unlearning_adapters.evaluation.reports.report import Report, make_report
from unlearning_adapters.evaluation.suites.file import read_suite, suite_from_dict
from unlearning_adapters.evaluation.suites.suite import Case, Suite
from unlearning_adapters.evaluation.suites.worlds import world_named

from .arguments import check_flags, check_folder, check_plan, check_scoring, check_thresholds, checked_adapter

REPEATED = 2  # clips of the base that are made once more at the end, without batches


@dataclass(frozen=True)
class EvaluationPlan:
    """What an evaluation runs; the fields are the arguments of `evaluate`, checked."""

    pipe: Any
    suite: Suite
    detectors: tuple[Detector, ...]
    arms: Mapping[str, Arm]
    seeds: Sequence[int] | None
    gate: float | None
    features: Any
    progress: bool
    process: Process
    batch: int

    def __post_init__(self) -> None:
        check_unedited(self.pipe)
        check_batch(self.pipe, self.batch)
        for arm in self.arms.values():
            check_call(self.pipe, {**self.suite.generation, **arm.call})


def evaluate(
    pipe: Any,
    adapter: UnlearningAdapter | str | Path | None = None,
    suite: Suite | Concept | str | Path | None = None,
    detectors: Sequence[Any] | Mapping[str, Any] | None = None,
    seeds: Sequence[int] | None = None,
    *,
    arms: Mapping[str, Arm] | None = None,
    controls: bool = True,
    fused: bool = False,
    strengths: Sequence[float] = (),
    gate: float | None = None,
    features: Any = None,
    output: str | Path | None = None,
    progress: bool = True,
    process: Process | None = None,
    batch_size: int = 1,
) -> Report:
    """Measure what an adapter makes a pipeline forget, and what else it changes.

    Each prompt of the suite is run with the same seed in every arm: the base, the edited pipeline, and the controls, a
    random direction of the same rank and norm at the same sites, and a destroyed model. Both must fail; the report is
    void if one does not, or if they are not run. The pipeline is left as it was.

    Args:
        pipe: A diffusers pipeline without adapters of this package.
        adapter: The adapter or where it is; None if `arms` says what is measured.
        suite: A `Suite`, a concept, or the name or file of one; None takes the adapter's concept.
        detectors: Detectors, callables of the frames, or names; None takes the judge of ShapeWorld or CastWorld for
            its suites. A detector of validity is added if there is none.
        seeds: Seeds with which each prompt is run; None takes each prompt's own.
        arms: Further arms by name, such as rivals; without `adapter` one of them has the part "edited".
        controls: Whether to run the controls.
        fused: Whether to write the adapter into the weights for its arm.
        strengths: Further strengths of the adapter, each an arm "strength-<value>".
        gate: Least share of forget prompts that the base must show; below it no other arm is run. None takes 0.9 for
            suites with a target and 0.5 for others, 0 turns it off.
        features: Network for Frechet and kernel distances, see `measure_distances`, or "random" for a fixed random one;
            None takes no distances.
        output: Folder of rows and clips; an interrupted run is continued there. None takes a temporary one.
        progress: Whether to show progress bars.
        process: This process among all of a run; None asks the launcher's environment.
        batch_size: Clips per call of the pipeline, at most. Noise does not depend on it; clips differ by rounding.

    Returns:
        The report.

    Raises:
        EvaluationError: If there is nothing to measure, the pipeline is edited or makes no batches, or the folder holds
            another run.

    Example:
        >>> report = evaluate(pipe, "no-red", output="no-red-evaluation")
        >>> report.status, report.value("erase"), report.value("preserve")
    """
    check_plan(detectors, seeds, arms, strengths, gate, features, output, process)
    check_flags(controls=controls, fused=fused)
    edit = checked_adapter(adapter)
    prompts = as_suite(edit, suite)
    observers = default_detectors(prompts) if detectors is None else as_detectors(detectors)
    plan = EvaluationPlan(
        pipe=pipe,
        suite=prompts,
        detectors=with_validity(observers),
        arms=plan_arms(edit, arms or {}, controls, fused, strengths),
        seeds=seeds,
        gate=gate,
        features=features,
        progress=progress,
        process=process or this_process(cpu=_on_cpu(pipe)),
        batch=batch_size,
    )
    if output is not None:
        return _evaluate(plan, Path(output))
    if plan.process.count > 1:
        raise EvaluationError("Several processes need a folder that all of them see. Give `output`.")
    with tempfile.TemporaryDirectory(prefix="unlearning-evaluation-") as folder:
        return _evaluate(plan, Path(folder))


def rescore(
    folder: str | Path,
    detectors: Sequence[Any] | Mapping[str, Any] | None = None,
    thresholds: Mapping[str, float] | None = None,
    gate: float | None = None,
    features: Any = None,
    progress: bool = True,
) -> Report:
    """Compute the report of a run anew, with other thresholds or detectors; nothing is generated.

    Args:
        folder: The folder of the run.
        detectors: Detectors that look at the stored clips; None keeps what was seen, and needs the same detectors.
        thresholds: Threshold by the name of a detector.
        gate: Least share of forget prompts that the base must show; None keeps that of the run.
        features: As for `evaluate`.
        progress: Whether to show a progress bar.

    Returns:
        The report; its rows and its record are written to the folder.
    """
    check_scoring(detectors, gate, features)
    check_thresholds(thresholds)
    check_folder("folder", folder)
    record = read_record(folder)  # before the store, which makes folders
    store, suite = Store(folder), suite_from_dict(record["suite"])
    if detectors is None:
        observers = tuple(_described(item) for item in record["detectors"])
    else:
        observers = with_validity(as_detectors(detectors))
        look_again(store, suite, observers, progress)
    for name, value in (thresholds or {}).items():
        if name not in [detector.name for detector in observers]:
            names = ", ".join(detector.name for detector in observers)
            raise EvaluationError(f"No detector of this run is named {name!r}. Its detectors: {names}.")
        observers = tuple(replace(item, threshold=value) if item.name == name else item for item in observers)
    record |= {"detectors": [detector.describe() for detector in observers]}
    record |= {} if gate is None else {"gate": gate}
    write_record(Path(folder), record)
    return make_report(record, store.rows(), suite, observers, _distances(store, suite, features))


def as_suite(adapter: UnlearningAdapter | None, suite: Suite | Concept | str | Path | None) -> Suite:
    """Return the suite to run; None takes that of the adapter's concept."""
    if isinstance(suite, Suite):
        return suite
    if isinstance(suite, Concept):
        return Suite.from_concept(suite)
    if suite is None:
        if adapter is None:
            raise EvaluationError("Expected a suite, since there is no adapter whose concept could name one.")
        suite = adapter.info.concept
    return read_suite(suite)


def default_detectors(suite: Suite) -> tuple[Detector, ...]:
    """Return the detectors of a suite of an embedded world; no choice fits all others."""
    if world := world_named(suite.name):
        return as_detectors(world.detectors)
    raise EvaluationError(
        f"No detector was given for the suite {suite.name!r}, and none fits every concept. "
        "Give one, such as detectors=[my_callable] or --detector package.module:callable."
    )


def with_validity(detectors: Sequence[Detector]) -> tuple[Detector, ...]:
    """Add the detector of validity if there is none: without it, noise would count as erased."""
    if any(detector.kind == "validity" for detector in detectors):
        return tuple(detectors)
    return (*detectors, load_detector("validity"))


def plan_arms(
    adapter: UnlearningAdapter | None,
    others: Mapping[str, Arm],
    controls: bool = True,
    fused: bool = False,
    strengths: Sequence[float] = (),
) -> dict[str, Arm]:
    """Return all arms in the order in which they are run: the base, what is edited, other arms, the controls.

    Raises:
        EvaluationError: If nothing is edited, or a name is taken.
    """
    plan = {BASE: base_arm()}
    if adapter is not None:
        plan[EDITED] = adapter_arm(adapter, fused=fused)
        for value in strengths:
            plan[f"strength-{value:g}"] = adapter_arm(adapter, value, fused, "sweep", f"strength {value:g}")
    for name, arm in others.items():
        if name in (*plan, AGAIN):
            raise EvaluationError(f"The name {name!r} of an arm is taken. Give it another one.")
        plan[name] = arm
    if not any(arm.part == "edited" for arm in plan.values()):
        raise EvaluationError("Nothing is measured: give an adapter, or an arm with the part 'edited'.")
    if controls:
        if adapter is not None:
            plan.setdefault(RANDOM, random_arm(adapter, fused=fused))
        plan.setdefault(DESTROYED, destroyed_arm())
    return plan


def _evaluate(plan: EvaluationPlan, folder: Path) -> Report:
    suite, detectors, process = plan.suite, plan.detectors, plan.process
    conditions = conditions_of(plan.pipe, suite, plan.batch)
    store, cases = Store(folder, process.index), list(suite.cases(plan.seeds))
    record = _open_record(plan, folder, conditions)
    run = Run(plan.pipe, suite, detectors, store, conditions["hash"], process, plan.progress, plan.batch)
    repeats = _repeated(cases, plan.batch, process.count)
    again = replace(base_arm(), part="reference", title="base, once more")
    for name, arm in {**plan.arms, AGAIN: again}.items():
        arm_cases: list[Case] = repeats if name == AGAIN else cases
        run_arm(run, name, arm, arm_cases)
        process.wait()
        record["arms"][name] = {
            "title": arm.title,
            "part": arm.part,
            "details": dict(arm.details),
            "call": dict(arm.call),
            "cases": len(arm_cases),
        }
        if process.main:  # after each arm, so that a run that is cut can be looked at
            write_record(folder, record)
        if name == BASE and _stops_at_gate(record, store, suite, detectors):
            break
    report = make_report(record, store.rows(), suite, detectors, _distances(store, suite, plan.features))
    process.wait()
    return report


def _repeated(cases: Sequence[Case], batch: int, processes: int) -> list[Case]:
    """Return the cases that are made once more at the end; in batches the first of each process, for equal rounding."""
    if batch > 1:
        return list(cases[: batch * processes])
    return list(cases[:: max(1, len(cases) // REPEATED)][:REPEATED])


def _distances(store: Store, suite: Suite, features: Any) -> dict[str, Any] | None:
    if features is None:
        return None
    from unlearning_adapters.evaluation.reports.distances import distances_of_arms

    return distances_of_arms(store, suite, None if features == "random" else features)


def _stops_at_gate(record: Mapping[str, Any], store: Store, suite: Suite, detectors: Sequence[Detector]) -> bool:
    data = make_report(record, store.rows(), suite, detectors).data
    return bool(data["gate_failures"])


def _open_record(plan: EvaluationPlan, folder: Path, conditions: Mapping[str, Any]) -> dict[str, Any]:
    """Write what is run into the folder, or check that the folder holds a run of the same kind."""
    record: dict[str, Any] = {
        "conditions": conditions,
        "suite": plan.suite.to_dict(),
        "detectors": [detector.describe() for detector in plan.detectors],
        "seeds": None if plan.seeds is None else list(plan.seeds),
        "gate": plan.gate,
        "arms": {},
    }
    process = plan.process
    if (folder / RECORD).is_file():
        before = read_record(folder)
        check_same(folder, before, record)
    process.wait()
    if process.main:
        write_record(folder, record)
    process.wait()
    return record


def _described(item: Mapping[str, Any]) -> Detector:
    """Return a detector of an earlier run, which has its results and cannot look at new clips."""
    facts = {name: item[name] for name in ("name", "kind", "threshold", "min_share", "sees_prompt", "version")}
    return Detector(detect=_not_looking, settings=item["settings"], **facts)


def _not_looking(*_: Any, **__: Any) -> None:
    raise EvaluationError("This detector has only the results of an earlier run. Give it by name to let it look again.")


def _on_cpu(pipe: Any) -> bool:
    return getattr(pipe, "device", None) is None or pipe.device.type == "cpu"
