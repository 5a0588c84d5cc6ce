"""Ctrl-C between the writes of a journal, and not within one."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def interrupts_wait() -> Iterator[None]:
    """Let Ctrl-C wait for the end of the block.

    Optuna's journal has a lock that is a file. Ctrl-C while it is taken or given back leaves it behind, or ends in an
    error about a file that is not there.
    """
    before: Any = signal.getsignal(signal.SIGINT)
    if threading.current_thread() is not threading.main_thread() or not callable(before):
        yield
        return
    calls: list[tuple[Any, ...]] = []
    signal.signal(signal.SIGINT, lambda *call: calls.append(call))
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)
    if calls:
        before(*calls[0])
