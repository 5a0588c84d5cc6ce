"""The false-positive floor of a detector: how often it fires on clips without its concept."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from unlearning_adapters.clips import Clip
from unlearning_adapters.evaluation.metrics import rate_to_dict
from unlearning_adapters.evaluation.rates import Rate

from .detector import Detector


@dataclass(frozen=True)
class Floor:
    """What a detector reports where there is nothing.

    Args:
        detector: Name of the detector.
        clips: Clips in which it saw something, of all that it could read. For a detector of validity: good clips that
            it rejected. For one of motion: still clips in which it saw motion.
        frames: The same for frames; nothing counted for other kinds than "concept".
        largest: Largest score (of a detector of motion: its largest motion), None without scores.
        errors: Clips that it could not read.
    """

    detector: str
    clips: Rate
    frames: Rate
    largest: float | None
    errors: int

    def to_dict(self) -> dict[str, Any]:
        """Return it as plain JSON types, rates with counts and intervals."""
        rates = {"clips": rate_to_dict(self.clips), "frames": rate_to_dict(self.frames)}
        return {"detector": self.detector, **rates, "largest": self.largest, "errors": self.errors}


def measure_floor(
    detector: Detector, clips: Iterable[Clip], target: Mapping[str, str] | None = None, prompt: str = ""
) -> Floor:
    """Return the floor of a detector on clips of neutral prompts.

    A report gives the same for the detectors of a run, on the base's clips of neighbour and unrelated prompts. This is
    for choosing a detector before a run.

    Args:
        detector: The detector.
        clips: Clips that do not show what it looks for. A detector of motion gets each clip's first frame, repeated.
        target: The concept's factor and value, for detectors that give labels.
        prompt: What detectors that see prompts are told.

    Returns:
        The floor. A clip that the detector fails on is an error and is not counted as clean.
    """
    clip_hits: list[bool] = []
    frame_hits: list[bool] = []
    scores: list[float] = []
    errors = 0
    for clip in clips:
        still = np.repeat(clip[:1], len(clip), axis=0) if detector.kind == "motion" else clip
        try:
            detection = detector(still, prompt)
        except Exception:  # of foreign code: anything; counted
            errors += 1
            continue
        if detector.kind == "motion":
            scores.append(detection.motion or 0.0)
            clip_hits.append(scores[-1] > 0)
            continue
        scores += detection.scores if detector.kind == "concept" else ()
        if detector.kind == "validity":
            clip_hits.append(detection.valid is False)
        elif (hit := detector.sees_concept(detection, target or {})) is not None:
            clip_hits.append(hit)
            frame_hits += detector.frames_seen(detection)
    return Floor(detector.name, Rate.of(clip_hits), Rate.of(frame_hits), max(scores, default=None), errors)
