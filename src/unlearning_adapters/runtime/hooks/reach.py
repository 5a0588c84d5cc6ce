"""Which layers the calls of a denoiser reached: an edit that nobody calls does nothing.

A call may leave layers out for good reasons: caches skip blocks in some steps, and guidance by skipped layers in some
calls. So a layer counts as reached if any call of the denoiser reached it so far in the same call of the pipeline;
caches compute everything in the first one. A layer that code goes around is reached in none.
"""

import threading
from typing import Any

from unlearning_adapters.pipelines.running.call_lock import outermost_call


class ThreadCall(threading.local):
    """The call of a denoiser that a thread makes, or made last."""

    def __init__(self) -> None:
        self.reached: set[str] = set()  # paths of layers
        self.begun = False  # by a hook of torch, before the forward that is ours
        self.number = 0  # of all calls of the denoiser
        self.without_pipeline: set[str] = set()


class HookState:
    """What the hooks of a denoiser share: how many scopes are open, and what the call of each thread reached."""

    def __init__(self) -> None:
        self.open_scopes = 0
        self.call = ThreadCall()

    def __deepcopy__(self, _memo: dict[int, Any]) -> "HookState":
        return self  # PEFT copies layers together with their hooks

    def reached_in_run(self, *, skips_blocks: bool) -> set[str]:
        """Return the layers that the calls of the denoiser in this run of the pipeline reached, to be added to.

        Args:
            skips_blocks: Whether a cache skips blocks, so that calls without a pipeline are taken for one run.
        """
        run = outermost_call()
        if run is not None:
            reached: set[str] = run.notes.setdefault(self, set())
            return reached
        if not skips_blocks:
            self.call.without_pipeline = set()
        return self.call.without_pipeline
