"""What was changed in a pipeline since it was loaded: adapters of this package, and LoRAs of PEFT, attached or fused.

Adapters and other results are computed from the base: from its weights before any edit, and from inputs that no edit
has changed (`reading_base`). If that is impossible, an error names the reason.
"""

from collections.abc import Iterable, Iterator, Mapping
from typing import Any, Protocol
from weakref import WeakSet

from torch import Tensor, nn

from unlearning_adapters.errors import DenoiserError, FuseError

from .sites import denoisers, site_module

EDITOR = "_unlearning_adapters"  # attribute of a denoiser that carries adapters
FUSING = "_safe_fusing"  # attribute that diffusers' `fuse_lora` leaves on a denoiser
UNFUSE = "Call pipe.unfuse_lora() first, or pipe.unload_lora_weights() to make it a part of the base for good."


class EditedDenoiser(Protocol):
    """What this package keeps on a denoiser that carries adapters."""

    def original_weight(self, path: str) -> Tensor | None:
        """Return a layer's weight as it was before adapters were fused into it, as a copy; None if none is."""

    def acting_at(self) -> Mapping[str, str]:
        """Return the path of each layer that an adapter edits now, attached or fused, and the name of one of them."""


def editor_on(denoiser: nn.Module) -> EditedDenoiser | None:
    """Return what this package keeps on a denoiser, or None if it carries no adapter."""
    editor: EditedDenoiser | None = vars(denoiser).get(EDITOR)
    return editor


def fused_lora(module: nn.Module) -> str | None:
    """Return the name of a LoRA, or another adapter of PEFT, whose numbers are in a layer's weight; None without."""
    while isinstance(inner := getattr(module, "base_layer", None), nn.Module):
        if merged := getattr(module, "merged_adapters", None):
            return str(merged[0])
        module = inner
    return None


def check_no_fused_lora(module: nn.Module, path: str) -> None:
    """Raise `FuseError` if a layer's weight holds a LoRA, so that the one before it is unknown.

    Args:
        module: The outermost module at the path.
        path: Path of the layer, for the text.
    """
    if name := fused_lora(module):
        raise FuseError(
            f"The LoRA {name!r} is fused into the weight of {path}, which is not the base's any more. {UNFUSE}"
        )


_taken_out: "WeakSet[nn.Module]" = WeakSet()  # denoisers out of which a call took a LoRA that was fused


def note_lora_that_a_call_takes_out(networks: Iterable[nn.Module]) -> None:
    """Remember the denoisers out of which the next call takes a fused LoRA: PEFT does so where LoRAs are disabled.

    Args:
        networks: The denoisers that the call may run.
    """
    for denoiser in networks:
        if FUSING in vars(denoiser) and denoiser not in _taken_out:
            layers = (layer for layer in denoiser.modules() if "base_layer" in layer._modules)
            if any(fused_lora(layer) and getattr(layer, "disable_adapters", False) for layer in layers):
                _taken_out.add(denoiser)


def check_no_unfused_lora(pipe: Any) -> None:
    """Raise `FuseError` if a LoRA was fused and taken out again by diffusers, whose rounding stays in the weights.

    Nothing in a weight tells of that. What tells is that `fuse_lora` was called, and that nothing is fused now: on the
    pipeline (where one that was fused and then unloaded counts as a part of the base), or on a denoiser that has LoRAs;
    or that a call of the pipeline began with LoRAs that were fused, and disabled.
    """
    fused = vars(pipe).get("_merged_adapters")
    for component, denoiser in denoisers(pipe).items():
        layers = [layer for layer in denoiser.modules() if "base_layer" in layer._modules]
        alone = fused is None and bool(layers) and not any(fused_lora(layer) for layer in layers)
        by_call = denoiser in _taken_out
        if by_call or (FUSING in vars(denoiser) and (fused == set() or alone)):
            how = "a call after disable_lora()" if by_call else "unfuse_lora()"
            raise FuseError(
                f"A LoRA was fused into the {component} and taken out by {how}, which leaves rounding errors: the "
                "weights are not the base's. Load the base again; disable_lora() switches off exactly one that is not "
                "fused."
            )


def acting_lora(module: nn.Module) -> str | None:
    """Return the name of a LoRA, or another adapter of PEFT, that changes what a module computes now; None without."""
    if not ("base_layer" in module._modules or "original_module" in module._modules):
        return None
    layer: Any = module
    if merged := getattr(layer, "merged_adapters", None):
        return str(merged[0])
    if layer.disable_adapters:
        return None
    names = {name for part in layer.adapter_layer_names for name in getattr(layer, part, ())}
    scaling = getattr(layer, "scaling", {})
    return next((str(name) for name in layer.active_adapters if name in names and scaling.get(name, 1)), None)


def check_no_lora(pipe: Any, what: str) -> None:
    """Raise `DenoiserError` if a LoRA changes what a pipeline computes, attached or fused.

    Args:
        pipe: A diffusers pipeline.
        what: What needs the base, such as "A search".
    """
    for module, _, name in edited_modules(pipe):
        if acting_lora(module):
            raise DenoiserError(
                f"{what} is of the base, but {name} acts on this pipeline. Call pipe.disable_lora() first, or "
                "pipe.fuse_lora() and pipe.unload_lora_weights() to make it a part of the base."
            )


def edited_modules(pipe: Any) -> Iterator[tuple[nn.Module, str, str]]:
    """Yield each module of a pipeline whose output is not the base's, its path, and what edits it."""
    for component, module in pipe.components.items():
        for path, part in module.named_modules() if isinstance(module, nn.Module) else ():
            if name := acting_lora(part):
                yield part, f"{component}.{path}", f"the LoRA {name!r}"
    for component, denoiser in denoisers(pipe).items():
        editor = editor_on(denoiser)
        for path, name in editor.acting_at().items() if editor is not None else ():
            site = f"{component}.{path}"
            yield site_module(pipe, site), site, f"the unlearning adapter {name!r}"
