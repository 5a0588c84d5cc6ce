"""The nodes: what ComfyUI asks of them, and how they reach its models."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import comfy.lora
import comfy.samplers
import folder_paths
import nodes
import torch
from comfy.patcher_extension import WrappersMP
from torch import Tensor

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.errors import ConfigError, DenoiserError

from .edits import LayerEdit, Loaded, editing, solve
from .layers import AUTO, HIGH_NOISE, LOW_NOISE, choose_component
from .report import describe
from .source import open_adapter

KEY = "unlearning_adapters"  # of what we attach to a model, and of the folder of files
NO_FILE = "none"
CATEGORY = "unlearning"
STACKED = 4
COMPILING = "torch.compile"
GAP = 8  # white pixels in a strip

folder_paths.add_model_folder_path(KEY, str(Path(folder_paths.models_dir) / KEY))


@dataclasses.dataclass(frozen=True)
class OnModel:
    """The adapters on a model, in the order in which they were loaded, and their joint edit."""

    loaded: tuple[Loaded, ...]
    edits: Mapping[str, LayerEdit]


def weight_of(model: Any, path: str) -> Tensor | None:
    """Return the weight of a module as it was before any LoRA, None if it cannot be read.

    Args:
        model: ComfyUI's ModelPatcher.
        path: Path of the module.
    """
    key = f"{path}.weight"
    layer = model.get_model_object(path)
    kept = model.backup.get(key)
    weight = layer.weight if kept is None else kept.weight
    if getattr(weight, "tensor_type", None) is not None:  # GGUF
        return None if getattr(weight, "patches", None) else layer.get_weight(weight, torch.float32)
    if callable(convert := getattr(layer, "convert_weight", None)):  # float8 with a scale
        return convert(weight.to(torch.float32, copy=True), inplace=True)
    return weight.dequantize() if type(weight) not in (Tensor, torch.nn.Parameter) else weight


def with_adapters(model: Any, added: list[tuple[UnlearningAdapter, float, str]]) -> Any:
    """Return a copy of a model with more adapters on it; all of them are solved together.

    Args:
        model: ComfyUI's ModelPatcher.
        added: Adapter, strength and denoiser of each.

    Raises:
        UnlearningError: If one of them is for another model.
    """
    names = comfy.lora.model_lora_keys_unet(model.model, {})
    known = model.get_attachment(KEY)
    loaded = list(known.loaded) if known else []
    for adapter, strength, denoiser in added:
        amount = adapter.allowed_strength(strength)
        component, places, deviation = choose_component(adapter, denoiser, names, lambda path: weight_of(model, path))
        loaded.append(Loaded(adapter, amount, component, places, deviation))
    record = OnModel(tuple(loaded), solve(loaded))
    copy = without_adapters(model)
    copy.set_attachments(KEY, record)

    def wrapper(executor: Any, *args: Any, **kwargs: Any) -> Any:
        _refuse_compiled(args, kwargs)
        with editing(executor.class_obj, record.edits):
            return executor(*args, **kwargs)

    copy.add_wrapper_with_key(WrappersMP.APPLY_MODEL, KEY, wrapper)
    return copy


def _refuse_compiled(args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
    options = kwargs.get("transformer_options") or next((each for each in args if isinstance(each, dict)), {})
    if options.get("wrappers", {}).get(WrappersMP.APPLY_MODEL, {}).get(COMPILING):
        raise DenoiserError(
            "The model is compiled, and compiled code would go around the edit. Take the compiling node out, or write "
            "a LoRA with `unlearn export --engine comfyui` and load it with a LoRA node."
        )


def without_adapters(model: Any) -> Any:
    """Return a copy of a model without any of its adapters."""
    copy = model.clone()
    copy.remove_wrappers_with_key(WrappersMP.APPLY_MODEL, KEY)
    copy.remove_attachments(KEY)
    return copy


def chosen(file: str, hub_id: str = "") -> UnlearningAdapter:
    """Return the adapter of a file in models/unlearning_adapters, or of a Hub repository if one is named."""
    known = file != NO_FILE and not hub_id.strip()
    return open_adapter(folder_paths.get_full_path_or_raise(KEY, file) if known else None, hub_id)


def _files() -> list[str]:
    return [NO_FILE, *folder_paths.get_filename_list(KEY)]


def _changed(*files: str) -> str:
    paths = [folder_paths.get_full_path(KEY, file) for file in files if file != NO_FILE]
    return str([(path, Path(path).stat().st_mtime_ns) for path in paths if path])


STRENGTH = (
    "FLOAT",
    {"default": 1.0, "min": 0.0, "max": 4.0, "step": 0.05, "tooltip": "1 removes the concept, 0 nothing"},
)
DENOISER = (
    [AUTO, HIGH_NOISE, LOW_NOISE],
    {"tooltip": "which of two denoisers this model is; auto goes by its weights"},
)


class LoadAdapter:
    """Put one adapter on a model, beside those that are on it."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = CATEGORY
    DESCRIPTION = "Makes a model forget a concept. Several of these nodes, in any order, are solved together."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs and widgets, as ComfyUI wants them."""
        return {
            "required": {"model": ("MODEL",), "adapter": (_files(),), "strength": STRENGTH},
            "optional": {
                "denoiser": DENOISER,
                "hub_id": ("STRING", {"default": "", "tooltip": "org/name or org/name@revision, in place of a file"}),
            },
        }

    @classmethod
    def IS_CHANGED(cls, adapter: str, **_: Any) -> str:
        """Return what changes when a file does."""
        return _changed(adapter)

    def load(
        self, model: Any, adapter: str, strength: float, denoiser: str = AUTO, hub_id: str = ""
    ) -> tuple[Any, ...]:
        """Return the model with the adapter on it."""
        return (with_adapters(model, [(chosen(adapter, hub_id), strength, denoiser)]),)


class StackAdapters:
    """Put several adapters on a model."""

    RETURN_TYPES = ("MODEL",)
    FUNCTION = "load"
    CATEGORY = CATEGORY
    DESCRIPTION = "Makes a model forget several concepts, solved together: the order does not matter."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs and widgets, as ComfyUI wants them."""
        required: dict[str, Any] = {"model": ("MODEL",)}
        for number in range(1, STACKED + 1):
            required[f"adapter_{number}"] = (_files(),)
            required[f"strength_{number}"] = STRENGTH
        return {"required": required, "optional": {"denoiser": DENOISER}}

    @classmethod
    def IS_CHANGED(cls, **values: Any) -> str:
        """Return what changes when a file does."""
        return _changed(*(value for name, value in values.items() if name.startswith("adapter_")))

    def load(self, model: Any, denoiser: str = AUTO, **values: Any) -> tuple[Any, ...]:
        """Return the model with all of the adapters on it."""
        stack = [
            (chosen(values[f"adapter_{number}"]), values[f"strength_{number}"], denoiser)
            for number in range(1, STACKED + 1)
            if values[f"adapter_{number}"] != NO_FILE
        ]
        if not stack:
            raise ConfigError("No adapter is chosen. Choose at least one file of models/unlearning_adapters.")
        return (with_adapters(model, stack),)


class VerifyAdapters:
    """Say on the node which layers of a model are edited."""

    RETURN_TYPES = ("MODEL", "STRING")
    RETURN_NAMES = ("model", "report")
    FUNCTION = "verify"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY
    DESCRIPTION = (
        "Shows which layers are edited, by which adapters, and whether the weights are those they were built on."
    )

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs and widgets, as ComfyUI wants them."""
        return {"required": {"model": ("MODEL",)}}

    def verify(self, model: Any) -> dict[str, Any]:
        """Return the model as it is, and the report."""
        record = model.get_attachment(KEY) or OnModel((), {})
        patched = {key.removesuffix(".weight") for key in model.patches if key.endswith(".weight")}
        text = describe(record.loaded, record.edits, type(model.model.diffusion_model).__name__, patched)
        return {"ui": {"text": [text]}, "result": (model, text)}


class CompareAdapters:
    """Sample twice with one seed, without and with the adapters of a model, and show both as one strip."""

    RETURN_TYPES = ("IMAGE", "IMAGE", "IMAGE")
    RETURN_NAMES = ("strip", "before", "after")
    FUNCTION = "compare"
    OUTPUT_NODE = True
    CATEGORY = CATEGORY
    DESCRIPTION = "The same seed before (top) and after (bottom). LoRAs on the model act in both rows."

    @classmethod
    def INPUT_TYPES(cls) -> dict[str, Any]:
        """Return the inputs and widgets, as ComfyUI wants them."""
        return {
            "required": {
                "model": ("MODEL",),
                "positive": ("CONDITIONING",),
                "negative": ("CONDITIONING",),
                "latent_image": ("LATENT",),
                "vae": ("VAE",),
                "seed": ("INT", {"default": 0, "min": 0, "max": 0xFFFFFFFFFFFFFFFF}),
                "steps": ("INT", {"default": 20, "min": 1, "max": 1000}),
                "cfg": ("FLOAT", {"default": 6.0, "min": 0.0, "max": 100.0, "step": 0.1}),
                "sampler_name": (comfy.samplers.KSampler.SAMPLERS, {"default": "uni_pc"}),
                "scheduler": (comfy.samplers.KSampler.SCHEDULERS, {"default": "simple"}),
                "frames": ("INT", {"default": 4, "min": 1, "max": 64, "tooltip": "how many frames the strip shows"}),
            }
        }

    def compare(
        self, model: Any, positive: Any, negative: Any, latent_image: Any, vae: Any, frames: int, **sampling: Any
    ) -> dict[str, Any]:
        """Return the strip, and all frames before and after."""
        if model.get_attachment(KEY) is None:
            raise ConfigError(
                "The model has no unlearning adapter, so that there is nothing to compare. Load one before."
            )
        order = ("seed", "steps", "cfg", "sampler_name", "scheduler")
        rows: list[Tensor] = []
        for each in (without_adapters(model), model):
            values = (sampling[name] for name in order)
            (latent,) = nodes.common_ksampler(each, *values, positive, negative, latent_image)
            images = vae.decode(latent["samples"])
            rows.append(images.reshape(-1, *images.shape[-3:]))
        strip = strip_of(rows, frames)
        shown = nodes.PreviewImage().save_images(strip)
        return {**shown, "result": (strip, *rows)}


def strip_of(rows: list[Tensor], frames: int) -> Tensor:
    """Return rows of frames as one picture of shape (1, height, width, 3).

    Args:
        rows: Frames, shape (frames, height, width, 3), of each row.
        frames: How many of them are shown, spread over the clip.
    """
    made = []
    for row in rows:
        chosen = torch.linspace(0, len(row) - 1, min(frames, len(row))).round().long()
        padded = torch.nn.functional.pad(row[chosen].float(), (0, 0, GAP // 2, GAP // 2, GAP // 2, GAP // 2), value=1.0)
        made.append(torch.cat(list(padded), dim=1))
    return torch.cat(made, dim=0)[None]


NODES = {
    "UnlearningLoad": (LoadAdapter, "Load Unlearning Adapter"),
    "UnlearningStack": (StackAdapters, "Stack Unlearning Adapters"),
    "UnlearningVerify": (VerifyAdapters, "Verify Unlearning Adapters"),
    "UnlearningCompare": (CompareAdapters, "Compare Before and After"),
}
NODE_CLASS_MAPPINGS = {name: kind for name, (kind, _) in NODES.items()}
NODE_DISPLAY_NAME_MAPPINGS = {name: title for name, (_, title) in NODES.items()}
