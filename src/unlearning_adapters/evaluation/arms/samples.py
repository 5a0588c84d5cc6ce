"""From rows to samples: thresholds are applied here, after the fact, so that they can change without a new run."""

import math
from collections.abc import Mapping, Sequence
from importlib import import_module
from typing import Any

import numpy as np
import torch
from torch import Tensor

from unlearning_adapters.clips import Clip
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.detectors.detector import FRAMES, Detection, Detector, choose_frames
from unlearning_adapters.evaluation.metrics import Sample
from unlearning_adapters.evaluation.suites.suite import Suite

from .store import Key, Row

SIGMA = 1.5  # of the Gaussian window of SSIM in pixels, as in its paper: 11 x 11 pixels
REACH = 3.5  # half of that window in sigmas, as torchmetrics cuts it
SSIM_NUMBERS = 2**22  # in one call, which makes five maps of them


def read_samples(
    rows: Mapping[Key, Row], arm: str, suite: Suite, detectors: Sequence[Detector], concept: Detector
) -> list[Sample]:
    """Return what each clip of an arm shows, in the order of the suite.

    A prompt's truth counts only in the factors that a detector labels, since no clip could be right in the others. A
    clip is valid if no detector says otherwise. A clip that could not be made, or that a detector failed on, is an
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
        full_truth = prompts[row.set, row.prompt].truth
        role, truth = part_of[row.set].role, {name: value for name, value in full_truth.items() if name in labelled}
        key, findings = (row.set, row.prompt, row.seed), {} if row.error else row.found
        samples.append(sample_of(key, role, truth, findings, suite.target, detectors, concept))
    order = {key: index for index, key in enumerate(prompts)}
    return sorted(samples, key=lambda sample: (order[sample.key[:2]], sample.key[2]))


def concept_detector(detectors: Sequence[Detector]) -> Detector:
    """Return the detector that tells whether the concept is shown: the first of the kind "concept".

    Raises:
        EvaluationError: If there is none.
    """
    for detector in detectors:
        if detector.kind == "concept":
            return detector
    raise EvaluationError("No detector of the kind 'concept' was given: nothing tells whether the concept is shown.")


def sample_of(
    key: tuple[str, str, int],
    role: str,
    truth: Mapping[str, str],
    seen: Mapping[str, Mapping[str, Any]],
    target: Mapping[str, str],
    detectors: Sequence[Detector],
    concept: Detector,
) -> Sample:
    """Return what a clip shows.

    Args:
        key: Prompt set, prompt and seed.
        role: Role of the prompt set.
        truth: What the prompt asks for, by factor.
        seen: What each detector saw, by its name; nothing, or an error, counts as a failed clip.
        target: Factor and value of the concept.
        detectors: All detectors.
        concept: The detector that tells whether the concept is there.
    """
    if any("error" in seen.get(detector.name, {"error": ""}) for detector in detectors):
        return Sample(role, False, truth=truth, error=True, key=key)
    detections = {detector.name: Detection.from_dict(seen[detector.name]) for detector in detectors}
    valid = all(detection.valid is not False for detection in detections.values())
    labels = {name: value for one in reversed(list(detections.values())) for name, value in one.labels.items()}
    motions = [detection.motion for detection in detections.values() if detection.motion is not None]
    return Sample(
        role=role,
        valid=valid,
        present=concept.sees_concept(detections[concept.name], target) if valid else None,
        labels=labels if valid else {},
        truth=truth,
        motion=motions[0] if valid and motions else None,
        frames=concept.frames_seen(detections[concept.name]) if valid else (),
        key=key,
    )


def look(detectors: Sequence[Detector], clip: Clip, prompt: str) -> dict[str, dict[str, object]]:
    """Return what each detector saw in a clip; one that fails gives {"error": text}, which is counted, not hidden."""
    findings: dict[str, dict[str, object]] = {}
    for detector in detectors:
        try:
            findings[detector.name] = detector(clip, prompt).to_dict()
        except Exception as error:  # of foreign code: anything
            findings[detector.name] = {"error": f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]}
    return findings


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


def frame_similarity(base: Clip, clip: Clip) -> float | None:
    """Return the mean structural similarity of frames, Z. Wang et al. 2004: 1 for equal frames, near 0 for noise.

    `(2 m m' + c1)(2 s + c2) / ((m^2 + m'^2 + c1)(v + v' + c2))` of means, variances and covariance in a Gaussian
    window, with c1 = 0.01^2 and c2 = 0.03^2 for values from 0 to 1; over all channels, and ten frames at most, evenly
    from the first to the last. Where a side has less than 6 pixels the window is smaller.

    Args:
        base: Clip of shape (frames, height, width, 3).
        clip: Clip of the same shape.

    Returns:
        None without torchmetrics, or if frames are too small for any window.
    """
    whole = int(REACH * SIGMA + 0.5)
    half = min(whole, *(side - 1 for side in base.shape[1:3]))  # frames are padded by reflection
    if half < 1:
        return None
    try:
        measure = import_module("torchmetrics.functional.image").structural_similarity_index_measure
    except ImportError:
        return None
    if np.array_equal(base, clip):
        return 1.0  # in float32 the formula misses it by 0.00001
    sigma = SIGMA if half == whole else half / REACH
    first, second = (_channels(choose_frames(side, FRAMES)) for side in (base, clip))
    size = max(1, SSIM_NUMBERS // first[0].numel())
    total = 0.0
    for one, other in zip(first.split(size), second.split(size), strict=True):
        total += float(measure(other, one, sigma=sigma, data_range=1.0)) * len(one)
    mean = total / len(first)
    return mean if math.isfinite(mean) else None


def _channels(frames: Clip) -> Tensor:
    """Return frames as (frames, channels, height, width), 0 to 1."""
    return torch.from_numpy(frames).movedim(-1, 1).float() / 255
