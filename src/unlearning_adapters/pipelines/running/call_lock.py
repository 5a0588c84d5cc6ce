"""One lock per denoiser: a change waits for the calls that run, and calls that begin wait for the change.

A call is a whole call of a pipeline that has the denoiser, from its first line to its last, or of the denoiser itself
where no pipeline calls it. So each output is that of one state, which existed. Calls do not wait for each other.
"""

import threading
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from itertools import count
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from unlearning_adapters.adapter.record import COMPONENTS
from unlearning_adapters.pipelines.sites import bare_denoiser

_news = threading.Condition()  # guards all that this module holds, and tells that some of it changed
_locks: "WeakKeyDictionary[nn.Module, CallLock]" = WeakKeyDictionary()
_numbers = count()
_calls: "dict[int, list[PipelineCall]]" = {}  # of each thread, from the outermost to the innermost
# Threads that wait to begin a change. If that is inside of a call, the call stands still, and nobody waits for its end:
# two calls that change each other's denoiser from a callback would wait for ever.
_waiting_to_change: set[int] = set()


@dataclass(eq=False)
class PipelineCall:
    """A call of a pipeline that runs.

    Args:
        pipe: The pipeline.
        notes: Values that other modules keep until the call ends, each under its key.
    """

    pipe: Any
    notes: dict[Any, Any] = field(default_factory=dict)


@dataclass(eq=False)
class Change:
    """A change of denoisers that is under way.

    Args:
        thread: The thread that changes.
        writing: Whether the thread changes weights now. Before that, it waits for running calls, and lets their inner
            calls pass.
    """

    thread: int
    writing: bool = False


class CallLock:
    """Keeps changes of one denoiser apart from its calls, and from each other.

    A change is re-entrant. A thread that changes may call the denoiser, and a call may change it, from a callback.
    """

    def __init__(self) -> None:
        self.number = next(_numbers)
        self.change: Change | None = None
        self.mutex = threading.RLock()
        self.readers: Counter[int] = Counter()  # threads inside of `reading`
        self.running: Counter[int] = Counter()  # threads inside of the denoiser itself

    @contextmanager
    def in_call(self) -> Iterator[None]:
        """Let no other thread change the denoiser while it is called; wait if one does."""
        thread = threading.get_ident()
        with _news:
            self._wait_for_writing(thread)
            self.running[thread] += 1
        try:
            yield
        finally:
            _leave(self.running, thread)

    def wait(self) -> None:
        """Wait while another thread writes."""
        with _news:
            self._wait_for_writing(threading.get_ident())

    def _wait_for_writing(self, thread: int) -> None:
        while self.change is not None and self.change.writing and self.change.thread != thread:
            _news.wait()


def lock_of(denoiser: nn.Module) -> CallLock:
    """Return the lock of a denoiser, the same one for all pipelines that share it."""
    with _news:
        lock = _locks.get(denoiser)
        if lock is None:
            lock = _locks[denoiser] = CallLock()
        return lock


@contextmanager
def in_call(pipe: Any) -> Iterator[PipelineCall]:
    """Make a call of a pipeline: no other thread changes its denoisers meanwhile; wait if one does.

    An inner call waits only while a thread writes, since a thread that does not write yet may wait for the outer call.
    """
    thread, call = threading.get_ident(), PipelineCall(pipe)
    with _news:
        calls = _calls.setdefault(thread, [])
        locks = _locks_in(pipe)
        inside = bool(calls) or any(thread in lock.readers for lock in locks)
        while any(_keeps_out(lock.change, thread, inside) for lock in locks):
            _news.wait()
        calls.append(call)
    try:
        yield call
    finally:
        with _news:
            calls.remove(call)
            if not calls:
                _calls.pop(thread, None)
            _news.notify_all()


def outermost_call() -> PipelineCall | None:
    """Return the call of a pipeline that this thread is in, the outermost one, or None."""
    calls = _calls.get(threading.get_ident())
    return calls[0] if calls else None


@contextmanager
def reading(denoisers: Iterable[nn.Module]) -> Iterator[None]:
    """Let no other thread change denoisers until several calls of them are made, as a build does.

    Args:
        denoisers: What is called.
    """
    thread, locks = threading.get_ident(), _in_order(denoisers)
    with _news:
        inside = thread in _calls or any(thread in lock.readers for lock in locks)
        while any(_keeps_out(lock.change, thread, inside) for lock in locks):
            _news.wait()
        for lock in locks:
            lock.readers[thread] += 1
    try:
        yield
    finally:
        for lock in locks:
            _leave(lock.readers, thread)


@contextmanager
def held(denoisers: Iterable[nn.Module]) -> Iterator[None]:
    """Keep other threads from changing denoisers; calls go on."""
    thread = threading.get_ident()
    with ExitStack() as stack:
        for lock in _in_order(denoisers):
            if not lock.mutex.acquire(blocking=False):
                with _news:
                    _waiting_to_change.add(thread)
                    _news.notify_all()
                try:
                    lock.mutex.acquire()
                finally:
                    with _news:
                        _waiting_to_change.discard(thread)
            stack.callback(lock.mutex.release)
        yield


@contextmanager
def changing(denoisers: Sequence[nn.Module]) -> Iterator[None]:
    """Wait for the calls of denoisers that run in other threads, and let others wait until the change is over.

    Args:
        denoisers: The denoisers to change; they are always locked in the same order.
    """
    with held(denoisers), ExitStack() as stack:
        locks = [lock for lock in _in_order(denoisers) if lock.change is None]  # others: of this very thread
        if locks:
            for denoiser in denoisers:
                # A denoiser without adapters has no hook that would let a call of it wait, outside of pipelines.
                stack.callback(denoiser.register_forward_pre_hook(_wait_at_denoiser).remove)
            stack.enter_context(_shut(locks))
        yield


@contextmanager
def _shut(locks: Sequence[CallLock]) -> Iterator[None]:
    change = Change(threading.get_ident())
    try:
        with _news:
            for lock in locks:
                lock.change = change
            while _any_call(locks, change.thread):
                _news.wait()
            change.writing = True
            while any(set(lock.running) - {change.thread} - _waiting_to_change for lock in locks):
                _news.wait()
        yield
    finally:
        with _news:
            for lock in locks:
                lock.change = None
            _news.notify_all()


def _any_call(locks: Sequence[CallLock], thread: int) -> bool:
    """Return whether another thread is inside of a call, and does not stand still there."""
    apart = {thread} | _waiting_to_change
    if any(set(lock.readers) - apart for lock in locks):
        return True
    return any(
        lock in locks
        for other, calls in _calls.items()
        if other not in apart
        for call in calls
        for lock in _locks_in(call.pipe)
    )


def _keeps_out(change: Change | None, thread: int, inside: bool) -> bool:
    return change is not None and change.thread != thread and (change.writing or not inside)


def _wait_at_denoiser(denoiser: nn.Module, _args: Any) -> None:
    if not torch.compiler.is_compiling():
        lock_of(denoiser).wait()


def _leave(threads: Counter[int], thread: int) -> None:
    with _news:
        threads[thread] -= 1
        if not threads[thread]:
            del threads[thread]
        _news.notify_all()


def _in_order(denoisers: Iterable[nn.Module]) -> list[CallLock]:
    return sorted({lock_of(denoiser) for denoiser in denoisers}, key=lambda lock: lock.number)


def _locks_in(pipe: Any) -> list[CallLock]:
    """Return the locks of a pipeline's denoisers; none of its own code runs."""
    values = getattr(pipe, "__dict__", {})
    components = values.get("components")
    values = {**values, **(components if isinstance(components, dict) else {})}
    modules = (values.get(name) for name in COMPONENTS)
    locks = (_locks.get(bare_denoiser(module)) for module in modules if isinstance(module, nn.Module))
    return [lock for lock in locks if lock is not None]
