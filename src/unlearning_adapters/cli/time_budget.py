"""A time limit, in minutes, for a run that can be continued."""

import _thread
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import click

option = click.option(
    "--time-budget", type=click.FloatRange(min=0, min_open=True), metavar="MIN",
    help="end after so many minutes; the same command goes on",
)  # fmt: skip


@dataclass
class Budget:
    """Whether the time is over."""

    over: bool = False


@contextmanager
def time_budget(minutes: float | None) -> Iterator[Budget]:
    """Interrupt the block after some minutes, as Ctrl-C does; the block ends quietly, and `over` says so.

    Args:
        minutes: The limit; None is no limit.
    """
    budget = Budget()
    if minutes is None:
        yield budget
        return

    def end() -> None:
        budget.over = True
        _interrupt()

    timer: Any = threading.Timer(60 * minutes, end)
    timer.daemon = True
    before = signal.getsignal(signal.SIGINT)
    if before is signal.SIG_IGN:  # a job in the background, as of `nohup`, is deaf to Ctrl-C, and would be to this
        signal.signal(signal.SIGINT, signal.default_int_handler)
    timer.start()
    try:
        yield budget
    except KeyboardInterrupt:
        if not budget.over:
            raise
    finally:
        timer.cancel()
        if before is signal.SIG_IGN:
            signal.signal(signal.SIGINT, before)


def _interrupt() -> None:
    """Do what Ctrl-C does; a signal to the main thread also ends a call that sleeps there."""
    main = threading.main_thread().ident
    if hasattr(signal, "pthread_kill") and main is not None:
        signal.pthread_kill(main, signal.SIGINT)
    else:
        _thread.interrupt_main()
