"""Write adapters as a plain LoRA, for programs that know no adapters: one denoiser, one base, fixed strengths."""

import warnings
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.adapter.adapter import UnlearningAdapter, load_adapter
from unlearning_adapters.adapter.file import file_at, write_whole
from unlearning_adapters.adapter.header import encode_lora_header
from unlearning_adapters.building.build import base_model_of, base_revision_of
from unlearning_adapters.errors import AdapterFileError, BaseMismatchError, ConfigError, FuseError
from unlearning_adapters.pipelines.sites import denoisers
from unlearning_adapters.runtime.compatibility import check_sites, with_stock_factors
from unlearning_adapters.runtime.editor import editor_of
from unlearning_adapters.runtime.joint_edit import stack_report, stacked_factors

from .comfyui import PREFIX, Factors, comfyui_lora

LAYOUTS = ("diffusers", "comfyui")
EXPORT_VERSION = 1
# Stock loaders take the keys of the second denoiser under the name of the first, from a file of its own.
STOCK_NAMES = {"transformer_2": "transformer"}


@dataclass(frozen=True)
class ExportedLora:
    """What `export_lora` wrote.

    Args:
        file: Path of the file.
        component: The denoiser that the LoRA is for.
        layout: Whose names its tensors have.
        base_model: Name of the base whose weights its B factors hold for, "" if unknown.
        concepts: Concept of each adapter in it.
        strengths: Strength of each adapter in it.
        layers: Number of layers that it edits; ComfyUI's layers may hold several of diffusers'.
        rank: Rank of all of them.
    """

    file: Path
    component: str
    layout: str
    base_model: str
    concepts: tuple[str, ...]
    strengths: tuple[float, ...]
    layers: int
    rank: int


def export_lora(
    adapters: UnlearningAdapter | str | Path | Sequence[UnlearningAdapter | str | Path],
    destination: str | Path,
    *,
    component: str | None = None,
    strengths: float | Sequence[float | None] | None = None,
    base: Any = None,
    layout: str = "diffusers",
) -> ExportedLora:
    """Write one LoRA that does on one denoiser what one or several adapters do there together.

    Per layer `lora_A = A` and `lora_B = -(W V) G^-1 L` (docs/maths.md 5): the joint edit, which is not the sum of the
    adapters' own LoRAs. `W V` comes from the adapters' files, or is computed anew from the weights of `base`. The file
    is a LoRA and no adapter any more: it is for one base, at these strengths, and stacks no more (docs/format.md 10).

    Args:
        adapters: An adapter, its file, folder or Hub repository, or several of these.
        destination: A path that ends in ".safetensors", or a folder; nothing may be there yet.
        component: Which denoiser, such as "transformer_2"; None if the adapters edit just one.
        strengths: One for all, or one for each adapter; None is an adapter's own.
        base: A pipeline of the same architecture whose weights the LoRA is for; None takes the one that the adapters
            were built on, and trusts the stock factors in their files.
        layout: "diffusers", for `pipe.load_lora_weights` (for `transformer_2` with `load_into_transformer_2=True`), or
            "comfyui" for Wan, HunyuanVideo and LTX, which diffusers reads too.

    Returns:
        What was written, and where.

    Raises:
        AdapterFileError: If there is a file already, or a source is not a valid adapter.
        AdapterNotFoundError: If there is nothing at a source.
        BaseMismatchError: If the adapters were built on different bases, or on another architecture than `base`.
        ConfigError: If a setting is out of range, or the component has to be named.
        FuseError: If a factor is needed and cannot be computed: a weight is quantised, offloaded or fused.
        SiteError: If `base` lacks sites, or a layer has no name in the layout.

    Example:
        >>> export_lora(["no-red", "no-left"], "lora", strengths=[1.0, 1.2]).file
        PosixPath('lora/pytorch_lora_weights.safetensors')
    """
    if layout not in LAYOUTS:
        raise ConfigError(f"Expected `layout` to be one of {', '.join(LAYOUTS)}, but got {layout!r}.")
    path = file_at(destination)
    if path.exists():
        raise AdapterFileError(f"{str(path)!r} exists already and was not changed. Choose another folder or file.")
    sources = [adapters] if isinstance(adapters, (UnlearningAdapter, str, Path)) else list(adapters)
    chosen = [item if isinstance(item, UnlearningAdapter) else load_adapter(item) for item in sources]
    component = _component(chosen, component)
    amounts = _strengths(chosen, strengths)
    parts = [_of_component(adapter, component) for adapter in chosen]
    made_for = _base_of(parts, component) if base is None else _base_named(base, component)
    if base is not None:
        parts = [_rendered(base, part, component) for part in parts]
    factors = _joint_factors(parts, amounts)
    _warn_of_twins(parts, amounts)
    prefix = STOCK_NAMES.get(component, component)
    if layout == "comfyui":
        factors, prefix = comfyui_lora(made_for["denoiser"], factors), PREFIX
    tensors, rank = _tensors(factors, prefix)
    record = {
        "export_version": EXPORT_VERSION,
        "layout": layout,
        "component": component,
        **made_for,
        "adapters": [_origin(adapter, strength) for adapter, strength in zip(chosen, amounts, strict=True)],
        "versions": {"unlearning-adapters": _version()},
    }
    shapes = {name: (int(tensor.shape[0]), int(tensor.shape[1])) for name, tensor in tensors.items()}
    data = b"".join(tensors[name].numpy().astype("<f4", copy=False).tobytes() for name in sorted(tensors))
    write_whole(path, encode_lora_header(record, shapes) + data)
    concepts = tuple(adapter.info.concept for adapter in chosen)
    return ExportedLora(path, component, layout, made_for["base_model"], concepts, amounts, len(factors), rank)


def _component(adapters: Sequence[UnlearningAdapter], component: str | None) -> str:
    if not adapters:
        raise ConfigError("Expected at least one adapter to export, but got none.")
    known = list(dict.fromkeys(name for adapter in adapters for name in adapter.components))
    if component is None:
        if len(known) > 1:
            raise ConfigError(
                f"The adapters edit {', '.join(known)}, and a LoRA file holds one denoiser. "
                "Name it with `component`, and export each to a file of its own."
            )
        return known[0]
    for adapter in adapters:
        if component not in adapter.components:
            raise ConfigError(
                f"The adapter {adapter.info.concept!r} does not edit {component!r}, only "
                f"{', '.join(adapter.components)}. Choose another `component`, or leave the adapter out."
            )
    return component


def _strengths(
    adapters: Sequence[UnlearningAdapter], strengths: float | Sequence[float | None] | None
) -> tuple[float, ...]:
    given = list(strengths) if isinstance(strengths, Sequence) else [strengths] * len(adapters)
    if len(given) != len(adapters):
        raise ConfigError(
            f"Expected one strength for each of {len(adapters)} adapters, but got {len(given)}. "
            "Give one for each, in their order, or none to use their own."
        )
    amounts = [
        adapter.strength if strength is None else adapter.allowed_strength(strength)
        for adapter, strength in zip(adapters, given, strict=True)
    ]
    if not any(amounts):
        raise ConfigError("All strengths are 0, so that there is nothing to export. Give one above 0.")
    return tuple(amounts)


def _of_component(adapter: UnlearningAdapter, component: str) -> UnlearningAdapter:
    """Return the part of an adapter that edits one denoiser."""
    here = [site for site in adapter.sites if site.startswith(f"{component}.")]
    return replace(
        adapter,
        directions={site: adapter.directions[site] for site in here},
        lora_B={site: adapter.lora_B[site] for site in here if site in adapter.lora_B},
    )


def _base_of(parts: Sequence[UnlearningAdapter], component: str) -> dict[str, str]:
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
        lacking = [site for site in part.sites if site not in part.lora_B]
        if lacking or not part.strength:
            found = "strength 0 in its file" if lacking == [] else f"no stock factor for {lacking[0]}"
            raise FuseError(
                f"The LoRA of the adapter {part.info.concept!r} cannot be computed without its base: it has {found}. "
                "Pass the pipeline that the LoRA is for as `base`."
            )
    return first


def _base_in_file(part: UnlearningAdapter, component: str) -> dict[str, str]:
    info = part.info
    kind = str(info.denoisers.get(component, ""))
    return {"denoiser": kind, "base_model": info.base_model, "base_revision": info.base_revision}


def _base_named(base: Any, component: str) -> dict[str, str]:
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


def _rendered(base: Any, part: UnlearningAdapter, component: str) -> UnlearningAdapter:
    """Return an adapter with the stock factors of another base of its architecture."""
    network = denoisers(base)[component]
    built, found = part.info.denoisers.get(component), type(network).__name__
    if built and built != found:
        raise BaseMismatchError(
            f"The adapter {part.info.concept!r} was built on a {built}, and {component} of the base is a {found}: "
            "its directions mean nothing there. Give a base of that architecture, or build the adapter on this one."
        )
    check_sites(base, part)
    fused = {f"{component}.{path}" for path in editor_of(network).records}
    with torch.no_grad():
        return with_stock_factors(base, replace(part.with_strength(part.strength or 1.0), lora_B={}), fused)


def _joint_factors(parts: Sequence[UnlearningAdapter], strengths: Sequence[float]) -> dict[str, Factors]:
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


def _outputs(part: UnlearningAdapter, site: str) -> Tensor:
    """Return what the weight of a site makes of its writes, from the factor; zeros, which nobody reads, at gain 0."""
    factor = -part.lora_B[site].double()
    amount = part.strength_at(site)
    return factor / amount if amount else torch.zeros_like(factor)


def _warn_of_twins(parts: Sequence[UnlearningAdapter], strengths: Sequence[float]) -> None:
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


def _tensors(factors: Mapping[str, Factors], prefix: str) -> tuple[dict[str, Tensor], int]:
    """Return the file's tensors, padded with zeros to one rank: stock loaders of before August 2026 need one."""
    rank = max(len(lora_A) for lora_A, _ in factors.values())
    tensors: dict[str, Tensor] = {}
    for path, (lora_A, lora_B) in factors.items():
        missing = rank - len(lora_A)
        tensors[f"{prefix}.{path}.lora_A.weight"] = torch.nn.functional.pad(lora_A, (0, 0, 0, missing)).contiguous()
        tensors[f"{prefix}.{path}.lora_B.weight"] = torch.nn.functional.pad(lora_B, (0, missing)).contiguous()
    return tensors, rank


def _origin(adapter: UnlearningAdapter, strength: float) -> dict[str, Any]:
    info = adapter.info
    texts = ("concept", "method", "base_model", "base_revision", "pairs_hash")
    return {**{key: getattr(info, key) for key in texts}, "strength": strength}


def _version() -> str:
    try:
        return version("unlearning-adapters")
    except PackageNotFoundError:
        return "not installed"
