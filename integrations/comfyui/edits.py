"""Adapters on the layers of ComfyUI's model: solved jointly, and put on for one call of the model; knows no ComfyUI."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.runtime.joint.joint_edit import StackedEdit, apply_edit, stack_directions

from .layers import Place


@dataclass(frozen=True)
class Loaded:
    """An adapter on a model.

    Args:
        adapter: The adapter.
        strength: Its strength, 0 to 4.
        component: The denoiser of the adapter that the model is.
        places: Where its sites are.
        deviation: How far the weights are from those that it was built on, None if it is not known.
    """

    adapter: UnlearningAdapter
    strength: float
    component: str
    places: Mapping[str, Place]
    deviation: float | None = None


@dataclass(frozen=True)
class LayerEdit:
    """What one layer of the model reads.

    Args:
        edits: The joint edit of each of its parts that is edited, by the place of the part.
        adapters: Which of the adapters edit it, by their number.
    """

    edits: Mapping[Place, StackedEdit]
    adapters: tuple[int, ...]
    _copies: dict[tuple[Place, torch.device], StackedEdit] = field(default_factory=dict)

    @property
    def whole(self) -> Place | None:
        """Return a place whose edit holds for all parts, None if parts read different inputs."""
        first, *others = self.edits
        one = self.edits[first]
        same = all(
            torch.equal(one.read, self.edits[place].read) and torch.equal(one.mix, self.edits[place].mix)
            for place in others
        )
        return first if same and len(self.edits) == first.of else None

    def read_by(self, place: Place, x: Tensor) -> Tensor:
        """Return what a part reads in place of `x`, shape (..., in_features)."""
        known = self._copies.get((place, x.device))
        if known is None:
            with torch.inference_mode(False):  # a copy made in inference could not be used elsewhere
                known = self._copies[place, x.device] = self.edits[place].to(x.device)
        return apply_edit(x, known)


def solve(loaded: Sequence[Loaded]) -> dict[str, LayerEdit]:
    """Return the joint edit of each layer, the same bit for bit in whatever order the adapters come.

    Args:
        loaded: The adapters; those at strength 0 edit nothing.

    Returns:
        Edits by the path of the module.
    """
    at: dict[Place, list[int]] = {}
    sites: dict[tuple[int, Place], str] = {}
    for number, each in enumerate(loaded):
        for site, place in each.places.items():
            if each.strength:
                at.setdefault(place, []).append(number)
                sites[number, place] = site
    layers: dict[str, dict[Place, StackedEdit]] = {}
    owners: dict[str, set[int]] = {}
    for place, numbers in at.items():
        directions = [loaded[number].adapter.directions[sites[number, place]] for number in numbers]
        edit = stack_directions(directions, [loaded[number].strength for number in numbers])
        if edit.rank:
            layers.setdefault(place.module, {})[place] = edit
            owners.setdefault(place.module, set()).update(numbers)
    return {module: LayerEdit(edits, tuple(sorted(owners[module]))) for module, edits in layers.items()}


@contextmanager
def editing(model: nn.Module, edits: Mapping[str, LayerEdit]) -> Iterator[None]:
    """Let layers read edited inputs while the block runs; no weight is touched, so nothing is left behind.

    The edit acts on what a layer reads, above its weight: whatever LoRAs add to the weight, before or after, in
    whatever order, reads the edited input, and so does a weight in float8 or GGUF.

    Args:
        model: ComfyUI's `BaseModel`.
        edits: Edits by the path of the module in it.

    Raises:
        DenoiserError: If a layer is missing, or compiled, so that it would go around the edit.
    """
    handles: list[Any] = []
    try:
        for path, edit in edits.items():
            layer = _layer_at(model, path)
            whole = edit.whole
            if whole is not None:
                handles.append(layer.register_forward_pre_hook(partial(_before, edit, whole), with_kwargs=True))
            else:
                handles.append(layer.register_forward_hook(partial(_after, edit), with_kwargs=True))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _layer_at(model: nn.Module, path: str) -> nn.Module:
    layer = model
    for name in path.split("."):
        if hasattr(layer, "_orig_mod"):
            raise DenoiserError(
                f"{path} is in a compiled model, which would go around the edit. Take the compiling node out, or write "
                "a LoRA with `unlearn export --engine comfyui` and load it with a LoRA node."
            )
        if not hasattr(layer, name):
            raise DenoiserError(f"The model no longer has the layer {path!r}. Load the adapter last.")
        layer = getattr(layer, name)
    return layer


def _before(edit: LayerEdit, place: Place, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    if args:
        return (edit.read_by(place, args[0]), *args[1:]), kwargs
    return args, {**kwargs, "input": edit.read_by(place, kwargs["input"])}


def _after(edit: LayerEdit, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Tensor) -> Tensor:
    """Run a layer of several parts once more for each part that reads another input, and take the rows of that part."""
    x = args[0] if args else kwargs["input"]
    output = output.clone()
    for place in edit.edits:
        rows = place.rows(output.shape[-1], x.shape[-1])
        output[..., rows] = layer.forward(edit.read_by(place, x))[..., rows]
    return output
