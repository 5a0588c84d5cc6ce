"""Where the numbers of a layer's weight are: in the layer, in the store of its offloading, or in what it computes."""

from typing import Any

import torch
from accelerate.hooks import SequentialHook
from accelerate.utils import OffloadedWeightsLoader, PrefixedDataset, align_module_device, has_offloaded_params
from torch import Tensor, nn

from unlearning_adapters.errors import DenoiserError

from .edits import check_no_fused_lora, editor_on
from .layer_weight import layer_weight
from .sites import base_linear

FLOATING = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
BLOCK_ELEMENTS = 2**24  # so that no weight is widened to float32 as a whole
GROUP_OFFLOADING = "group_offloading"  # as diffusers names its hook


def is_plain(weight: Tensor) -> bool:
    """Whether a weight holds its values as they are: neither sparse nor quantised (a subclass, or another dtype)."""
    return type(weight) in (nn.Parameter, Tensor) and weight.dtype in FLOATING and weight.layout == torch.strided


def is_sharded(weight: Tensor) -> bool:
    """Whether a weight is one of FSDP2 or tensor parallelism, of which each process holds a part."""
    return any(kind.__name__ == "DTensor" for kind in type(weight).__mro__)


def kept_weight(layer: nn.Module) -> Tensor | None:
    """Return the tensor that holds a layer's weight between calls, or None if the layer has no weight.

    Under accelerate's offloading (`enable_sequential_cpu_offload`) the layer's own is on the meta device, and each call
    gets a copy from a store: what is written into the store is what the layer computes with. If the store is a file,
    the weight on the meta device is returned.
    """
    weight = layer_weight(layer)
    if not isinstance(weight, Tensor):
        return None
    if weight.is_meta:
        hook: Any = layer.__dict__.get("_hf_hook")
        for inner in hook.hooks if isinstance(hook, SequentialHook) else (hook,):
            value = _stored(getattr(inner, "weights_map", None), "weight")
            if value is not None:
                return value
    return weight


def original_weight(denoiser: nn.Module, path: str) -> Tensor | None:
    """Return a layer's weight as it was before adapters were fused into it, bit for bit; otherwise as `kept_weight`.

    Stock factors, Gram matrices and the check of the base are computed from it.

    Args:
        denoiser: The network that the path starts from.
        path: Path of a Linear of any kind.

    Raises:
        FuseError: If a LoRA is fused into it, or it changed after an adapter was fused: the one before is unknown.
    """
    layer = denoiser.get_submodule(path)
    check_no_fused_lora(layer, path)
    editor = editor_on(denoiser)
    fused = None if editor is None else editor.original_weight(path)
    return kept_weight(base_linear(layer)) if fused is None else fused


def is_in_a_file(denoiser: nn.Module, path: str) -> bool:
    """Whether diffusers' group offloading keeps a layer's weight in a file; the tensor in memory is then meaningless.

    Args:
        denoiser: The network that the path starts from.
        path: Path of the layer.
    """
    module: Any = denoiser
    chain = [module]
    for part in path.split("."):
        module = module._modules[part]
        module = module._modules.get("_orig_mod") or module
        chain.append(module)
    while isinstance(module := getattr(module, "base_layer", None), nn.Module):  # what LoRA layers wrap
        chain.append(module)
    registries = [each._diffusers_hook for each in chain if hasattr(each, "_diffusers_hook")]
    hooks: list[Any] = [registry.get_hook(GROUP_OFFLOADING) for registry in registries]
    return any(hook is not None and hook.group.offload_to_disk_path is not None for hook in hooks)


def layer_response(denoiser: nn.Module, path: str, rows: Tensor) -> Tensor | None:
    """Return what a layer's original weight makes of rows, `rows @ W.T`, or None if the weight is out of reach.

    For quantised weights the layer's own forward is called, without its hooks.

    Args:
        denoiser: The network that the path starts from.
        path: Path of a Linear of any kind.
        rows: Shape (r, in_features).

    Returns:
        Shape (r, out_features), float32, on the CPU.

    Raises:
        DenoiserError: If the weight is not finite.
        FuseError: If the original weight is unknown (`original_weight`).
    """
    layer: Any = base_linear(denoiser.get_submodule(path))
    weight = original_weight(denoiser, path)
    if weight is None or is_in_a_file(denoiser, path) or (weight.is_meta and not has_offloaded_params(layer)):
        return None
    with torch.no_grad(), align_module_device(layer):
        tensor = layer.weight if weight.is_meta else weight
        dense = type(tensor) in (Tensor, nn.Parameter) and tensor.layout == torch.strided
        if dense and tensor.is_floating_point():
            if tensor.ndim != 2:  # no weight of a Linear
                return None
            blocks = tensor.split(max(1, BLOCK_ELEMENTS // max(1, tensor.shape[1])))
            parts = [rows.to(tensor.device, torch.float32) @ block.float().T for block in blocks]
            return _finite(torch.cat(parts, dim=1).cpu(), path)
        x = rows.to(tensor.device, _computed_in(layer))
        try:
            out: Tensor = type(layer).forward(layer, torch.cat([x, torch.zeros_like(x[:1])])).float()
        except (RuntimeError, TypeError):  # a kind of layer that wants its input otherwise
            return None
    return _finite((out[:-1] - out[-1:]).cpu(), path)


def weight_gram(denoiser: nn.Module, path: str) -> Tensor | None:
    """Return `W^T W` of a layer's original weight, or None if it is quantised or out of reach.

    Args:
        denoiser: The network that the path starts from.
        path: Path of a Linear of any kind.

    Returns:
        Shape (in_features, in_features), float64, on the CPU.

    Raises:
        DenoiserError: If the weight is not finite.
        FuseError: If the original weight is unknown (`original_weight`).
    """
    weight = original_weight(denoiser, path)
    if weight is None or weight.is_meta or not is_plain(weight) or is_in_a_file(denoiser, path) or weight.ndim != 2:
        return None
    gram = torch.zeros(weight.shape[1], weight.shape[1], dtype=torch.float64, device="cpu")
    for block in weight.detach().split(max(1, BLOCK_ELEMENTS // max(1, weight.shape[1]))):
        rows = block.cpu().double()
        gram += rows.T @ rows
    return _finite(gram, path)


def _finite(response: Tensor, path: str) -> Tensor:
    """Return what was made of a weight, or raise `DenoiserError` if the weight holds NaN or infinite numbers."""
    if not bool(torch.isfinite(response).all()):
        raise DenoiserError(
            f"The weight of {path} holds NaN or infinite numbers, or numbers too large for float32. Load the base "
            "again."
        )
    return response


def _stored(store: Any, key: str) -> Tensor | None:
    """Return a tensor of accelerate's store if it is in memory, where each lookup returns the same one."""
    if isinstance(store, PrefixedDataset):
        store, key = store.dataset, f"{store.prefix}{key}"
    if isinstance(store, OffloadedWeightsLoader):
        store = store.state_dict
    return store.get(key) if isinstance(store, dict) else None


def _computed_in(layer: Any) -> torch.dtype:
    """Return the dtype of the inputs that a layer expects; quantised ones say it in one place or another."""
    dtypes = (
        getattr(layer, "compute_dtype", None),
        *(getattr(t, "dtype", None) for t in (layer.weight, getattr(layer, "bias", None))),
    )
    return next((dtype for dtype in dtypes if dtype in FLOATING), torch.float32)
