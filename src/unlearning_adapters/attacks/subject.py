"""The subject of an attack: a pipeline in one state, its detectors, and the cost so far."""

import inspect
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.errors import EvaluationError
from unlearning_adapters.evaluation.arms.generate import ClipRequest, generate
from unlearning_adapters.evaluation.arms.observe import observe
from unlearning_adapters.evaluation.detectors.detector import Detection, Detector
from unlearning_adapters.evaluation.rates import Rate
from unlearning_adapters.pipelines.running.text_embeds import check_embeds, encode_texts
from unlearning_adapters.pipelines.sites import denoisers

from .target import Target


@dataclass
class Cost:
    """What was spent so far: clips made (each is a query), optimiser steps, seconds."""

    clips: int = 0
    steps: int = 0
    seconds: float = 0.0

    @contextmanager
    def clock(self) -> Iterator[None]:
        """Add the time that passes inside."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds += time.perf_counter() - start


@dataclass(frozen=True)
class ClipVerdict:
    """Whether a clip is valid, and whether it shows the concept."""

    shown: bool
    valid: bool


@dataclass(frozen=True)
class AttackPoint:
    """The result of an attack at one setting.

    Args:
        setting: The setting, such as "eta 2".
        rate: Share of all clips that are valid and show the concept.
        valid: Share of valid clips.
        number: A number that belongs to the setting, such as a loss, or None.
        before: The rate without the attack, if it differs from the rate of the target's own prompts.
        open_prompts: Whether the prompts leave the concept open; otherwise they name it.
    """

    setting: str
    rate: Rate
    valid: Rate
    number: float | None = None
    open_prompts: bool = False
    before: "AttackPoint | None" = None

    @classmethod
    def of(
        cls, setting: str, verdicts: Sequence[ClipVerdict], number: float | None = None, open_prompts: bool = False
    ) -> "AttackPoint":
        """Count what the clips of a setting show."""
        shown = Rate.of(verdict.shown for verdict in verdicts)
        valid = Rate.of(verdict.valid for verdict in verdicts)
        return cls(setting, shown, valid, number, open_prompts)


@dataclass(frozen=True)
class Subject:
    """A pipeline in one state, and what looks at its clips.

    Args:
        pipe: The pipeline, edited or not; no attack leaves a trace on it.
        detectors: What looks at each clip; the first that can tell decides whether the concept is there.
        call: Arguments of the pipeline's call.
        batch: Clips per call.
        adapter: The adapter whose edit is in the weights; None if there is none.
        second: Another adapter and its target, for the attack on a stack; None if there is none.
        cost: What was spent.
    """

    pipe: Any
    detectors: tuple[Detector, ...]
    call: Mapping[str, Any] = field(default_factory=dict)
    batch: int = 1
    adapter: UnlearningAdapter | None = None
    second: tuple[UnlearningAdapter, Target] | None = None
    cost: Cost = field(default_factory=Cost)

    def generate(self, requests: Sequence[ClipRequest], output_type: str = "np", **call: Any) -> list[Any]:
        """Return what the pipeline makes, one item per clip, through its own call."""
        self._count(requests)
        return generate(self.pipe, requests, {**self.call, **call}, self.batch, output_type)

    def look(self, requests: Sequence[ClipRequest], target: Target, **call: Any) -> list[ClipVerdict]:
        """Make clips and say, for each, whether it is valid and shows the concept.

        Raises:
            EvaluationError: If a detector fails, or none can tell. Errors of the pipeline pass through.
        """
        self._count(requests)
        verdicts = []
        with closing(observe(self.pipe, requests, self.detectors, {**self.call, **call}, self.batch)) as observations:
            for observation in observations:
                if observation.failure is not None:
                    raise observation.failure
                verdicts.append(self.judge(observation.seen, target))
        return verdicts

    def judge(self, seen: Mapping[str, Mapping[str, Any]], target: Target) -> ClipVerdict:
        """Say whether a clip is valid and shows the concept, from what each detector saw in it."""
        for name, values in seen.items():
            if "error" in values:
                raise EvaluationError(f"The detector {name!r} failed: {values['error']}.")
        detections = {name: Detection.from_dict(values) for name, values in seen.items()}
        if not all(detection.valid is not False for detection in detections.values()):
            return ClipVerdict(False, False)
        answers = [detector.sees_concept(detections[detector.name], target.truth) for detector in self.detectors]
        verdicts = [value for value in answers if value is not None]
        if not verdicts:
            raise EvaluationError(
                f"No detector can tell whether {target.concept!r} is shown. Give one with --detector."
            )
        return ClipVerdict(verdicts[0], True)

    def on(self, pipe: Any) -> "Subject":
        """Return the same subject with another pipeline; call arguments that this pipeline lacks are dropped."""
        parameters = inspect.signature(type(pipe).__call__).parameters
        return replace(self, pipe=pipe, call={name: value for name, value in self.call.items() if name in parameters})

    def _count(self, requests: Sequence[ClipRequest]) -> None:
        if any(request.embeds is not None for request in requests):
            check_embeds(self.pipe)
        self.cost.clips += len(requests)

    @torch.no_grad()
    def encode(self, texts: Sequence[str]) -> Tensor:
        """Return what the text encoder makes of prompts, of shape (prompts, tokens, width)."""
        return encode_texts(self.pipe, texts, self.call)


def plain_copy(pipe: Any) -> Any:
    """Return a pipeline with plain copies of the denoisers, without hooks and records, as in the saved checkpoint.

    Raises:
        EvaluationError: If weights are quantised or offloaded, so that they cannot be copied as they are.
    """
    copies = {name: _copy(name, network) for name, network in denoisers(pipe).items()}
    return rebuild(type(pipe), pipe, **copies)


def rebuild(kind: Any, pipe: Any, **parts: Any) -> Any:
    """Return a pipeline of a class with the components and settings of another one, and some other parts.

    Not `from_pipe`, which casts the components that both share to float32.
    """
    available = {**dict(pipe.config), **pipe.components, **parts}
    names = [name for name in inspect.signature(kind.__init__).parameters if name in available]
    return kind(**{name: available[name] for name in names})


def _copy(name: str, network: Any) -> Any:
    weights = network.state_dict()
    odd = [key for key, value in weights.items() if value.is_meta or type(value) is not Tensor]
    if odd:
        raise EvaluationError(f"The weight {name}.{odd[0]} is quantised or offloaded and cannot be copied.")
    with torch.random.fork_rng(devices=[]):  # a fresh network draws weights, which are replaced at once
        copy = type(network).from_config(network.config)
    copy.to(next(iter(network.parameters())).device)
    copy.load_state_dict({key: value.clone() for key, value in weights.items()}, assign=True)
    return copy.eval().requires_grad_(False)
