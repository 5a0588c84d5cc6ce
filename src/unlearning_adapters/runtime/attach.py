"""Attached edits: hooks that change what sites read, `x' = x - mix (read x)`, and leave the weights alone.

diffusers' `HookRegistry` carries them: a compiled denoiser obeys it, while it ignores a torch pre-hook that comes late
(pytorch#117758). Being no LoRA, they are out of reach of the LoRA verbs, which switch off whatever they do not name.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from diffusers.hooks import HookRegistry, ModelHook
from torch import Tensor, nn

from unlearning_adapters.errors import DenoiserError

from .joint_edit import StackedEdit, apply_edit

HOOK = "unlearning_adapters"
INPUT_KEYWORDS = ("input", "hidden_states", "x")
# Children of an attention that `fuse_qkv_projections` replaces by one layer, so that nothing calls them any more.
BYPASSED = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


class LiveEdit:
    """A joint edit that hooks share; new strengths are written into its tensors, so that nothing is recompiled.

    Args:
        edit: The joint edit; its tensors are copied.
        on: Whether the edit acts. Off is the base bit for bit, which a product with zeros is not for inputs of -0.0.
    """

    def __init__(self, edit: StackedEdit, on: bool = True) -> None:
        self.edit = StackedEdit(edit.read.clone(), edit.mix.clone())
        self.on = on

    def rewrite(self, edit: StackedEdit, on: bool = True) -> None:
        """Take over another edit, in place where the shapes allow it."""
        held = self.edit
        if held.read.shape == edit.read.shape and not held.read.is_inference():
            held.read.copy_(edit.read)
            held.mix.copy_(edit.mix)
        else:
            self.edit = StackedEdit(edit.read.clone(), edit.mix.clone()).to(held.read.device)
        self.on = on

    def __call__(self, x: Tensor) -> Tensor:
        """Return the edited input."""
        # Nobody else moves these tensors: they are not parameters, and offloading moves the sites at any time.
        if self.edit.read.device != x.device:
            self.edit = self.edit.to(x.device)
        return apply_edit(x, self.edit)


class EditHook(ModelHook):
    """Edits the input of the module that it is registered on."""

    def __init__(self, live: LiveEdit, made_registry: bool) -> None:
        super().__init__()
        self.live = live
        self.made_registry = made_registry

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Return the arguments of the call with the edited input."""
        if not self.live.on:
            return args, kwargs
        if args:
            return (self.live(args[0]), *args[1:]), kwargs
        for key in INPUT_KEYWORDS:
            if key in kwargs:
                return args, {**kwargs, key: self.live(kwargs[key])}
        raise DenoiserError(
            f"{type(module).__name__} was called with the arguments {', '.join(kwargs) or '(none)'}, none of which is "
            f"known as its input. Expected a positional argument or one of {', '.join(INPUT_KEYWORDS)}."
        )


class Seats(ModelHook):
    """Keeps every edit where it belongs; itself a hook on the denoiser, so that it looks before every call.

    An edit belongs on the outermost module of its path: a LoRA that wraps the layer later would otherwise read the raw
    input beside it. A layer that is wrapped holds no edit in its weight, since nothing is known of what the wrapper
    does with that weight (a LoRA may read the raw input, be merged and taken out again, or norm the weight).

    Args:
        denoiser: The network that the paths start from.
        settle: What to do when wrappers came or went, or weights changed; None takes `seat`.
        weights_changed: Whether a weight is no longer what fusing made of it; None if nothing is fused.
    """

    def __init__(
        self,
        denoiser: nn.Module,
        settle: Callable[[], None] | None = None,
        weights_changed: Callable[[], bool] | None = None,
    ) -> None:
        super().__init__()
        self.denoiser = denoiser
        self.sites: dict[str, LiveEdit] = {}
        self.wrapped: dict[str, bool] = {}  # for each layer with a fused edit, as it was when it was settled
        self.replaced: set[str] = set()  # of these, the weights are being loaded anew
        self.taken: list[tuple[nn.Module, LiveEdit]] = []
        self.handles: list[Any] = []
        self.made_registry = False
        self._settle = settle or self.seat
        self._weights_changed = weights_changed or _nothing_is_fused

    def pre_forward(self, module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
        """Settle if a LoRA was loaded or unloaded since the last call, or fused into a weight that holds an edit."""
        if module is not self.denoiser:
            raise DenoiserError(
                f"This {type(module).__name__} is a copy of a denoiser with unlearning adapters, and its hooks run the "
                "original. Copy the denoiser before adapters are loaded, or unload them from the copy."
            )
        self._look()
        return args, kwargs

    @torch.compiler.disable  # type: ignore[untyped-decorator]
    def seat(self) -> None:
        """Put every edit where it belongs now, and itself on the denoiser; without edits, leave no trace.

        Raises:
            DenoiserError: If a site is gone or bypassed; then nothing is changed.
        """
        for path in self.sites:
            check_site(self.denoiser, path)
        places = [(module, live) for module, live in self._places() if module is not None]
        wanted, before = _identities(places), self.taken
        # Before anything is changed: what is interrupted below is found, and put right, the next time.
        self.taken = [*before, *places]
        for module, live in before:
            if (id(module), id(live)) not in wanted:
                detach_edit(module)
        for module, live in places:
            if is_wrapped(module):  # PEFT copies layers, with the hook and with what it holds on to
                for inner in list(module.modules())[1:]:
                    detach_edit(inner)
            if not _holds(module, live):
                attach_edit(module, live)
        self.taken = places
        if not (self.sites or self.wrapped):
            self._leave()
        elif _registered(self.denoiser) is not self:
            self._leave()
            _register(self.denoiser, self)
            # Between calls of the denoiser: a LoRA is loaded, or the weights are saved.
            self.handles = [
                self.denoiser.register_load_state_dict_pre_hook(self._before_loading),
                self.denoiser.register_load_state_dict_post_hook(self._after_loading),
                self.denoiser.register_state_dict_pre_hook(self._before_saving),
            ]
        if registry := getattr(self.denoiser, "_diffusers_hook", None):
            registry.invalidate_child_registries_cache()

    def moved(self) -> bool:
        """Whether wrappers of layers came or went since the edits were seated."""
        places = self._places()
        if len(places) != len(self.taken):
            return True
        for (module, live), (seated, held) in zip(places, self.taken, strict=True):
            if module is not seated or live is not held:
                return True
        for path, was in self.wrapped.items():
            if is_wrapped(module_at(self.denoiser, path)) is not was:
                return True
        return any(_is_bypassed(self.denoiser, path) for path in self.sites)

    def _look(self) -> None:
        # A compiled denoiser cannot branch on what a weight holds.
        if self.moved() or (not torch.compiler.is_compiling() and self._weights_changed()):
            self._settle()

    def _before_loading(self, _module: nn.Module, state_dict: dict[str, Any], prefix: str, *_: Any) -> None:
        self.replaced = {path for path in self.wrapped if f"{prefix}{path}.weight" in state_dict}

    def _after_loading(self, *_: Any) -> None:
        self._look()
        self.replaced = set()

    def _before_saving(self, *_: Any) -> None:
        self._look()

    def _leave(self) -> None:
        for handle in self.handles:
            handle.remove()
        self.handles = []
        _unregister(self.denoiser)

    def _places(self) -> list[tuple[nn.Module | None, LiveEdit]]:
        return [(module_at(self.denoiser, path), live) for path, live in self.sites.items()]


def attach_edit(module: nn.Module, edit: StackedEdit | LiveEdit) -> None:
    """Edit what a module reads from now on, `x' = x - mix (read x)`, in place of an edit that is attached already.

    Args:
        module: A Linear, or a LoRA layer around one.
        edit: The joint edit, or one that several modules share.

    Example:
        >>> attach_edit(linear, edit)
        >>> detach_edit(linear)  # as if nothing had been
    """
    detach_edit(module)
    _register(module, EditHook(edit if isinstance(edit, LiveEdit) else LiveEdit(edit), False))


def detach_edit(module: nn.Module) -> None:
    """Take the edit off a module and leave no trace; a module without an edit stays as it is."""
    _unregister(module)


def module_at(denoiser: nn.Module, path: str) -> nn.Module | None:
    """Return the outermost module at a path, seen through `torch.compile`, or None."""
    module: nn.Module | None = denoiser
    for part in path.split("."):
        module = module._modules.get(part) if module is not None else None
        if module is not None and "_orig_mod" in module._modules:
            module = module._modules["_orig_mod"]
    return module


def is_wrapped(module: nn.Module | None) -> bool:
    """Whether a module is no layer of the denoiser but what PEFT puts around one, such as a LoRA layer."""
    return module is not None and ("base_layer" in module._modules or "original_module" in module._modules)


def check_site(denoiser: nn.Module, path: str) -> None:
    """Raise `DenoiserError` if there is no module at a path, or if the denoiser does not call it."""
    if module_at(denoiser, path) is None:
        raise DenoiserError(
            f"{type(denoiser).__name__} no longer has the layer {path!r} that an unlearning adapter edits. "
            "Call unload_unlearning_adapters(), then load the adapter again."
        )
    if _is_bypassed(denoiser, path):
        raise DenoiserError(
            f"The query, key and value projections of {type(denoiser).__name__} are fused, so that {path!r} is not "
            "used and its edit would have no effect. Call unfuse_qkv_projections() first."
        )


def _nothing_is_fused() -> bool:
    return False


def _identities(places: list[tuple[nn.Module, LiveEdit]]) -> set[tuple[int, int]]:
    return {(id(module), id(live)) for module, live in places}


def _is_bypassed(denoiser: nn.Module, path: str) -> bool:
    parent, _, leaf = path.rpartition(".")
    return leaf in BYPASSED and bool(getattr(module_at(denoiser, parent), "fused_projections", False))


def _holds(module: nn.Module, live: LiveEdit) -> bool:
    hook = _registered(module)
    return isinstance(hook, EditHook) and hook.live is live


def _registered(module: nn.Module) -> ModelHook | None:
    registry = module.__dict__.get("_diffusers_hook")  # wrappers of PEFT pass attributes of the layer on
    return None if registry is None else registry.get_hook(HOOK)


def _register(module: nn.Module, hook: EditHook | Seats) -> None:
    hook.made_registry = "_diffusers_hook" not in module.__dict__
    with _beneath_offloading(module):
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK)


def _unregister(module: nn.Module) -> None:
    hook = _registered(module)
    if hook is None:
        return
    with _beneath_offloading(module):
        registry: Any = module._diffusers_hook
        _remove(registry, hook)
        # `remove_hook` leaves the class's own forward behind as an attribute of the instance.
        forward = module.__dict__.get("forward")
        if getattr(forward, "__func__", None) is type(module).forward:
            del module.__dict__["forward"]
    if hook.made_registry and not registry.hooks:
        del module._diffusers_hook


def _remove(registry: Any, hook: ModelHook) -> None:
    """Take a hook out of the chain of a registry, and leave the one above it whole.

    `remove_hook` puts what is beneath in the place of the next hook's forward, also where that has one of its own,
    which it so switches off silently: FasterCache on a denoiser, and what layerwise casting does on a LoRA layer.
    """
    above = registry._fn_refs[registry._hook_order.index(HOOK) + 1 :][:1]
    own = [ref.forward for ref in above if ref.original_forward is not None]
    registry.remove_hook(HOOK, recurse=False)
    for ref, forward in zip(above, own, strict=False):
        ref.forward, ref.original_forward = forward, hook.fn_ref.forward


@contextmanager
def _beneath_offloading(module: Any) -> Iterator[None]:
    """Let a registry change the forward beneath the one of accelerate's offloading.

    accelerate keeps the forward that it wraps in `_old_forward`, and goes back to that one whenever it likes (model
    offloading does after every call of the pipeline, loading a LoRA does too): a hook above it would be lost silently,
    and removing a hook below it would remove the offloading.
    """
    if "_old_forward" not in module.__dict__:
        yield
        return
    outer = module.__dict__.get("forward")
    module.forward = module._old_forward
    try:
        yield
    finally:
        module._old_forward = module.forward
        module.forward = outer
