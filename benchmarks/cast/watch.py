"""Clips of the benchmark: made, judged, and kept for the base, which no cell makes twice."""

import contextlib
import time
import warnings
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.clips import Clip
from unlearning_adapters.evaluation.arms.observe import measure
from unlearning_adapters.evaluation.detectors.cast import cast
from unlearning_adapters.evaluation.metrics import FORGET, Sample
from unlearning_adapters.evaluation.suites.suite import Suite
from unlearning_adapters.evaluation.suites.world import prompt_set
from unlearning_adapters.runtime.verbs import load_unlearning_adapter, unload_unlearning_adapters
from unlearning_adapters.shapeworld.models.generate import CAST_GENERATION
from unlearning_adapters.shapeworld.world.prompts import LabelledPrompt

BATCH = 32


class Seen(NamedTuple):
    """What one clip shows, and the clip."""

    sample: Sample
    clip: Clip


Clips = dict[tuple[str, int], Seen]  # by prompt and seed


@dataclass(frozen=True)
class World:
    """A pipeline, and what it showed before any edit.

    Args:
        pipe: CastWorld's pipeline.
        able: Characters whom the base shows, by number; only these are asked for.
        call: Arguments of the pipeline's call.
        base: Clips of the base.
    """

    pipe: Any
    able: frozenset[int] = frozenset()
    call: Mapping[str, Any] = field(default_factory=lambda: dict(CAST_GENERATION))
    base: Clips = field(default_factory=dict)

    def look(self, prompts: Sequence[LabelledPrompt], label: str) -> Clips:
        """Return what the pipeline, as it is now, shows for prompts; each prompt and seed once."""
        asked = list({(prompt.prompt, prompt.seed): prompt for prompt in prompts}.values())
        if not asked:
            return {}
        suite = Suite("castworld", (prompt_set("asked", FORGET, asked),), {}, dict(self.call), sensitive=False)
        result = measure(self.pipe, suite, [cast()], batch=BATCH, progress=label)
        pairs = zip(asked, result.samples, result.clips, strict=True)
        return {(prompt.prompt, prompt.seed): Seen(sample, clip) for prompt, sample, clip in pairs}

    def look_at_base(self, prompts: Sequence[LabelledPrompt], label: str) -> Clips:
        """Return what the unedited pipeline shows for prompts, from earlier cells where it is known."""
        missing = [prompt for prompt in prompts if (prompt.prompt, prompt.seed) not in self.base]
        self.base.update(self.look(missing, f"{label}: base"))
        return self.base

    def build_arguments(self) -> dict[str, Any]:
        """Return what a build must share with the calls: the length that prompts are padded to."""
        return {"max_sequence_length": self.call["max_sequence_length"]}


@contextlib.contextmanager
def edited(pipe: Any, adapters: Sequence[UnlearningAdapter]) -> Iterator[None]:
    """Attach adapters for the block."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of adapters that remove nearly the same direction
            for number, adapter in enumerate(adapters):
                load_unlearning_adapter(pipe, adapter, f"a{number}")
        yield
    finally:
        unload_unlearning_adapters(pipe)


@contextlib.contextmanager
def timed(times: dict[str, float], name: str) -> Iterator[None]:
    """Put the seconds of processor time of the block into a dictionary, without the warnings of builds."""
    start = time.process_time()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        yield
    times[name] = time.process_time() - start
