"""Whether an adapter fits a pipeline: its sites, their widths, and the weights that it was built on."""

import warnings
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Tensor

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.errors import BaseMismatchError, FuseError, SiteError
from unlearning_adapters.pipelines.edits import check_no_unfused_lora, fused_lora
from unlearning_adapters.pipelines.sites import base_linear, denoisers, linear_layers, site_module
from unlearning_adapters.pipelines.weights import is_in_a_file, is_plain, kept_weight, layer_response

from .editor import editor_of

# `base_deviation` is 1e-6 to 0.12 on the base that an adapter was built on, also quantised, and about 1 on another.
OTHER_BASE = 0.3
ROWS_COMPARED = 64  # of each weight, spread over it: enough to tell, and none is widened as a whole


def check_sites(pipe: Any, adapter: UnlearningAdapter) -> dict[str, dict[str, Direction]]:
    """Return an adapter's directions by component and path, if the pipeline has all of its sites.

    Denoisers that the pipeline has not loaded are left out, such as the second expert of Wan 2.2: a missing network
    cannot show the concept.

    Raises:
        SiteError: If sites are missing; the text says how many of how many.
        BaseMismatchError: If a layer has another width than the adapter was built for.
    """
    layers, missing, live = {}, [], denoisers(pipe)
    some = any(component in live for component in adapter.components)
    sites = [site for site in adapter.sites if not some or site.partition(".")[0] in live]
    for site in sites:
        try:
            layers[site] = base_linear(site_module(pipe, site))
        except SiteError as error:
            missing.append((site, error))
    if missing:
        share = f"{len(missing)} of the {len(sites)}" if layers else f"all {len(sites)}"
        source, target = adapter.components[0], next(iter(live))
        experts = not some and source.startswith("transformer") and target.startswith("transformer")
        other = f", or pass components={{{source!r}: {target!r}}}" if experts else ""
        raise SiteError(
            f"The adapter {adapter.info.concept!r} does not fit: {share} sites are missing. {missing[0][1]} "
            f"It was built on {_base(adapter)}; load that base{other}, or build the adapter on this pipeline."
        ) from missing[0][1]
    by_component: dict[str, dict[str, Direction]] = {}
    for site in sites:
        _check_widths(adapter, site, layers[site])
        component, _, path = site.partition(".")
        by_component.setdefault(component, {})[path] = adapter.directions[site]
    return by_component


def warn_of_partial_cover(pipe: Any, adapter: UnlearningAdapter) -> None:
    """Warn if the pipeline has denoisers that the adapter does not edit, or lacks some that it edits."""
    live, first = denoisers(pipe), adapter.components[0]
    edited = [id(live[component]) for component in adapter.components if component in live]
    bare = [component for component, network in live.items() if id(network) not in edited]
    absent = [component for component in adapter.components if component not in live]
    if bare:
        places = f"components={{{first!r}: {[first, *bare]!r}}}"
        warnings.warn(
            f"The adapter {adapter.info.concept!r} edits {', '.join(adapter.components)} only; {', '.join(bare)} of "
            f"{type(pipe).__name__} still knows the concept. Build the adapter on this pipeline to edit both, or pass "
            f"{places} to put it on both.",
            stacklevel=3,
        )
    if absent:
        warnings.warn(
            f"The adapter {adapter.info.concept!r} edits {', '.join(adapter.components)}, and {type(pipe).__name__} "
            f"has no {', '.join(absent)} loaded, which is left out. If it is loaded later, load the adapter again.",
            stacklevel=3,
        )


def warn_of_other_base(pipe: Any, adapter: UnlearningAdapter) -> None:
    """Warn if the weights are not those that the adapter was built on, or its file was changed.

    It is only a warning, since directions mean nearly the same on a fine-tuned base, and the edit uses the weights at
    hand.

    Args:
        pipe: A diffusers pipeline.
        adapter: The adapter; sites whose weights hold an adapter or a LoRA say nothing.
    """
    fused, live = fused_sites(pipe), denoisers(pipe)
    loaded = [site for site in adapter.lora_B if site.partition(".")[0] in live]
    sites = [site for site in loaded if site not in fused and adapter.strength]
    weights = {site: weight for site in sites if (weight := _plain_weight(pipe, site)) is not None}
    part = replace(adapter, lora_B={site: _some_rows(adapter.lora_B[site]) for site in weights})
    deviation = base_deviation(part, {site: _some_rows(weight) for site, weight in weights.items()})
    if deviation > OTHER_BASE:
        warnings.warn(
            f"The adapter {adapter.info.concept!r} was built on other weights than this pipeline's ({_base(adapter)}), "
            f"or its file was changed: its LoRA factors deviate by {deviation:.0%}. Check what it removes.",
            stacklevel=3,
        )


def fused_sites(pipe: Any) -> set[str]:
    """Return the names of all layers whose weights hold an adapter of this package, or one of PEFT."""
    fused = set()
    for component, denoiser in denoisers(pipe).items():
        editor = editor_of(denoiser)
        layers = linear_layers(denoiser)
        fused |= {f"{component}.{path}" for path, layer in layers if path in editor.records or fused_lora(layer)}
    return fused


def with_stock_factors(pipe: Any, adapter: UnlearningAdapter) -> UnlearningAdapter:
    """Return the adapter with a stock LoRA factor `-strength * gain * W write^T` per site, computed where it lacks one.

    W is the original weight, before any adapter was fused into it.

    Raises:
        FuseError: If a factor is missing where the original weight is unknown, or cannot be reached.
    """
    factors, networks = dict(adapter.lora_B), denoisers(pipe)
    if not adapter.directions.keys() <= factors.keys():
        check_no_unfused_lora(pipe)
    for site, direction in adapter.directions.items():
        if site in factors:
            continue
        component, _, path = site.partition(".")
        if component not in networks:
            raise FuseError(
                f"The stock LoRA factor of {site} cannot be computed, since this {type(pipe).__name__} has no "
                f"{component} loaded. Load the whole pipeline, or take the file that the adapter came from."
            )
        response = layer_response(networks[component], path, direction.write)
        if response is None:
            raise FuseError(
                f"The stock LoRA factor of {site} cannot be computed, since its weight is quantised or offloaded out "
                "of reach. Load the base without quantisation and offloading."
            )
        factors[site] = direction.stock_factor(response, adapter.strength, site).contiguous()
    return replace(adapter, lora_B={site: factors[site] for site in adapter.directions})


def _check_widths(adapter: UnlearningAdapter, site: str, layer: Any) -> None:
    widths = [adapter.directions[site].in_features, None]
    live = [int(layer.in_features), int(layer.out_features)]
    if site in adapter.lora_B:
        widths[1] = int(adapter.lora_B[site].shape[0])
    for width, expected, actual in zip(("in_features", "out_features"), widths, live, strict=True):
        if expected is not None and expected != actual:
            raise BaseMismatchError(
                f"The adapter {adapter.info.concept!r} does not fit: it was built for {width} = {expected} at {site}, "
                f"and the pipeline has {actual}. Load its base ({_base(adapter)}), or build the adapter on this one."
            )


def _some_rows(matrix: Tensor) -> Tensor:
    return matrix[:: max(1, len(matrix) // ROWS_COMPARED)]


def _plain_weight(pipe: Any, site: str) -> Tensor | None:
    component, _, path = site.partition(".")
    weight = kept_weight(base_linear(site_module(pipe, site)))
    if weight is None or weight.is_meta or not is_plain(weight) or is_in_a_file(denoisers(pipe)[component], path):
        return None
    return weight.detach()


def _base(adapter: UnlearningAdapter) -> str:
    parts: Mapping[str, str] = {"base": adapter.info.base_model, "revision": adapter.info.base_revision}
    return " at ".join(repr(part) for part in parts.values() if part) or adapter.info.pipeline or "an unknown base"


def base_deviation(adapter: UnlearningAdapter, weights: Mapping[str, Tensor]) -> float:
    """Return how far an adapter's stock factors are from those of the weights at hand.

    `max over sites of |B + s W w^T| / |s W w^T|` (Frobenius norms), s the strength times the site's gain. Rounding,
    about 1e-6, for the base that it was built on; 0.002 to 0.12 for a quantised copy of it; about 1 or more for another
    base or a changed file.

    Args:
        adapter: The adapter, with `lora_B` for the sites in question.
        weights: Weight of the Linear layer, shape (out_features, in_features), for one or a few of its sites.

    Returns:
        The largest deviation, 0 or more; infinite if a factor is not zero where it must be.

    Raises:
        SiteError: If the adapter has no such site, or no stock factor for it.
        BaseMismatchError: If a weight has another shape than the one that the adapter was built on.
    """
    largest = 0.0
    for site, weight in weights.items():
        if site not in adapter.directions or site not in adapter.lora_B:
            raise SiteError(f"The adapter has no stock factor for the site {site!r}. Choose from `adapter.lora_B`.")
        direction, factor = adapter.directions[site], adapter.lora_B[site].to(weight.device)
        write = direction.write.to(weight.device)
        expected_shape = (factor.shape[0], write.shape[1])
        if tuple(weight.shape) != expected_shape:
            raise BaseMismatchError(
                f"The weight of {site!r} has shape {tuple(weight.shape)}, but the adapter was built on one of shape "
                f"{expected_shape}. Load the base {adapter.info.base_model!r}, or build the adapter for this one."
            )
        expected = direction.stock_factor(write.float() @ weight.float().T, adapter.strength, site)
        scale, difference = float(expected.norm()), float((factor.float() - expected).norm())
        largest = max(largest, difference / scale if scale else float("inf") if difference else 0.0)
    return largest
