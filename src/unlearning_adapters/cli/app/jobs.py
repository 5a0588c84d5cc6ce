"""Long work of the page in a thread of its own, which tells how far it is, and can be stopped without a trace."""

import errno
import tempfile
import threading
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from unlearning_adapters.errors import UnlearningError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)  # a disk, a quota and a limit of files
WAIT = 0.2  # seconds between two looks at whether to stop, while another page holds the model


class Stopped(BaseException):
    """Ends a job at its next step; no `except Exception` on the way swallows it, as with Ctrl-C."""


class Job:
    """One piece of work.

    Args:
        work: Function that does it; it gets the job, and calls `tick` often.
        text: What it does, for people.

    Example:
        >>> job = Job(lambda job: sum(range(10)), "counting")
        >>> job.wait(10), job.result
        (True, 45)
    """

    def __init__(self, work: Callable[["Job"], Any], text: str) -> None:
        self.text, self.steps, self.result, self.error = text, 0, None, ""
        self.stopped, self.waits = False, ""  # for whom it waits, in words
        self.replaced = False  # stopped, since its page asked for something newer
        self._stop, self._done = threading.Event(), threading.Event()
        threading.Thread(target=self._run, args=(work,), daemon=True, name=f"unlearn app: {text}").start()

    def tick(self, steps: int = 0) -> None:
        """Count steps, or raise `Stopped` if somebody asked the job to end."""
        if self._stop.is_set():
            raise Stopped
        self.steps += steps

    def stop(self) -> None:
        """Ask the job to end at its next step."""
        self._stop.set()

    def wait(self, seconds: float) -> bool:
        """Wait for the end; return whether it is reached."""
        return self._done.wait(seconds)

    def _run(self, work: Callable[["Job"], Any]) -> None:
        try:
            self.result = work(self)
        except Stopped:
            self.stopped = True
        except BaseException as error:  # the page shows it; a thread has nobody else to tell
            self.error = one_line(error)
        finally:
            self._done.set()


def one_line(error: BaseException) -> str:
    """Return an error as one line for people; errors that this package does not know are named by their kind."""
    text = " ".join(str(error).split())
    cause: BaseException | None = error
    while cause is not None:
        if isinstance(cause, OSError) and cause.errno in FULL:
            return f"There is no room left on the disk ({tempfile.gettempdir()}). Free some, and try again."
        cause = cause.__cause__ or cause.__context__
    known = isinstance(error, UnlearningError)
    return text if known and text else f"{type(error).__name__}: {text[:300]}" if text else type(error).__name__


@contextmanager
def collected_warnings(texts: list[str]) -> Iterator[None]:
    """Add the warnings of users' concern that this thread gives inside to a list, each as one line and once.

    `warnings.catch_warnings` is of the process: of two jobs at once, one would take the warnings of the other along.
    """
    with _collecting:
        if warnings.showwarning is not _show:
            _collector.before = warnings.showwarning
            warnings.showwarning = _show
            warnings.simplefilter("always", UserWarning)
    outer = getattr(_collector.own, "texts", None)
    _collector.own.texts = texts
    try:
        yield
    finally:
        _collector.own.texts = outer


class _Collector:
    def __init__(self) -> None:
        self.own, self.before = threading.local(), warnings.showwarning


_collector, _collecting = _Collector(), threading.Lock()


def _show(message: Warning | str, category: type[Warning], *place: Any, **more: Any) -> None:
    texts = getattr(_collector.own, "texts", None)
    if texts is None:
        _collector.before(message, category, *place, **more)
        return
    text = " ".join(str(message).split())
    if category is UserWarning and text not in texts:
        texts.append(text)
