"""The numbers of an exported LoRA: the joint edit of one denoiser as low-rank factors, and the base they hold for."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.errors import BaseMismatchError, ConfigError, FuseError
from unlearning_adapters.pipelines.base_model import base_model_of, base_revision_of
from unlearning_adapters.pipelines.sites import denoisers
from unlearning_adapters.runtime.compatibility import check_sites, with_stock_factors
from unlearning_adapters.runtime.joint.joint_edit import stack_directions, stack_report, stacked_factors
from unlearning_adapters.runtime.strengths import Strengths, by_component, for_each

from .layouts.fused_layers import Factors


def chosen_component(adapters: Sequence[UnlearningAdapter], component: str | None) -> str:
    """Return the denoiser for a LoRA: the component that the caller names, or the only one that the adapters edit."""
    if not adapters:
        raise ConfigError("Expected at least one adapter to export, but got none.")
    if component is not None and not isinstance(component, str):
        raise ConfigError(f"Expected `component` to be a name such as 'transformer', but got {component!r:.80}.")
    names = list(dict.fromkeys(name for adapter in adapters for name in adapter.components))
    if component is None:
        if len(names) > 1:
            raise ConfigError(
                f"The adapters edit {', '.join(names)}, and a LoRA file holds one denoiser. "
                "Name it with `component`, and export each to a file of its own."
            )
        return names[0]
    for adapter in adapters:
        if component not in adapter.components:
            raise ConfigError(
                f"The adapter {adapter.info.concept!r} does not edit {component!r}, only "
                f"{', '.join(adapter.components)}. Choose another `component`, or leave the adapter out."
            )
    return component


def chosen_strengths(adapters: Sequence[UnlearningAdapter], strengths: Strengths) -> list[dict[str, float]]:
    """Return the strength of each adapter by component, its own where none is given."""
    chosen = []
    for adapter, strength in zip(adapters, for_each(strengths, len(adapters)), strict=True):
        given = by_component(strength, adapter.components, adapter.info.concept)
        own = adapter.strength
        chosen.append(
            {name: own if value is None else adapter.allowed_strength(value) for name, value in given.items()}
        )
    if not any(value for amounts in chosen for value in amounts.values()):
        raise ConfigError("All strengths are 0, so that there is nothing to export. Give one above 0.")
    return chosen


def strengths_on(component: str, adapters: Sequence[UnlearningAdapter], strengths: Strengths) -> tuple[float, ...]:
    """Return the strength of each adapter on one denoiser, which all of them edit."""
    amounts = tuple(amounts[component] for amounts in chosen_strengths(adapters, strengths))
    if not any(amounts):
        raise ConfigError(
            f"All strengths on {component} are 0, so that there is nothing to export for it. Give one above 0, or "
            "name the other `component`."
        )
    return amounts


def part_of(adapter: UnlearningAdapter, component: str) -> UnlearningAdapter:
    """Return the part of an adapter that edits one denoiser."""
    here = [site for site in adapter.sites if site.startswith(f"{component}.")]
    return replace(
        adapter,
        directions={site: adapter.directions[site] for site in here},
        lora_B={site: adapter.lora_B[site] for site in here if site in adapter.lora_B},
    )


def base_of(parts: Sequence[UnlearningAdapter], component: str) -> dict[str, str]:
    """Return the base that all of the adapters were built on, if their factors can be used together."""
    first = _base_in_file(parts[0], component)
    for part in parts[1:]:
        other = _base_in_file(part, component)
        if other != first:
            raise BaseMismatchError(
                f"The adapters {parts[0].info.concept!r} and {part.info.concept!r} were built on different bases, "
                f"{_text(first)} and {_text(other)}. Pass the pipeline that the LoRA is for as `base`."
            )
    for part in parts:
        sites = [site for site in part.sites if site not in part.lora_B]
        if sites or not part.strength:
            problem = "strength 0 in its file" if sites == [] else f"no stock factor for {sites[0]}"
            raise FuseError(
                f"The LoRA of the adapter {part.info.concept!r} cannot be computed without its base: it has {problem}. "
                "Pass the pipeline that the LoRA is for as `base`."
            )
    return first


def _base_in_file(part: UnlearningAdapter, component: str) -> dict[str, str]:
    info = part.info
    kind = str(info.denoisers.get(component, ""))
    return {"denoiser": kind, "base_model": info.base_model, "base_revision": info.base_revision}


def base_named(base: Any, component: str) -> dict[str, str]:
    """Return what a record says of a base that the user gives."""
    networks = denoisers(base)
    if component not in networks:
        raise BaseMismatchError(
            f"{type(base).__name__} has no {component!r}, only {', '.join(networks)}. "
            "Give a base of the architecture that the adapters were built on."
        )
    network = networks[component]
    return {
        "denoiser": type(network).__name__,
        "base_model": base_model_of(base),
        "base_revision": base_revision_of(network),
    }


def _text(base: Mapping[str, str]) -> str:
    return " at ".join(repr(base[key]) for key in ("base_model", "base_revision") if base[key]) or "an unknown one"


def rendered(base: Any, part: UnlearningAdapter, component: str) -> UnlearningAdapter:
    """Return an adapter with the stock factors of another base of its architecture."""
    network = denoisers(base)[component]
    built, kind = part.info.denoisers.get(component), type(network).__name__
    if built and built != kind:
        raise BaseMismatchError(
            f"The adapter {part.info.concept!r} was built on a {built}, and {component} of the base is a {kind}: "
            "its directions mean nothing there. Give a base of that architecture, or build the adapter on this one."
        )
    check_sites(base, part)
    with torch.no_grad():
        return with_stock_factors(base, replace(part.with_strength(part.strength or 1.0), lora_B={}))


def joint_factors(parts: Sequence[UnlearningAdapter], strengths: Sequence[float]) -> dict[str, Factors]:
    """Return the joint edit of each layer as LoRA factors, by its path."""
    factors: dict[str, Factors] = {}
    for site in dict.fromkeys(site for part in parts for site in part.sites):
        here = [(part, strength) for part, strength in zip(parts, strengths, strict=True) if site in part.directions]
        lora_A, lora_B = stacked_factors(
            [part.directions[site] for part, _ in here],
            [strength for _, strength in here],
            [_outputs(part, site) for part, _ in here],
        )
        if len(lora_A):
            factors[site.partition(".")[2]] = lora_A, lora_B
    return factors


def joint_mixes(parts: Sequence[UnlearningAdapter], strengths: Sequence[float]) -> dict[str, Tensor]:
    """Return what the joint edit takes away per read-out, `V G^-1 L`, of each layer, by its path."""
    mixes: dict[str, Tensor] = {}
    for site in dict.fromkeys(site for part in parts for site in part.sites):
        here = [(part, strength) for part, strength in zip(parts, strengths, strict=True) if site in part.directions]
        edit = stack_directions([part.directions[site] for part, _ in here], [strength for _, strength in here])
        if edit.rank:
            mixes[site.partition(".")[2]] = edit.mix
    return mixes


def _outputs(part: UnlearningAdapter, site: str) -> Tensor:
    """Return what the weight of a site makes of its writes, from the factor; zeros, which nobody reads, at gain 0."""
    factor = -part.lora_B[site].double()
    amount = part.strength_at(site)
    return factor / amount if amount else torch.zeros_like(factor)


def warn_of_near_duplicates(parts: Sequence[UnlearningAdapter], strengths: Sequence[float]) -> None:
    """Say which adapters act as one, since they remove nearly the same direction."""
    pairs: Counter[tuple[int, int]] = Counter()
    sites = dict.fromkeys(site for part in parts for site in part.sites)
    for site in sites:
        here = [number for number, part in enumerate(parts) if site in part.directions]
        report = stack_report([parts[number].directions[site] for number in here], [strengths[n] for n in here])
        pairs.update((here[strong], here[weak]) for strong, weak in report.merged)
    for (strong, weak), layers in pairs.items():
        warnings.warn(
            f"The adapters {parts[strong].info.concept!r} and {parts[weak].info.concept!r} remove nearly the same "
            f"direction at {layers} of {len(sites)} sites; the LoRA removes it there once, at the larger strength "
            f"({strengths[strong]:g}{', times the gain of the site' if parts[strong].gains else ''}).",
            stacklevel=3,
        )
