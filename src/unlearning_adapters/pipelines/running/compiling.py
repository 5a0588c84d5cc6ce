"""Compiled modules, run as they were written: hooks that were set after the compilation are not called otherwise."""

import threading
from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any

import torch
from torch import nn


def any_compiled(components: Iterable[Any]) -> bool:
    """Whether a module of any component was compiled."""
    networks = [component for component in components if isinstance(component, nn.Module)]
    return any(
        "_orig_mod" in module._modules or module._compiled_call_impl is not None
        for network in networks
        for module in network.modules()
    )


def eager(compiled: bool) -> AbstractContextManager[None]:
    """Run compiled modules as they were written, in all threads, if there are any."""
    return _eager() if compiled else nullcontext()


_guard = threading.Lock()
_stances: list[Any] = []  # the first one sets the stance of the process, and is kept until the last one has left
_entered = 0


@contextmanager
def _eager() -> Iterator[None]:
    """Set the stance of the process once, however many threads are in here: each would restore what another had set."""
    global _entered
    with _guard:
        if _entered == 0:
            _stances.append(torch.compiler.set_stance("force_eager"))
        _entered += 1
    try:
        yield
    finally:
        with _guard:
            _entered -= 1
            if _entered == 0:
                _stances.pop().__exit__(None, None, None)
