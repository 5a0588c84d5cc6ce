"""States of adapters that hold for the calls of one thread: what `with pipe.unlearning_adapters(...)` sets.

A scope replaces the edits of the inputs in the calls that are made inside of it, and touches nothing that others see.
It is a context variable: a new thread starts outside of all scopes, a task of asyncio inside of those of its maker.
"""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from .reach import HookState

if TYPE_CHECKING:
    from unlearning_adapters.runtime.plan import Plan

    from .layer import LiveEdit


@dataclass(eq=False)
class Scope:
    """The state of one denoiser inside of a `with` block.

    Args:
        plan: What its stack means; the fused part is that of the denoiser.
        edits: The edits of the inputs, by path; what others do to the denoiser may move them to other layers.
    """

    plan: "Plan"
    edits: dict[str, "LiveEdit"] = field(default_factory=dict)


_scopes: ContextVar[Mapping[HookState, Scope] | None] = ContextVar("unlearning_adapters", default=None)


def current_scope(state: HookState) -> Scope | None:
    """Return the scope that this call of a denoiser is made in, or None."""
    if not state.open_scopes:
        return None
    return (_scopes.get() or {}).get(state)


@contextmanager
def entered(scopes: Mapping[HookState, Scope]) -> Iterator[None]:
    """Make the calls of this thread in these scopes."""
    token = _scopes.set({**(_scopes.get() or {}), **scopes})
    try:
        yield
    finally:
        _scopes.reset(token)
