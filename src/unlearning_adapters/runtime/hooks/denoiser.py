"""The hooks of a denoiser with adapters: they keep every edit where it belongs, and see which layers a call reached."""

from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

import torch
from torch import nn

from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.pipelines.running.call_lock import lock_of

from .layer import EditHook, LiveEdit, attach_edit, detach_edit
from .places import check_site, is_bypassed, is_wrapped, module_at
from .reach import HookState
from .registry import OwnHook, register, registered, unregister
from .scope import current_scope

STATE_DICT = "state_dict"


class EditHooks(OwnHook):
    """Keeps every edit where it belongs; itself a hook on the denoiser, so that it looks before every call.

    An edit belongs on the outermost module of its path: a LoRA that wraps the layer later would otherwise read the raw
    input beside it. A layer that is wrapped holds no edit in its weight, since nothing is known of what the wrapper
    does with that weight (a LoRA may read the raw input, be merged and taken out again, or norm the weight).

    Args:
        denoiser: The network that the paths start from.
        sync: What to do when wrappers came or went, or weights changed; None takes `place`.
        weights_changed: Whether a weight is no longer what fusing made of it; None if nothing is fused.
        missed: What to do after a call that did not reach these layers, whose edits act; None does nothing.
        saved: What to do when the weights are read by `state_dict`; None does nothing.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        sync: Callable[[], None] | None = None,
        weights_changed: Callable[[], bool] | None = None,
        missed: Callable[[list[str]], None] | None = None,
        saved: Callable[[], None] | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.made_for = id(denoiser)  # a copy of the denoiser has a copy of this, and runs the hooks of the original
        self.state = HookState()
        self.sites: dict[str, LiveEdit] = {}
        self.wrapped: dict[str, bool] = {}  # for each layer with a fused edit, as it was when it was synced
        self.replaced: set[str] = set()  # of these, the weights are being loaded anew
        self.attached: list[tuple[nn.Module, LiveEdit]] = []
        self.last_reached: frozenset[str] | None = None  # in the last run; None if there was none
        self._edit_hooks: dict[str, EditHook] = {}
        self._handles: list[Any] = []
        self._state_dict: Any = None  # what others had put on the denoiser in place of its own
        self.calls = 0  # of the denoiser, so far, but those inside of a compiled graph
        self._sync = sync or self.place
        self._weights_changed = weights_changed or _nothing_is_fused
        self._missed = missed or _nothing
        self._saved = saved or _nothing

    # Where edits are.

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def place(self) -> None:
        """Put every edit where it belongs now, and itself on the denoiser; without edits, leave no trace.

        Raises:
            DenoiserError: If a site is gone or bypassed; then nothing is changed.
        """
        for path in self.sites:
            check_site(self.denoiser, path)
        places = {path: (module, live) for path, module, live in self._places() if module is not None}
        targets, before = _identities(places.values()), self.attached
        # Before anything is changed: what is interrupted below is found, and put right, the next time.
        self.attached = [*before, *places.values()]
        for module, live in before:
            if (id(module), id(live)) not in targets:
                detach_edit(module)
        for path, (module, live) in places.items():
            if is_wrapped(module):  # PEFT copies layers, with the hook and with what it holds on to
                for inner in list(module.modules())[1:]:
                    detach_edit(inner)
            if not _holds(module, live):
                attach_edit(module, live, path, self.state)
        self.attached = list(places.values())
        hooks = {path: registered(module) for path, (module, _) in places.items()}
        self._edit_hooks = {path: hook for path, hook in hooks.items() if isinstance(hook, EditHook)}
        self.last_reached = None
        if not (self.sites or self.wrapped):
            self._leave()
        elif registered(self.denoiser) is not self:
            self._leave()
            self._enter()
        if registry := getattr(self.denoiser, "_diffusers_hook", None):
            registry.invalidate_child_registries_cache()

    def moved(self) -> bool:
        """Whether wrappers of layers came or went since the edits were placed."""
        places = self._places()
        if len(places) != len(self.attached):
            return True
        for (_, module, live), (attached, held) in zip(places, self.attached, strict=True):
            if module is not attached or live is not held:
                return True
        for path, was in self.wrapped.items():
            if is_wrapped(module_at(self.denoiser, path)) is not was:
                return True
        return any(is_bypassed(self.denoiser, path) for path in self.sites)

    def _check(self) -> None:
        # A compiled denoiser cannot branch on what a weight holds.
        if self.moved() or (not torch.compiler.is_compiling() and self._weights_changed()):
            self._sync()

    def _places(self) -> list[tuple[str, nn.Module | None, LiveEdit]]:
        return [(path, module_at(self.denoiser, path), live) for path, live in self.sites.items()]

    def _enter(self) -> None:
        register(self.denoiser, self)
        self._handles = [
            # Around whatever others put around `forward`: they may swap the layers inside of it.
            self.denoiser.register_forward_pre_hook(self._before_call),
            self.denoiser.register_forward_hook(self._after_call),
            # Between calls of the denoiser: a LoRA is loaded, or the weights are saved.
            self.denoiser.register_load_state_dict_pre_hook(self._before_loading),
            self.denoiser.register_load_state_dict_post_hook(self._after_loading),
        ]
        # No hook: torch goes through those of a `state_dict` one by one, and none may go while another thread is there.
        self._state_dict = self.denoiser.__dict__.get(STATE_DICT)
        self.denoiser.__dict__[STATE_DICT] = self.state_dict

    def _leave(self) -> None:
        for handle in self._handles:
            handle.remove()
        self._handles = []
        if self.denoiser.__dict__.get(STATE_DICT) == self.state_dict:  # or others have put theirs around it
            del self.denoiser.__dict__[STATE_DICT]
            if self._state_dict is not None:
                self.denoiser.__dict__[STATE_DICT] = self._state_dict
        unregister(self.denoiser)

    # Calls.

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Refuse to run a copy of the denoiser, whose hooks are those of the original."""
        if module is not self.denoiser:
            raise DenoiserError(
                f"This {type(module).__name__} is a copy of a denoiser with unlearning adapters, and its hooks run the "
                "original. Copy the denoiser before adapters are loaded, or unload them from the copy."
            )
        return args, kwargs

    def new_forward(self, _module: nn.Module, *args: Any, **kwargs: Any) -> Any:
        """Call the denoiser, between a look at where the edits are and one at which of them were called."""
        forward: Any = self.fn_ref.original_forward
        if torch.compiler.is_compiling():
            return self._call_in_graph(forward, *args, **kwargs)
        with lock_of(self.denoiser).in_call():
            call = self.state.call
            begun, call.begun = call.begun, False
            if not begun:  # a `PeftModel` calls `forward` itself, past the hooks of torch
                self._begin()
            output = forward(*args, **kwargs)
            if not begun:
                self._end()
        return output

    def _call_in_graph(self, forward: Callable[..., Any], *args: Any, **kwargs: Any) -> Any:
        self._check()
        for hook in self._edit_hooks.values():
            hook.in_graph = False
        output = forward(*args, **kwargs)
        missed = [hook.path for hook in self._edit_hooks.values() if hook.live.on and not hook.in_graph]
        if missed:
            self._missed_in_graph(missed)
        return output

    def _before_call(self, _module: nn.Module, _args: Any) -> None:
        if not torch.compiler.is_compiling():
            lock_of(self.denoiser).wait()
            self._begin()
            self.state.call.begun = True

    def _after_call(self, _module: nn.Module, _args: Any, _output: Any) -> None:
        if not torch.compiler.is_compiling():
            self.state.call.begun = False
            self._end()

    def _begin(self) -> None:
        self._check()
        self.calls += 1
        self.state.call.number = self.calls
        self.state.call.reached = set()

    def _end(self) -> None:
        """Find the layers that this run has not reached, though their edits act."""
        reached = self.state.reached_in_run(skips_blocks=bool(getattr(self.denoiser, "is_cache_enabled", False)))
        reached |= self.state.call.reached
        scope = current_scope(self.state)
        edits = self.sites if scope is None else scope.edits
        missed = [path for path, live in edits.items() if live.on and path not in reached]
        if missed:
            reached |= self._reached_in_graphs(missed, self.state.call.number)
            missed = [path for path in missed if path not in reached]
        self.last_reached = frozenset(reached)
        if missed:
            self._missed(missed)

    def _reached_in_graphs(self, paths: list[str], number: int) -> set[str]:
        """Return the layers that compiled blocks reached, and forget them unless another call began meanwhile."""
        hooks = [self._edit_hooks[path] for path in paths if path in self._edit_hooks]
        reached = {hook.path for hook in hooks if hook.in_graph}
        if number == self.calls:
            for hook in hooks:
                hook.in_graph = False
        return reached

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def _missed_in_graph(self, paths: list[str]) -> None:
        self._missed(paths)

    # Weights that are read or written.

    def _before_loading(self, _module: nn.Module, state_dict: Mapping[str, Any], prefix: str, *_: Any) -> None:
        lock_of(self.denoiser).wait()
        self.replaced = {path for path in self.wrapped if f"{prefix}{path}.weight" in state_dict}

    def _after_loading(self, *_: Any) -> None:
        self._check()
        self.replaced = set()

    def state_dict(self, *args: Any, **kwargs: Any) -> Any:
        """Return the weights as they are, between two changes; stands in for the method of the denoiser."""
        read = self._state_dict or partial(type(self.denoiser).state_dict, self.denoiser)
        if registered(self.denoiser) is not self:
            return read(*args, **kwargs)
        with lock_of(self.denoiser).in_call():
            self._check()
            self._saved()
            return read(*args, **kwargs)


def _nothing_is_fused() -> bool:
    return False


def _nothing(*_: Any) -> None:
    return None


def _holds(module: nn.Module, live: LiveEdit) -> bool:
    hook = registered(module)
    return isinstance(hook, EditHook) and hook.live is live


def _identities(places: Iterable[tuple[nn.Module, LiveEdit]]) -> set[tuple[int, int]]:
    return {(id(module), id(live)) for module, live in places}
