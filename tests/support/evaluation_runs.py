"""Runs of an evaluation without a model: clips are rendered, and everything behind them is the real thing."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np

from unlearning_adapters.clips import Clip
from unlearning_adapters.evaluation.arms.record import RECORD
from unlearning_adapters.evaluation.arms.samples import drift_between, look
from unlearning_adapters.evaluation.arms.store import Row, Store
from unlearning_adapters.evaluation.detectors.detector import Detection, Detector, as_detectors
from unlearning_adapters.evaluation.detectors.shapes import shapes
from unlearning_adapters.evaluation.evaluate import rescore, with_validity
from unlearning_adapters.evaluation.reports.report import Report
from unlearning_adapters.evaluation.suites.shapeworld import shapeworld_suite
from unlearning_adapters.evaluation.suites.suite import Case, Suite
from unlearning_adapters.shapeworld.world.scenes import Body, Scene, render

Draw = Callable[[Case], Clip]
PARTS = {"base": "base", "edited": "edited", "random": "control", "destroyed": "control"}
CONDITIONS = {"pipeline": "P", "model": "m", "dtype": "float32", "device": "cpu", "scheduler": "S", "hash": "h",
              "generator_device": "cpu", "generation": {}, "suite": "s", "versions": {}}  # fmt: skip


def scene(truth: Mapping[str, str], **changes: str) -> Clip:
    """Render what a prompt asks for, with some factors changed."""
    factors = {"colour": "blue", "shape": "circle", "motion": "left", "background": "black", **truth, **changes}
    body = Body(factors["shape"], factors["colour"], factors["motion"], 13.0, 32.0, 32.0)
    return render(Scene((body,), factors["background"]))


def obedient(case: Case) -> Clip:
    return scene(case.prompt.truth)


def recoloured(colour: str) -> Draw:
    """Show everything that is asked for, but another colour in place of red."""
    return lambda case: scene(
        case.prompt.truth, **({"colour": colour} if case.prompt.truth.get("colour") == "red" else {})
    )


def noise(case: Case) -> Clip:
    return np.random.default_rng(case.seed % 1000).integers(0, 256, (9, 64, 64, 3), dtype=np.uint8)


def blank(_: Case) -> Clip:
    return np.full((9, 64, 64, 3), 128, dtype=np.uint8)


@lru_cache(maxsize=512)
def _judged(data: bytes, shape: tuple[int, ...]) -> Detection:
    return shapes()(np.frombuffer(data, dtype=np.uint8).reshape(shape))


def judge() -> Detector:
    """ShapeWorld's judge, which remembers what it saw."""
    return replace(shapes(), detect=lambda frames: _judged(frames.tobytes(), frames.shape))


def red_suite(count: int = 4, **options: Any) -> Suite:
    return shapeworld_suite("red", count, paraphrases=False, **options)


def synthetic(
    folder: Path,
    arms: Mapping[str, Draw] | None = None,
    suite: Suite | None = None,
    detectors: Sequence[Any] | None = None,
    parts: Mapping[str, str] = PARTS,
    failing: Callable[[str, Case], bool] = lambda arm, case: False,
    about: Mapping[str, Mapping[str, Any]] | None = None,
    calls: Mapping[str, Mapping[str, Any]] | None = None,
) -> Report:
    """Write a run of drawn clips, as `evaluate` would, and return its report.

    Unless `arms` says otherwise, the base obeys, the edited arm shows green for red, and the controls fail.
    """
    suite = red_suite() if suite is None else suite
    found = with_validity(as_detectors([judge(), "motion"] if detectors is None else detectors))
    drawn = {"base": obedient, "edited": recoloured("green"), "random": obedient, "destroyed": noise, **(arms or {})}
    store, cases = Store(folder), list(suite.cases())
    for name, draw in drawn.items():
        for case in cases:
            key = (name, *case.key)
            if failing(name, case):
                store.append(Row(*key, "h", error="RuntimeError: no"))
                continue
            clip = draw(case)
            seen = look(found, clip, case.prompt.text)
            drift = drift_between(drawn["base"](case), clip) if name != "base" else {}
            store.append(Row(*key, "h", store.save_clip(key, clip), clip.shape[:3], 0.1, seen, drift))
    details = {"edited": {"strength": 1.0}, **(about or {})}
    record = {
        "conditions": CONDITIONS,
        "suite": suite.to_dict(),
        "detectors": [detector.describe() for detector in found],
        "seeds": None,
        "gate": None,
        "arms": {
            name: {"title": name, "part": parts.get(name, "reference"), "details": dict(details.get(name, {})),
                   "call": dict((calls or {}).get(name, {})), "cases": len(cases)}
            for name in drawn
        },
    }  # fmt: skip
    (folder / RECORD).write_text(json.dumps(record), encoding="utf-8")
    return rescore(folder, progress=False)
