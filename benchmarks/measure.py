"""Measure steps in turn, so that whatever else the machine does meets all of them alike."""

import ctypes
import gc
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from tqdm import tqdm

# One side of a comparison: what it does, step by step. Steps without a name prepare or clean up, and are not measured.
Arm = Sequence[tuple[str | None, Callable[[], Any]]]
Meter = Callable[[Callable[[], Any]], float]

STATUS, CLEAR_REFS = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def seconds(step: Callable[[], Any]) -> float:
    """Return how long a step takes, on the wall clock."""
    start = time.perf_counter()
    step()
    return time.perf_counter() - start


def extra_bytes(step: Callable[[], Any]) -> float:
    """Return by how much a step raises the resident memory of the process at its peak.

    The kernel's own high-water mark, set back before the step (Linux only): it sees every allocation, whoever makes
    it. Memory that was freed earlier is given back first, or a step would reuse it unseen.
    """
    gc.collect()
    ctypes.CDLL(None).malloc_trim(0)
    CLEAR_REFS.write_text("5", encoding="ascii")
    before = _resident("VmRSS")
    step()
    return max(_resident("VmHWM") - before, _resident("VmRSS") - before, 1)


def can_measure_memory() -> bool:
    """Whether this system keeps a high-water mark that can be set back."""
    return sys.platform == "linux" and CLEAR_REFS.exists()


def in_turn(
    arms: Sequence[Arm], rounds: int, label: str, meter: Meter = seconds, warm_up: int | None = None
) -> dict[str, list[float]]:
    """Return what each named step measured in each round.

    Every round runs all arms once, in an order that turns round by round, so that no arm is always the first. The
    rounds of the warm-up do not count.

    Args:
        arms: The sides of the comparison.
        rounds: Number of rounds that count.
        label: Label of the progress bar, on stderr.
        meter: What is measured.
        warm_up: Number of rounds before; None takes one, and none before a single round.
    """
    found: dict[str, list[float]] = {name: [] for arm in arms for name, _ in arm if name}
    before = int(rounds > 1) if warm_up is None else warm_up
    for index in tqdm(range(-before, rounds), desc=label, unit="round"):
        for arm in arms if index % 2 else reversed(arms):
            gc.collect()
            for name, step in arm:
                if name is None:
                    step()
                    continue
                value = meter(step)
                if index >= 0:
                    found[name].append(value)
    return found


def _resident(key: str) -> int:
    line = next(line for line in STATUS.read_text(encoding="ascii").splitlines() if line.startswith(f"{key}:"))
    return int(line.split()[1]) * 1024
