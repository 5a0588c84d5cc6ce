"""The pipeline of the page, which all open pages share: a job has it alone, and leaves it as it was."""

from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from inspect import signature
from typing import Any

import torch

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.clips import Clip, to_clip
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.evaluation.arms.generate import ClipRequest, generate
from unlearning_adapters.pipelines.base_model import base_model_of
from unlearning_adapters.runtime.verbs import (
    delete_unlearning_adapters,
    load_unlearning_adapter,
    unlearning_adapters,
)
from unlearning_adapters.shapeworld.models.generate import generation_of

from .jobs import Job
from .lanes import lanes_of

REMEMBERED = 32  # clips of the base, so that a turn of a dial makes the edited clip alone
Edits = Sequence[tuple[UnlearningAdapter, float]]


class Bench:
    """A pipeline that several pages use in turns.

    Args:
        pipe: A diffusers pipeline without adapters of this package.
        source: What the user called it.
        call: Arguments of the pipeline's call for all clips, such as {"num_frames": 49}.
        raw_call: The same as plain JSON types, as the command line has them; None if they are.
    """

    def __init__(
        self, pipe: Any, source: str, call: Mapping[str, Any] | None = None, raw_call: Mapping[str, Any] | None = None
    ) -> None:
        self.pipe, self.source = pipe, source
        self.raw_call = dict((call if raw_call is None else raw_call) or {})
        self.call = {**generation_of(pipe), **(call or {})}
        self.embedded = base_model_of(pipe).rpartition("/")[2].startswith("shapeworld")
        self._work, self._look = lanes_of(pipe)
        self._base: OrderedDict[tuple[str, int], Clip] = OrderedDict()

    def taken(self, job: Job) -> AbstractContextManager[Any]:
        """Give the pipeline to a build or an evaluation, alone."""
        return self._work.taken(job)

    def clips(self, job: Job, requests: Sequence[tuple[str, int]], edits: Edits) -> list[Clip]:
        """Return one clip for each prompt and seed, with adapters at their strengths; without any, of the base.

        Args:
            job: Who asks.
            requests: Prompts with seeds.
            edits: Adapters with strengths; those of 0 are left out.

        Raises:
            ConfigError: If the pipeline takes no prompt.
        """
        self.check_takes_text()
        active = [(adapter, strength) for adapter, strength in edits if strength]
        if not active:
            return [self._of_base(job, *request) for request in requests]
        with self._look.taken(job) as pipe, attached(pipe, active):
            return [self._make(pipe, prompt, seed) for prompt, seed in requests]

    def check_has_prompt(self) -> None:
        """Raise `ConfigError` if the pipeline has no prompt."""
        if "prompt" not in signature(type(self.pipe).__call__).parameters:
            name = type(self.pipe).__name__
            raise ConfigError(f"{name} takes no prompt, and this page has nothing else to give it. Use Python instead.")

    def check_takes_text(self) -> None:
        """Raise `ConfigError` if the pipeline cannot be called with a prompt alone."""
        self.check_has_prompt()
        parameters = signature(type(self.pipe).__call__).parameters
        name = type(self.pipe).__name__
        if "image" in parameters and parameters["image"].default is parameters["image"].empty:
            if "image" not in self.call:
                raise ConfigError(f"{name} needs a picture. Start the page with --call image=FILE.png.")

    def _of_base(self, job: Job, prompt: str, seed: int) -> Clip:
        known = self._base.get((prompt, seed))
        if known is not None:
            return known
        with self._look.taken(job) as pipe, unlearning_adapters(pipe, []):
            clip = self._base[prompt, seed] = self._make(pipe, prompt, seed)
            while len(self._base) > REMEMBERED:
                self._base.popitem(last=False)
        return clip

    def _make(self, pipe: Any, prompt: str, seed: int) -> Clip:
        with torch.no_grad():
            return to_clip(generate(pipe, [ClipRequest(prompt, seed)], self.call)[0])


@contextmanager
def attached(pipe: Any, edits: Edits) -> Iterator[None]:
    """Let exactly these adapters act on the calls inside, and take them off again, whatever happens."""
    names: list[str] = []
    try:
        for number, (adapter, strength) in enumerate(edits, start=1):
            names.append(load_unlearning_adapter(pipe, adapter, f"page-{number}", strength))
        with unlearning_adapters(pipe, names, [strength for _, strength in edits]):
            yield
    finally:
        if names:
            delete_unlearning_adapters(pipe, names)
