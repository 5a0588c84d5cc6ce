"""The protocol of detectors, which look at clips, and how a detector is loaded by name.

A detector is at its core a plain callable, `detect(frames)`, that gets a uint8 clip (frames, height, width, 3), RGB, as
it was generated and before any encoding. It returns a number for the clip, a number per frame, labels by factor, or a
`Detection`. What it returns is kept; the threshold is applied later, so that it can change without a new run.
"""

import importlib
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import entry_points
from typing import Any, Literal, get_args

import numpy as np

from unlearning_adapters.clips import Clip
from unlearning_adapters.concepts.wording import show
from unlearning_adapters.config import check_keys
from unlearning_adapters.errors import EvaluationError, UnlearningError
from unlearning_adapters.pipelines.spacing import evenly_spaced

Kind = Literal["concept", "validity", "motion", "quality"]
GROUP = "unlearning_adapters.detectors"  # of entry points
FRAMES = 10  # that a slow detector looks at by default: the first, the last, and eight between them
BUILT_IN = {
    "shapes": "unlearning_adapters.evaluation.detectors.shapes:shapes",
    "cast": "unlearning_adapters.evaluation.detectors.cast:cast",
    "validity": "unlearning_adapters.evaluation.detectors.validity:validity",
    "motion": "unlearning_adapters.evaluation.detectors.motion:motion",
    "flow": "unlearning_adapters.evaluation.detectors.flow:flow",
    "nudenet": "unlearning_adapters.evaluation.detectors.nudenet:nudenet",
    "open-nsfw": "unlearning_adapters.evaluation.detectors.open_nsfw:open_nsfw",
    "wordmarks": "unlearning_adapters.evaluation.detectors.wordmarks:wordmarks",
    "clip": "unlearning_adapters.evaluation.detectors.clip:clip",
    "vlm-judge": "unlearning_adapters.evaluation.detectors.vlm_judge:vlm_judge",
}


@dataclass(frozen=True)
class Detection:
    """What a detector saw in one clip, before any threshold.

    Args:
        scores: One number per frame that was looked at, or a single one for the clip.
        labels: What was seen, by factor, such as {"colour": "green"}; "unknown" where it is not clear.
        valid: Whether the clip can be read at all; None if the detector does not judge that.
        reason: Why it is not valid, or what was seen, in a few words.
        motion: How much moves; None if the detector does not measure it.
    """

    scores: tuple[float, ...] = ()
    labels: Mapping[str, str] = field(default_factory=dict)
    valid: bool | None = None
    reason: str = ""
    motion: float | None = None

    def __post_init__(self) -> None:
        numbers = [*self.scores, *([] if self.motion is None else [self.motion])]
        if not all(math.isfinite(number) for number in numbers):
            raise EvaluationError(f"Expected the scores of a detector to be finite, but got {show(numbers)}.")

    def to_dict(self) -> dict[str, Any]:
        """Return what is not empty as plain JSON types, which `from_dict` reads back."""
        values: dict[str, Any] = {"scores": [round(score, 6) for score in self.scores], "labels": dict(self.labels)}
        values |= {"valid": self.valid, "reason": self.reason, "motion": self.motion}
        return {name: value for name, value in values.items() if value not in ([], {}, "", None)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Detection":
        """Read what `to_dict` wrote."""
        return cls(**{**values, "scores": tuple(values.get("scores", ()))})


@dataclass(frozen=True)
class Detector:
    """A callable that looks at clips, with all that a report must say about it.

    Args:
        name: Name of its results.
        detect: Called with the frames, and with `prompt=` if `sees_prompt`.
        kind: "concept" (a higher score is more of the concept, or labels name it), "validity" (whether a clip is one at
            all), "motion" (how much moves) or "quality" (any number that is compared between arms).
        threshold: Score from which the concept counts as seen in a frame.
        min_share: Share of the frames that must reach the threshold for the clip to count; 0 means one frame.
        sees_prompt: Whether it is told the prompt. The prompt can bias such a detector, and the report says so.
        version: Version of what it runs.
        settings: What else decides its results: preset, classes, hash of its weights, channel order, resizing.
    """

    name: str
    detect: Callable[..., Any]
    kind: Kind = "concept"
    threshold: float = 0.5
    min_share: float = 0.0
    sees_prompt: bool = False
    version: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not callable(self.detect):
            raise EvaluationError(f"Expected the detector {self.name!r} to be callable, but got {show(self.detect)}.")
        if self.kind not in get_args(Kind):
            raise EvaluationError(
                f"Expected the kind of the detector {self.name!r} to be one of {', '.join(get_args(Kind))}, "
                f"but got {self.kind!r}."
            )
        if not math.isfinite(self.threshold) or not 0 <= self.min_share <= 1:
            raise EvaluationError(
                f"Expected the detector {self.name!r} to have a finite threshold and a share from 0 to 1, "
                f"but got {self.threshold!r} and {self.min_share!r}."
            )

    def __call__(self, frames: Clip, prompt: str = "") -> Detection:
        """Look at a clip.

        Raises:
            EvaluationError: If the callable returned something that is not a result. Its own errors pass through.
        """
        return as_detection(self.detect(frames, prompt=prompt) if self.sees_prompt else self.detect(frames), self.name)

    def frames_seen(self, detection: Detection) -> tuple[bool, ...]:
        """Return, for each score, whether it reaches the threshold."""
        return tuple(score >= self.threshold for score in detection.scores)

    def sees_concept(self, detection: Detection, target: Mapping[str, str]) -> bool | None:
        """Tell whether the concept counts as seen in a clip; None if the detector cannot tell.

        Labels decide if they name the target's factor; otherwise the share of frames over the threshold does.
        """
        if self.kind != "concept":
            return None
        factor = next((name for name in target if name in detection.labels), None)
        if factor is not None:
            return detection.labels[factor] == target[factor]
        hits = self.frames_seen(detection)
        return None if not hits else sum(hits) >= max(1e-9, self.min_share * len(hits))

    def describe(self) -> dict[str, Any]:
        """Return what a report says about the detector, as plain JSON types."""
        return {
            "name": self.name,
            "kind": self.kind,
            "threshold": self.threshold,
            "min_share": self.min_share,
            "unit": "clip counts if at least one frame does" if self.min_share == 0 else "clip counts by its frames",
            "sees_prompt": self.sees_prompt,
            "version": self.version,
            "settings": dict(self.settings),
        }


def as_detector(value: Any, name: str | None = None, **settings: Any) -> Detector:
    """Return a detector: one that is one already, or a plain callable with its own name.

    Args:
        value: A `Detector`, or a callable of the frames.
        name: Name of its results; None takes the callable's `__name__`.
        settings: Fields of `Detector`.
    """
    if isinstance(value, Detector):
        changes: dict[str, Any] = {**settings, **({"name": name} if name else {})}
        return replace(value, **changes)
    check_keys("a detector", settings, {*Detector.__dataclass_fields__} - {"name", "detect"})
    return Detector(name or str(getattr(value, "__name__", type(value).__name__)), value, **settings)


def as_detection(result: Any, name: str = "detector") -> Detection:
    """Return what a callable gave as a `Detection`: a number, numbers per frame, or labels by factor."""
    if isinstance(result, Detection):
        return result
    if isinstance(result, Mapping) and all(isinstance(value, str) for value in result.values()):
        return Detection(labels=dict(result))
    try:
        if result is None:
            raise TypeError
        scores = np.asarray(result.detach().cpu() if hasattr(result, "detach") else result, dtype=np.float64)
    except (TypeError, ValueError):
        scores = np.empty((0, 0))
    if scores.ndim > 1 or scores.size == 0:
        raise EvaluationError(
            f"Expected the detector {name!r} to return a number, numbers per frame, labels by factor or a Detection, "
            f"but got {show(result)}."
        )
    return Detection(scores=tuple(float(score) for score in np.atleast_1d(scores)))


def load_detector(spec: str) -> Detector:
    """Return a detector by name.

    Args:
        spec: A built-in name ("shapes", "validity", "motion", "nudenet", ...), a name of the entry-point group
            `unlearning_adapters.detectors`, or "package.module:callable". Settings follow a question mark,
            "nudenet?preset=strict&threshold=0.45"; those of `Detector` apply to it, all others go to the factory.

    Returns:
        The detector. What an entry point or a module names may be a `Detector`, a function without required arguments
        that returns one, or a plain callable of the frames.

    Raises:
        EvaluationError: If there is no such detector, or it refuses its settings.

    Example:
        >>> load_detector("validity").kind
        'validity'
    """
    name, _, query = spec.partition("?")
    settings, others = _settings(spec, query)
    plugins = {point.name: point for point in entry_points(group=GROUP)}
    try:
        if name in BUILT_IN:
            value = _import(BUILT_IN[name])
        elif name in plugins:
            value = plugins[name].load()
        elif ":" in name:
            value = _import(name)
        else:
            names = ", ".join(sorted({*BUILT_IN, *plugins}))
            raise EvaluationError(f"Unknown detector {name!r}. Known: {names}; or give 'package.module:callable'.")
        if getattr(value, "makes_detector", False):
            value = value(**others)
        elif others:
            raise EvaluationError(f"The detector {name!r} takes no settings, but got {', '.join(others)}.")
    except UnlearningError:
        raise
    except Exception as error:  # of a foreign package: anything
        raise EvaluationError(f"Cannot load the detector {spec!r}: {type(error).__name__}: {error}.") from error
    return as_detector(value, name.rpartition(":")[2] if not isinstance(value, Detector) else None, **settings)


def detector_factory(function: Callable[..., Detector]) -> Callable[..., Detector]:
    """Mark a function that makes a detector from settings, so that `load_detector` calls it."""
    function.makes_detector = True  # type: ignore[attr-defined]
    return function


def as_detectors(values: Sequence[Any] | Mapping[str, Any]) -> tuple[Detector, ...]:
    """Return detectors from names, callables and detectors; a mapping gives the names.

    Raises:
        EvaluationError: If two have one name.
    """
    items = values.items() if isinstance(values, Mapping) else ((None, value) for value in values)
    objects = [(name, load_detector(value) if isinstance(value, str) else value) for name, value in items]
    detectors = [as_detector(value, name) for name, value in objects]
    names = [detector.name for detector in detectors]
    for index, name in enumerate(names):
        if name in names[:index]:
            raise EvaluationError(f"Two detectors are named {name!r}. Give each its own name.")
    return tuple(detectors)


def _settings(spec: str, query: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """Split "threshold=0.4&preset=strict" into the fields of `Detector` and the settings of a factory."""
    settings: dict[str, Any] = {}
    others: dict[str, Any] = {}
    for part in filter(None, query.split("&")):
        key, equals, value = part.partition("=")
        if not equals:
            raise EvaluationError(f"Expected settings such as 'threshold=0.4' after '?' in {spec!r}, but got {part!r}.")
        try:
            number: Any = float(value)
        except ValueError:
            number = value
        if key in ("threshold", "min_share") and isinstance(number, str):
            raise EvaluationError(f"Expected {key} in {spec!r} to be a number, but got {value!r}.")
        (settings if key in ("threshold", "min_share") else others)[key] = number
    return settings, others


def _import(path: str) -> Any:
    module, _, name = path.partition(":")
    return getattr(importlib.import_module(module), name)


def check_count(name: str, value: float) -> int:
    """Return a setting as a whole number of at least 0; command lines give floats."""
    if value != int(value) or value < 0:
        raise EvaluationError(f"Expected {name} to be a whole number >= 0, but got {value!r}.")
    return int(value)


def choose_frames(frames: Clip, count: int) -> Clip:
    """Return at most `count` frames, evenly from the first to the last; 0 takes all.

    Args:
        frames: Clip of shape (frames, height, width, 3).
        count: Number of frames; 1 takes the middle one.
    """
    if count == 0 or count >= len(frames):
        return frames
    if count == 1:
        return frames[len(frames) // 2 : len(frames) // 2 + 1]
    return np.asarray(frames[list(evenly_spaced(len(frames), count))])


def split_texts(name: str, values: str | float | Iterable[str]) -> list[str]:
    """Return a list of texts; one text holds several after "|", as in "a red car|a red bus"."""
    if isinstance(values, (int, float)):  # a command line reads a word of digits as a number
        values = f"{values:g}"
    parts = values.split("|") if isinstance(values, str) else list(values)
    texts = [str(text).strip() for text in parts]
    if not texts or not all(texts):
        raise EvaluationError(f"Expected {name} to be texts that are not empty, such as 'one|two', but got {parts!r}.")
    return texts
