"""Pipelines that jobs use in turns: a lane lends its pipeline to one job at a time, in the order in which they came."""

import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from copy import deepcopy
from typing import Any

from unlearning_adapters.pipelines.sites import denoisers

from .jobs import WAIT, Job

SMALL = 256 * 2**20  # bytes of weights up to which a second copy of a pipeline costs nothing that matters


class Lane:
    """A pipeline with its queue.

    Args:
        pipe: A diffusers pipeline.
    """

    def __init__(self, pipe: Any) -> None:
        self.pipe = pipe
        self._queue: list[Job] = []  # the first one has the pipeline
        self._turn = threading.Condition()

    @contextmanager
    def taken(self, job: Job) -> Iterator[Any]:
        """Give the pipeline to a job alone; its steps are counted, and a job that is stopped ends at its next step."""
        with self._turn:
            self._queue.append(job)
        try:
            self._wait(job)
            with ExitStack() as hooks:
                for network in denoisers(self.pipe).values():
                    handle = network.register_forward_pre_hook(lambda *_: job.tick(1))
                    hooks.callback(handle.remove)
                yield self.pipe
        finally:
            job.waits = ""
            with self._turn:
                self._queue.remove(job)
                self._turn.notify_all()

    def _wait(self, job: Job) -> None:
        with self._turn:
            while self._queue[0] is not job:
                first, before = self._queue[0], self._queue.index(job) - 1
                turn = f"{before} more before yours" if before else "yours is next"
                # The kind of work alone: what strangers forget on a Space is theirs.
                job.waits = f"Another tab is {first.text.partition(' ')[0].lower()}; {turn}"
                self._turn.wait(WAIT)
                job.tick()
            job.waits = ""


def lanes_of(pipe: Any) -> tuple[Lane, Lane]:
    """Return a lane for builds and evaluations, and one for clips.

    A small pipeline is copied, so that a clip never waits for a build; of a large one, both are the same lane.
    """
    weights = {
        weight.data_ptr(): weight.nbytes
        for part in pipe.components.values()
        if hasattr(part, "parameters")
        for weight in part.parameters()
    }
    lane = Lane(pipe)
    return (lane, Lane(deepcopy(pipe))) if sum(weights.values()) <= SMALL else (lane, lane)
