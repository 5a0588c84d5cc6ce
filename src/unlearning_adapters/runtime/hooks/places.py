"""Where the layers of a denoiser are now: found by their paths, through compilation and PEFT's wrappers."""

from torch import nn

from unlearning_adapters.errors import DenoiserError

# Children of an attention that `fuse_qkv_projections` replaces by one layer, so that nothing calls them any more.
BYPASSED = ("to_q", "to_k", "to_v", "add_q_proj", "add_k_proj", "add_v_proj")


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


def is_bypassed(denoiser: nn.Module, path: str) -> bool:
    """Whether a layer is one of those that `fuse_qkv_projections` has replaced by one."""
    parent, _, leaf = path.rpartition(".")
    return leaf in BYPASSED and bool(getattr(module_at(denoiser, parent), "fused_projections", False))


def check_site(denoiser: nn.Module, path: str) -> None:
    """Raise `DenoiserError` if there is no module at a path, or if the denoiser does not call it."""
    if module_at(denoiser, path) is None:
        raise DenoiserError(
            f"{type(denoiser).__name__} no longer has the layer {path!r} that an unlearning adapter edits. "
            "Call unload_unlearning_adapters(), then load the adapter again."
        )
    if is_bypassed(denoiser, path):
        raise DenoiserError(
            f"The query, key and value projections of {type(denoiser).__name__} are fused, so that {path!r} is not "
            "used and its edit would have no effect. Call unfuse_qkv_projections() first."
        )
