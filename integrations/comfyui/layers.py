"""Which layers of ComfyUI's model an adapter edits; knows torch and no ComfyUI."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

from torch import Tensor

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.errors import BaseMismatchError, ConfigError, SiteError
from unlearning_adapters.export.layouts.native import PREFIX, native_name
from unlearning_adapters.export.names.families import EXPERTS
from unlearning_adapters.export.names.naming import Part

AUTO = "auto"
HIGH_NOISE, LOW_NOISE = EXPERTS.values()
WEIGHT = ".weight"
OTHER_BASE = 0.3  # a deviation is 1e-6 to 0.12 on the base of an adapter, also quantised, and about 1 on another
ROWS_COMPARED = 64  # of each weight, spread over it
FUSED_ATTENTION = 3  # the first parts of a fused layer, q, k and v, are as high as each other

Weight = Callable[[str], "Tensor | None"]


@dataclass(frozen=True)
class Place:
    """Where a site is in ComfyUI's model.

    Args:
        module: Path of the module, such as "diffusion_model.blocks.0.cross_attn.k".
        number: Which part of it the site is, where the model has several layers of diffusers as one.
        of: How many parts it has.
    """

    module: str
    number: int = 0
    of: int = 1

    def rows(self, height: int, width: int) -> slice:
        """Return the rows of an output of `height` that are this part; the layer reads `width` numbers."""
        if self.of <= FUSED_ATTENTION:
            each = height // self.of
            return slice(self.number * each, (self.number + 1) * each)
        # Attention and feed-forward as one layer: attention is as wide as what both read.
        start = min(self.number, FUSED_ATTENTION) * width
        return slice(start, height if self.number == FUSED_ATTENTION else start + width)


def places_of(adapter: UnlearningAdapter, component: str, names: Mapping[str, object]) -> dict[str, Place]:
    """Return where the sites of one denoiser of an adapter are.

    Args:
        adapter: The adapter.
        component: The denoiser, such as "transformer".
        names: What ComfyUI's `model_lora_keys_unet` returns: keys of weights by names of LoRA layers.

    Returns:
        A place for each of its sites.

    Raises:
        SiteError: If the model lacks some of them.
    """
    denoiser = str(adapter.info.denoisers.get(component, ""))
    found, missing = {}, []
    for site in adapter.sites:
        here, _, path = site.partition(".")
        if here != component:
            continue
        own = Part(PREFIX + path)
        for part in (native_name(denoiser, path), own):
            key = None if part is None else names.get(part.layer)
            if part is not None and isinstance(key, str) and key.endswith(WEIGHT):
                found[site] = Place(key.removesuffix(WEIGHT), part.number, part.of)
                break
        else:
            missing.append(site)
    if missing:
        raise SiteError(
            f"{_called(adapter)} is for another model: this one lacks {len(missing)} of its "
            f"{len(missing) + len(found)} layers, the first is {missing[0]!r}. It was built on {_base(adapter)}."
        )
    return found


def choose_component(
    adapter: UnlearningAdapter, choice: str, names: Mapping[str, object], weight: Weight
) -> tuple[str, dict[str, Place], float | None]:
    """Return the denoiser of an adapter that a model is, where its sites are there, and how far its weights deviate.

    Args:
        adapter: The adapter.
        choice: "auto", "high_noise", "low_noise", or a component of the adapter.
        names: As for `places_of`.
        weight: Gives the weight of a module by its path, None if it cannot be read.

    Returns:
        The component, its places, and the deviation of `deviation_of`.

    Raises:
        BaseMismatchError: If a layer has another shape than the adapter was built for.
        ConfigError: If the choice names nothing, or "auto" fits both denoisers.
        SiteError: If the model lacks some of its layers.
    """
    known = {EXPERTS.get(component, component): component for component in adapter.components}
    known.update({component: component for component in adapter.components})
    if choice != AUTO:
        if choice not in known:
            raise ConfigError(
                f"{_called(adapter)} edits no {choice!r}, only {', '.join(adapter.components)}. Choose one of these."
            )
        return _fitted(adapter, known[choice], names, weight)
    fits = [_fitted(adapter, component, names, weight) for component in adapter.components]
    if len(fits) == 1:
        return fits[0]
    close = [fit for fit in fits if fit[2] is not None and fit[2] < OTHER_BASE]
    if len(close) != 1:
        raise ConfigError(
            f"{_called(adapter)} is for two denoisers, and the weights do not tell which of them this model is. "
            f"Set the denoiser to {HIGH_NOISE!r} or {LOW_NOISE!r}."
        )
    return close[0]


def _fitted(
    adapter: UnlearningAdapter, component: str, names: Mapping[str, object], weight: Weight
) -> tuple[str, dict[str, Place], float | None]:
    places = places_of(adapter, component, names)
    return component, places, deviation_of(adapter, places, weight)


def deviation_of(adapter: UnlearningAdapter, places: Mapping[str, Place], weight: Weight) -> float | None:
    """Return how far the weights at hand are from those that an adapter was built on.

    `max over sites of |B + s W w^T| / |s W w^T|`, s the strength times the site's gain, on some rows of each weight.

    Args:
        adapter: The adapter; its file holds `B`.
        places: Where its sites are.
        weight: Gives the weight of a module, shape (out_features, in_features), None if it cannot be read.

    Returns:
        About 1e-6 for the same base, up to 0.12 for a quantised copy, about 1 for another; None if nothing is known.

    Raises:
        BaseMismatchError: If a layer has another shape than the adapter was built for.
    """
    largest = None
    for site, place in places.items():
        direction, factor, found = adapter.directions[site], adapter.lora_B.get(site), weight(place.module)
        if found is None:
            continue
        part = found[place.rows(*found.shape)]
        expected = (part.shape[0] if factor is None else factor.shape[0], direction.in_features)
        if tuple(part.shape) != tuple(expected):
            raise BaseMismatchError(
                f"{_called(adapter)} is for another model: {site} was built for a weight of shape {tuple(expected)}, "
                f"and {place.module} has {tuple(part.shape)}. It was built on {_base(adapter)}."
            )
        if factor is None or not adapter.strength_at(site):
            continue
        step = max(1, len(part) // ROWS_COMPARED)
        response = direction.write.float() @ part[::step].float().cpu().T
        ours = direction.stock_factor(response, adapter.strength, site)
        scale = float(ours.norm())
        if scale:
            largest = max(largest or 0.0, float((factor[::step].float() - ours).norm()) / scale)
    return largest


def _called(adapter: UnlearningAdapter) -> str:
    return f"The adapter {adapter.info.concept!r}"


def _base(adapter: UnlearningAdapter) -> str:
    kinds = ", ".join(dict.fromkeys(str(kind) for kind in adapter.info.denoisers.values()))
    return " ".join(
        part for part in (adapter.info.base_model or "an unknown base", f"({kinds})" if kinds else "") if part
    )
