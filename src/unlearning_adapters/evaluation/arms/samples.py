"""From rows to samples: thresholds are applied here, after the fact, so that they can change without a new run."""

from collections.abc import Mapping, Sequence

import numpy as np

from unlearning_adapters.clips import Clip
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.detectors.detector import Detection, Detector
from unlearning_adapters.evaluation.metrics import Sample
from unlearning_adapters.evaluation.suites.suite import Suite

from .store import Key, Row
from .structure import frame_similarity

Detected = Mapping[str, Detection]


def read_samples(
    rows: Mapping[Key, Row], arm: str, suite: Suite, detectors: Sequence[Detector], concept: Detector
) -> list[Sample]:
    """Return what each clip of an arm shows, in the order of the suite.

    What a prompt asks for counts only in the factors that some detector labels: else nothing could be right.
    A clip is valid if no detector says otherwise. A clip that could not be made, or that a detector failed on, is an
    error: it is not valid, and it stays in the count.

    Args:
        rows: All rows of a run.
        arm: Name of the arm.
        suite: The suite.
        detectors: All detectors.
        concept: The detector that tells whether the concept is there.
    """
    part_of = {part.name: part for part in suite.sets}
    prompts = {(part.name, prompt.id): prompt for part in suite.sets for prompt in part.prompts}
    labelled = {name for row in rows.values() for found in row.found.values() for name in found.get("labels", ())}
    samples = []
    for row in rows.values():
        if row.arm != arm:
            continue
        if (row.set, row.prompt) not in prompts:
            raise EvaluationError(f"The row of {row.set}/{row.prompt} belongs to another suite than {suite.name!r}.")
        asked = prompts[row.set, row.prompt].truth
        role, truth = part_of[row.set].role, {name: value for name, value in asked.items() if name in labelled}
        samples.append(_sample(row, role, truth, suite, detectors, concept))
    order = {key: index for index, key in enumerate(prompts)}
    return sorted(samples, key=lambda sample: (order[sample.key[:2]], sample.key[2]))


def _sample(
    row: Row, role: str, truth: Mapping[str, str], suite: Suite, detectors: Sequence[Detector], concept: Detector
) -> Sample:
    key = (row.set, row.prompt, row.seed)
    failed = bool(row.error) or any("error" in row.found.get(detector.name, {"error": ""}) for detector in detectors)
    if failed:
        return Sample(role, False, truth=truth, error=True, key=key)
    seen = {detector.name: Detection.from_dict(row.found[detector.name]) for detector in detectors}
    valid = all(detection.valid is not False for detection in seen.values())
    labels = {name: value for found in reversed(list(seen.values())) for name, value in found.labels.items()}
    motions = [detection.motion for detection in seen.values() if detection.motion is not None]
    return Sample(
        role=role,
        valid=valid,
        present=concept.sees_concept(seen[concept.name], suite.target) if valid else None,
        labels=labels if valid else {},
        truth=truth,
        motion=motions[0] if valid and motions else None,
        frames=concept.frames_seen(seen[concept.name]) if valid else (),
        key=key,
    )


def look(detectors: Sequence[Detector], clip: Clip, prompt: str) -> dict[str, dict[str, object]]:
    """Return what each detector saw in a clip; one that fails gives {"error": text}, which is counted, not hidden."""
    found: dict[str, dict[str, object]] = {}
    for detector in detectors:
        try:
            found[detector.name] = detector(clip, prompt).to_dict()
        except Exception as error:  # of foreign code: anything
            found[detector.name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    return found


def drift_between(base: Clip, clip: Clip) -> dict[str, object]:
    """Return how far a clip is from that of the base: mean absolute difference (0 to 1), PSNR, SSIM and equality.

    PSNR = 10 log10(255^2 / mean squared difference), in decibels; None for equal clips, for which it is not finite.
    SSIM is None where it cannot be taken, as without torchmetrics (`frame_similarity`).
    """
    if base.shape != clip.shape:
        raise EvaluationError(f"Clips of one prompt and seed differ in shape: {base.shape} and {clip.shape}.")
    change = clip.astype(np.float64) - base
    squared = float((change**2).mean())
    return {
        "difference": float(np.abs(change).mean()) / 255,
        "psnr": 10 * float(np.log10(255**2 / squared)) if squared > 0 else None,
        "ssim": frame_similarity(base, clip),
        "identical": squared == 0,
    }
