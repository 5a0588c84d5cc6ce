"""How several processes, started by `accelerate launch` or `torchrun`, share one evaluation."""

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import TypeVar

PATIENCE = timedelta(days=7)  # a process that has fewer clips to make waits for the others
Item = TypeVar("Item")


@dataclass(frozen=True)
class Process:
    """This process among all of a run.

    Args:
        index: 0 for the one that writes the report.
        count: Number of processes.
        local: Index on this machine, which is that of its GPU.
        wait: Returns when all processes have called it.
    """

    index: int = 0
    count: int = 1
    local: int = 0
    wait: Callable[[], None] = lambda: None

    @property
    def main(self) -> bool:
        """Whether it writes what all share."""
        return self.index == 0

    def share(self, items: Sequence[Item]) -> list[Item]:
        """Return this process's part of some items: every n-th, so that each process has some of each kind."""
        return list(items[self.index :: self.count])


def this_process(cpu: bool = False) -> Process:
    """Return this process; the only one, unless a launcher said otherwise in the environment.

    Args:
        cpu: Whether it computes on a CPU, so that processes talk through gloo.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) < 2:
        return Process()
    from accelerate import PartialState

    state = PartialState(cpu=cpu, timeout=PATIENCE)
    return Process(state.process_index, state.num_processes, state.local_process_index, state.wait_for_everyone)
