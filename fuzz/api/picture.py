"""A picture of a pipeline: all that a verb that fails, or only reads, must leave as it was."""

import zlib
from typing import Any

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from unlearning_adapters.pipelines.edits import EDITOR

HOOKS = (
    "_forward_pre_hooks", "_forward_hooks", "_backward_hooks", "_state_dict_hooks", "_state_dict_pre_hooks",
    "_load_state_dict_pre_hooks", "_load_state_dict_post_hooks",
)  # fmt: skip

REPLACING = ("group_offloading", "layerwise_casting")  # hooks of diffusers that put other tensors in place


def picture(pipe: Any) -> dict[str, Any]:
    """Return what a pipeline is made of, as plain values by name."""
    taken: dict[str, Any] = {
        "random state": zlib.crc32(torch.get_rng_state().numpy()),
        "gradients": (torch.is_grad_enabled(), torch.is_inference_mode_enabled()),
        "defaults": (torch.get_default_dtype(), torch.get_num_threads()),
        "pipeline": sorted(name for name in vars(pipe) if name not in ("_current_timestep", "_interrupt")),
    }
    for name, part in (getattr(pipe, "components", None) or {}).items():
        # In place of a component that was deleted diffusers gives what its config says, made anew each time.
        taken[name] = id(part) if name in vars(pipe) else "deleted"
        if isinstance(part, nn.Module):
            modules = list(part.named_modules(prefix=name))
            moving, filed = (any(is_so(module) for _, module in modules) for is_so in (_moves_by_itself, _is_in_files))
            for path, module in modules:
                taken |= _values_alone(path, module, filed) if moving else _module(path, module)
        elif hasattr(part, "set_timesteps"):
            taken[f"{name}:"] = {key: repr(value) for key, value in vars(part).items()}
    return taken


def changed(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """Return the names of what differs."""
    return sorted(name for name in before.keys() | after.keys() if before.get(name) != after.get(name))


def _moves_by_itself(module: nn.Module) -> bool:
    """Whether a library replaces a module's tensors at each call: FSDP2, group offloading and layerwise casting."""
    registry = module.__dict__.get("_diffusers_hook")
    hooks = () if registry is None else registry.hooks
    return type(module).__name__.startswith("FSDP") or any(name in hooks for name in REPLACING)


def _is_in_files(module: nn.Module) -> bool:
    """Whether group offloading keeps numbers in files, and memory that means nothing in their place."""
    registry = module.__dict__.get("_diffusers_hook")
    hook = None if registry is None else registry.hooks.get("group_offloading")
    return hook is not None and hook.group.offload_to_disk_path is not None


def _values_alone(path: str, module: nn.Module, filed: bool) -> dict[str, Any]:
    """Return the adapters, and the numbers if they are in memory, of a module whose tensors come and go."""
    kept = {f"{path} adapters": _adapters(module)}
    for name, value in () if filed else module._parameters.items():
        local = value.to_local() if isinstance(value, DTensor) else value
        plain = type(local) in (Tensor, nn.Parameter) and local.layout == torch.strided and not local.is_meta
        if plain and local.numel():
            kept[f"{path}.{name}"] = zlib.crc32(local.detach().contiguous().flatten().view(torch.uint8).numpy())
    return kept


def _adapters(module: nn.Module) -> Any:
    editor = module.__dict__.get(EDITOR)
    if editor is None:
        return None
    stack = editor.stack
    return {name: item.strength for name, item in stack.loaded.items()}, stack.active, stack.fused, stack.enabled


def _module(path: str, module: nn.Module) -> dict[str, Any]:
    """Return a module's identity and tensors; of hooks, registry, own forward and adapters what there is."""
    attributes = vars(module)
    registry = attributes.get("_diffusers_hook")
    names = frozenset(attributes)
    taken: dict[str, Any] = {path: (id(module), type(module), names - {"_diffusers_hook"}, module.training)}
    if hooks := [(name, *map(id, attributes[name].values())) for name in HOOKS if attributes.get(name)]:
        taken[f"{path} hooks"] = hooks
    if registry is not None and registry.hooks:
        taken[f"{path} registry"] = [(key, id(hook)) for key, hook in registry.hooks.items()]
    if "forward" in attributes:
        taken[f"{path} forward"] = id(attributes["forward"])
    for kind in (module._parameters, module._buffers):
        for name, value in kind.items():
            if value is not None:  # what stands for an offloaded weight on meta comes and goes
                meta = isinstance(value, Tensor) and value.is_meta
                taken[f"{path}.{name}"] = (None if meta else id(value), _value(value))
    if EDITOR in attributes:
        taken[f"{path} adapters"] = _adapters(module)
    return taken


def _value(value: Any) -> Any:
    if isinstance(value, DTensor):
        value = value.to_local()
    if not isinstance(value, Tensor):
        return repr(value)
    known = (type(value), value.dtype, tuple(value.shape), value.device, value.requires_grad)
    if hasattr(value, "__tensor_flatten__"):
        return (*known, *(_value(getattr(value, name)) for name in value.__tensor_flatten__()[0]))
    if value.is_meta or value.layout != torch.strided:
        return known
    flat = value.detach().reshape(-1).view(torch.uint8)
    return (*known, value.data_ptr(), zlib.crc32(flat.numpy()))
