"""Run the arms of an evaluation: generate each clip, run the detectors, write a row. A stopped run is continued."""

import hashlib
import json
from collections.abc import Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

from tqdm import tqdm

from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.detectors.detector import Detector
from unlearning_adapters.evaluation.suites.suite import Case, Suite

from .arm import BASE, Arm
from .observe import Observation, observe, request_of
from .processes import Process
from .samples import drift_between, look
from .store import Row, Store

HOPELESS = 3  # failures in a row, before anything succeeded, after which a run is given up
AGAIN = "base-again"  # a few clips of the base, made once more at the end


@dataclass(frozen=True)
class Run:
    """Everything that stays the same while the arms of one evaluation are run.

    Args:
        pipe: The pipeline.
        suite: The suite.
        detectors: What looks at each clip.
        store: The folder of the run.
        conditions: Hash of the conditions.
        process: This process among all.
        progress: Whether to show progress bars.
        batch: Clips per call of the pipeline, at most.
    """

    pipe: Any
    suite: Suite
    detectors: tuple[Detector, ...]
    store: Store
    conditions: str
    process: Process
    progress: bool = True
    batch: int = 1


def arm_conditions(conditions: str, arm: Arm) -> str:
    """Return the hash of the conditions of one arm: those of all, and what the arm itself does."""
    text = json.dumps([conditions, dict(arm.details), dict(arm.call)], sort_keys=True, default=str)
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def run_arm(run: Run, name: str, arm: Arm, cases: Sequence[Case]) -> None:
    """Make all clips of an arm that are missing, this process's share of them.

    Raises:
        EvaluationError: If the folder holds clips of an arm of that name under other conditions, or nothing succeeds.
    """
    conditions = arm_conditions(run.conditions, arm)
    present = run.store.rows()
    for row in present.values():
        if row.arm == name and row.conditions != conditions:
            raise EvaluationError(
                f"The folder {run.store.folder.name!r} holds clips of the arm {name!r} under other conditions "
                f"({row.conditions}, now {conditions}): another model, adapter, strength, scheduler, size or suite. "
                "Choose another folder, or remove that one."
            )
    measured_keys = {key for key, row in present.items() if not row.error}
    missing = [case for case in run.process.share(cases) if (name, *case.key) not in measured_keys]
    if not missing:
        return
    pipe = run.pipe if arm.pipe is None else arm.pipe
    requests = [request_of(case, arm.text(case), arm.reseed) for case in missing]
    failures, label = 0, f"{name}{f' ({run.process.index})' if run.process.count > 1 else ''}"
    with (
        arm.enter(pipe),
        closing(
            observe(pipe, requests, run.detectors, {**run.suite.generation, **arm.call}, run.batch)
        ) as observations,
        tqdm(total=len(missing), desc=label, unit="clip", disable=not run.progress, position=run.process.local) as bar,
    ):
        for case, observation in zip(missing, observations, strict=True):
            row = _row(run, name, arm, case, conditions, observation)
            run.store.append(row)
            bar.update()
            failures = failures + 1 if row.error and failures >= 0 else (failures if row.error else -1)
            if failures >= HOPELESS or (failures == len(missing) and name == BASE):
                raise EvaluationError(
                    f"No clip of the arm {name!r} could be made. The last error: {row.error.rstrip('.')}. {_cure(run)}"
                )


def _row(run: Run, name: str, arm: Arm, case: Case, conditions: str, observation: Observation) -> Row:
    """Store a clip and return its row, with its drift from the base; an error becomes a row that says so."""
    if observation.clip is None:
        return Row(name, *case.key, conditions, error=_line(observation.failure))
    path = run.store.save_clip((name, *case.key), observation.clip)
    drift: Mapping[str, Any] = {}
    if arm.part != "base" or name == AGAIN:
        base = run.store.rows_of_base().get((BASE, *case.key))
        drift = drift_between(run.store.load_clip(base), observation.clip) if base and base.clip else {}
    return Row(
        name,
        *case.key,
        conditions,
        path,
        observation.clip.shape[:3],
        round(observation.seconds, 3),
        observation.seen,
        drift,
    )


def _line(error: Exception | None) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]


def _cure(run: Run) -> str:
    if run.batch == 1:
        return f"Call {type(run.pipe).__name__} by itself, with the suite's generation settings, to see why."
    return f"If {type(run.pipe).__name__} cannot make {run.batch} clips in one call, use batch 1, and another folder."


def look_again(store: Store, suite: Suite, detectors: Sequence[Detector], progress: bool = True) -> None:
    """Let detectors look at the stored clips of a run, and write the rows anew.

    Args:
        store: The folder of the run.
        suite: Its suite.
        detectors: The detectors; what others saw is kept beside them.
        progress: Whether to show a progress bar.
    """
    texts = {(part.name, prompt.id): prompt.text for part in suite.sets for prompt in part.prompts}
    updates = []
    for row in tqdm(store.rows().values(), desc="rescore", unit="clip", disable=not progress):
        findings = dict(row.found)
        if row.clip:
            if (row.set, row.prompt) not in texts:
                raise EvaluationError(
                    f"The row {'/'.join(map(str, row.key))} is of no prompt of this run's suite. Remove it."
                )
            findings |= look(detectors, store.load_clip(row), texts[row.set, row.prompt])
        updates.append(Row(**{**vars(row), "found": findings}))
    store.replace(updates)
