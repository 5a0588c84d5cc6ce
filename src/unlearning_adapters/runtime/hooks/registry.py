"""Add our hooks to a module's `HookRegistry` of diffusers, and remove them without a trace and without harm to others.

Other libraries also wrap a module's `forward`, before us and after us: accelerate's offloading, cache-dit, patches for
float8. Wrappers that came after ours stay when ours is removed.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from diffusers.hooks import HookRegistry, ModelHook
from torch import nn

HOOK = "unlearning_adapters"
LEFT = "_unlearning_adapters_left"  # on a forward of ours that others still call: what it passes the call on to


class OwnHook(ModelHook):
    """A hook that `register` puts on a module.

    Args:
        made_registry: Whether the module had no registry before.
        forward: The forward that the registry made for it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.made_registry = False
        self.forward: Any = None


def registered(module: nn.Module) -> ModelHook | None:
    """Return our hook on a module, or None."""
    registry = module.__dict__.get("_diffusers_hook")  # wrappers of PEFT pass attributes of the layer on
    return None if registry is None else registry.get_hook(HOOK)


def register(module: nn.Module, hook: OwnHook) -> None:
    """Put our hook on a module, above the hooks that it has."""
    hook.made_registry = "_diffusers_hook" not in module.__dict__
    with _beneath_offloading(module):
        HookRegistry.check_if_exists_or_initialize(module).register_hook(hook, HOOK)
        hook.forward = module.__dict__["forward"]


def unregister(module: nn.Module) -> None:
    """Take our hook off a module, if there is one."""
    hook: Any = registered(module)
    if hook is None:
        return
    registry: Any = module.__dict__["_diffusers_hook"]
    with _beneath_offloading(module):
        # None: Ctrl-C came before `register` could note it, and nobody has come after us yet.
        if hook.forward is None or _next_above(module, registry) is hook.forward:
            _remove(registry, hook)
            _restore(module)
        else:
            _stand_aside(registry, hook)
    if hook.made_registry and not registry.hooks:
        del module.__dict__["_diffusers_hook"]


def is_covered(module: nn.Module) -> bool:
    """Whether other code replaced the forward of a module after our hook, and may not call the hook."""
    hook: Any = registered(module)
    return hook is not None and _next_above(module, module.__dict__["_diffusers_hook"]) is not hook.forward


def _next_above(module: nn.Module, registry: Any) -> Any:
    """Return the forward that is called just above the one of our hook: that one itself, unless others came between."""
    above = registry._fn_refs[registry._hook_order.index(HOOK) + 1 :]
    if not above:
        return module.__dict__.get("_old_forward", module.__dict__.get("forward"))
    return _beneath(above[0])


def _remove(registry: Any, hook: ModelHook) -> None:
    """Take a hook out of the chain of a registry, and leave the one above it whole.

    `remove_hook` puts what is beneath in the place of the next hook's forward, also where that has one of its own,
    which it so switches off silently: FasterCache on a denoiser, and what layerwise casting does on a LoRA layer.
    """
    above = registry._fn_refs[registry._hook_order.index(HOOK) + 1 :][:1]
    forwards = [ref.forward for ref in above if ref.original_forward is not None]
    registry.remove_hook(HOOK, recurse=False)
    for ref, forward in zip(above, forwards, strict=False):
        ref.forward, ref.original_forward = forward, _beneath(hook.fn_ref)


def _stand_aside(registry: Any, hook: Any) -> None:
    """Pass calls on from now on: whoever came after us goes on calling our forward, and must not be switched off."""
    hook.fn_ref.pre_forward, hook.fn_ref.post_forward = _pass_arguments, _pass_output
    hook.fn_ref.forward = _beneath(hook.fn_ref)
    setattr(hook.forward, LEFT, (hook.forward, hook.fn_ref))  # wrappers copy attributes of what they wrap
    place = registry._hook_order.index(HOOK)
    del registry.hooks[HOOK], registry._hook_order[place], registry._fn_refs[place]


def _restore(module: nn.Module) -> None:
    """Leave no forward on a module that is the class's own, or one of ours that others have stopped calling."""
    forward = module.__dict__.get("forward")
    while (left := getattr(forward, LEFT, None)) is not None and left[0] is forward:
        forward = module.__dict__["forward"] = left[1].forward
    if getattr(forward, "__func__", None) is type(module).forward:
        del module.__dict__["forward"]


def _beneath(reference: Any) -> Any:
    """Return the forward that a hook passes the call on to."""
    return reference.forward if reference.original_forward is None else reference.original_forward


def _pass_arguments(_module: nn.Module, *args: Any, **kwargs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    return args, kwargs


def _pass_output(_module: nn.Module, output: Any) -> Any:
    return output


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
