"""The one loop of all measurements: make clips, let detectors look at each, and count what they saw."""

import time
from collections.abc import Generator, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.clips import Clip, to_clip
from unlearning_adapters.evaluation.detectors.detector import Detector
from unlearning_adapters.evaluation.metrics import ArmRates, Sample, measure_samples
from unlearning_adapters.evaluation.suites.suite import Case, Suite

from .generate import ClipRequest, FinalLatents, batches, check_count, generate_batch, quiet
from .samples import concept_detector, look, sample_of

BATCH = 16  # clips per call where nothing is stored


@dataclass(frozen=True, eq=False)
class Observation:
    """The result of one request.

    Args:
        request: What was asked for.
        clip: The clip; None if it could not be made.
        seen: What each detector saw, by its name; {"error": text} if it failed.
        seconds: Time that generating took.
        failure: Why there is no clip.
    """

    request: ClipRequest
    clip: Clip | None = None
    seen: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    seconds: float = 0.0
    failure: Exception | None = None


@dataclass(frozen=True, eq=False)
class Measurement:
    """What a pipeline in one state showed for all prompts of a suite.

    Args:
        clips: The clips, in the order of the suite.
        samples: What each shows.
        rates: The rates.
        seconds: Time that generating took.
        latents: Latents after the last step, shape (clips, ...), if they were asked for.
    """

    clips: tuple[Clip, ...]
    samples: tuple[Sample, ...]
    rates: ArmRates
    seconds: float
    latents: Tensor | None = None


def observe(
    pipe: Any,
    requests: Sequence[ClipRequest],
    detectors: Sequence[Detector],
    call: Mapping[str, Any] | None = None,
    batch: int = 1,
) -> Generator[Observation]:
    """Make clips with the pipeline as it is now, let detectors look at each, and yield what they saw, in order.

    Args:
        pipe: A diffusers pipeline, edited or not.
        requests: The clips to make.
        detectors: What looks at each clip; one that fails does not end the loop.
        call: Further arguments of the pipeline's call.
        batch: Clips per call, at most.

    Raises:
        EvaluationError: If the pipeline returns another number of clips than it was asked for.
    """
    with quiet(pipe):
        for group in batches(requests, batch):
            start = time.perf_counter()
            try:
                frames = generate_batch(pipe, group, call)
            except Exception as error:  # of a foreign pipeline: anything
                yield from (Observation(request, failure=error) for request in group)
                continue
            seconds = (time.perf_counter() - start) / len(group)
            check_count(pipe, frames, group)
            for index, request in enumerate(group):
                yield _observed(request, frames[index], detectors, seconds)


def _observed(request: ClipRequest, frames: Any, detectors: Sequence[Detector], seconds: float) -> Observation:
    try:
        clip = to_clip(frames)
    except Exception as error:  # frames of a foreign pipeline: anything
        return Observation(request, failure=error)
    return Observation(request, clip, look(detectors, clip, request.detector_prompt or request.text), seconds)


def measure(
    pipe: Any,
    suite: Suite,
    detectors: Sequence[Detector],
    *,
    batch: int = BATCH,
    progress: str | None = None,
    latents: bool = False,
) -> Measurement:
    """Run a suite through the pipeline as it is now, and count what its clips show; nothing is stored.

    Args:
        pipe: A diffusers pipeline, edited or not.
        suite: The prompts; each is run with its own seed.
        detectors: What looks at each clip. Labels of the first that can tell decide whether the concept is there.
        batch: Clips per call.
        progress: Label of a progress bar, None for none.
        latents: Whether to keep the latents after the last step, for pipelines with `callback_on_step_end`.

    Raises:
        EvaluationError: If a clip cannot be made for another reason than an error of the pipeline, which is raised.
    """
    concept, cases, taps = concept_detector(detectors), list(suite.cases()), FinalLatents()
    call = {**suite.generation, **({"callback_on_step_end": taps} if latents else {})}
    requests = [request_of(case) for case in cases]
    observations = []
    with closing(observe(pipe, requests, detectors, call, batch)) as stream:
        for observation in tqdm(stream, desc=progress, total=len(cases), unit="clip", disable=progress is None):
            if observation.failure is not None:
                raise observation.failure
            observations.append(observation)
    samples = tuple(
        sample_of(case.key, case.role, case.prompt.truth, observation.seen, suite.target, detectors, concept)
        for case, observation in zip(cases, observations, strict=True)
    )
    return Measurement(
        clips=tuple(item.clip for item in observations if item.clip is not None),
        samples=samples,
        rates=measure_samples(samples, suite.factor),
        seconds=sum(item.seconds for item in observations),
        latents=taps.stacked if latents else None,
    )


def request_of(case: Case, text: str | None = None, reseed: int = 0) -> ClipRequest:
    """Return the clip of a case, with another text or noise if they are given."""
    prompt = case.prompt
    words = prompt.text if text is None else text
    return ClipRequest(words, case.seed + reseed, prompt.text, prompt.image, prompt.call)
