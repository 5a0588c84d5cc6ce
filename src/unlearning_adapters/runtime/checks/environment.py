"""Describe what a pipeline runs on: versions, devices, number types, and other changes to the pipeline."""

import platform
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor, nn

from unlearning_adapters.pipelines.edits import acting_lora, fused_lora
from unlearning_adapters.pipelines.running.compiling import any_compiled
from unlearning_adapters.pipelines.sites import base_linear, denoisers, linear_layers
from unlearning_adapters.pipelines.weights import GROUP_OFFLOADING, is_plain, is_sharded
from unlearning_adapters.runtime.hooks.places import is_wrapped

PACKAGES = (
    "unlearning-adapters", "diffusers", "torch", "transformers", "peft", "accelerate", "safetensors", "huggingface_hub",
    "bitsandbytes", "torchao", "gguf", "optimum-quanto",
)  # fmt: skip
ACCELERATE_OFFLOADING = ("CpuOffload", "UserCpuOffloadHook", "AlignDevicesHook")


def describe_environment(pipe: Any) -> dict[str, Any]:
    """Return what a pipeline runs on and what is on it besides adapters, as plain JSON types.

    Args:
        pipe: A diffusers pipeline.

    Returns:
        `versions` of the libraries that are installed, `python`, `platform` and `devices` of the machine, and
        `denoisers`: by component its class, device, number types, quantisation, offloading, caches, compilation,
        attention processors, and LoRAs.
    """
    return {
        "pipeline": type(pipe).__name__,
        "versions": {name: number for name in PACKAGES if (number := _version(name))},
        "python": platform.python_version(),
        "platform": platform.system(),
        "devices": _devices(),
        "denoisers": {name: _denoiser(pipe, name, network) for name, network in denoisers(pipe).items()},
    }


def _denoiser(pipe: Any, name: str, denoiser: nn.Module) -> dict[str, Any]:
    layers = [layer for _, layer in linear_layers(denoiser)]
    weights = [weight for layer in layers if isinstance(weight := getattr(base_linear(layer), "weight", None), Tensor)]
    classes = {type(weight).__name__ for weight in weights if not is_plain(weight) and not is_sharded(weight)}
    processors = getattr(denoiser, "attn_processors", {})
    return {
        "class": type(denoiser).__name__,
        "device": _names(weight.device for weight in weights),
        "dtype": _names(weight.dtype for weight in weights),
        "quantisation": sorted(classes),
        "sharded": any(is_sharded(weight) for weight in weights),
        "offloading": _offloading(denoiser),
        "cache": _cache(denoiser),
        "compiled": any_compiled([pipe.components.get(name)]),
        "processors": sorted({type(each).__name__ for each in processors.values()}),
        "fused_projections": any(bool(getattr(part, "fused_projections", False)) for part in denoiser.modules()),
        "loras": _loras(layers),
    }


def _loras(layers: list[nn.Module]) -> dict[str, str]:
    """Return by name what each LoRA does: "acts", "fused" or "inactive"."""
    states: dict[str, str] = {}
    for layer in layers:
        if not is_wrapped(layer):
            continue
        for part in getattr(layer, "adapter_layer_names", ()):
            factors: Any = getattr(layer, part, None)
            for name in factors if isinstance(factors, nn.ModuleDict) else ():
                states.setdefault(str(name), "inactive")
        states |= dict.fromkeys(filter(None, [acting_lora(layer)]), "acts")
        states |= dict.fromkeys(filter(None, [fused_lora(layer)]), "fused")
    return states


def _offloading(denoiser: nn.Module) -> list[str]:
    kinds = set()
    for module in denoiser.modules():
        hook: Any = module.__dict__.get("_hf_hook")
        for each in getattr(hook, "hooks", (hook,)) if hook is not None else ():
            if type(each).__name__ in ACCELERATE_OFFLOADING and getattr(each, "offload", True):
                kinds.add(type(each).__name__)
        registry = module.__dict__.get("_diffusers_hook")
        group: Any = registry.get_hook(GROUP_OFFLOADING) if registry is not None else None
        if group is not None:
            kinds.add(
                "group offloading to disk" if group.group.offload_to_disk_path is not None else "group offloading"
            )
    return sorted(kinds)


def _cache(denoiser: nn.Module) -> str:
    if not getattr(denoiser, "is_cache_enabled", False):
        return ""
    return type(getattr(denoiser, "_cache_config", None)).__name__


def _devices() -> list[str]:
    if torch.cuda.is_available():
        return [torch.cuda.get_device_name(number) for number in range(torch.cuda.device_count())]
    return ["mps"] if torch.backends.mps.is_available() else ["cpu"]


def _names(values: Any) -> list[str]:
    return sorted({str(value).removeprefix("torch.") for value in values})


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:
        return ""
