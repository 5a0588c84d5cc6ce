"""Where an adapter edits: Linear layers that read the prompt ("text"), a picture ("image") or the video ("hidden").

Names alone lie: `add_k_proj` reads text in HunyuanVideo, an image in Wan and the video in Cosmos 3. So the layers are
found by how the modules are built, with short tables of exceptions.
"""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from unlearning_adapters.adapter.record import COMPONENTS
from unlearning_adapters.config import check_blocks, check_sites
from unlearning_adapters.errors import DenoiserError, SiteError

from .layer_weight import layer_weight
from .site_names import (
    ATTENTION_OUT,
    BLOCK,
    CROSS_ATTENTION,
    FEED_FORWARD_IN,
    IMAGE_KEY_VALUE,
    IMAGE_PROJECTION,
    KEY_VALUE,
    NO_TEXT,
    NOT_CALLED,
    NOT_VIDEO,
    SINGLE_STREAM,
    SWAPPED_HIDDEN,
    SWAPPED_STREAMS,
    TEMPORAL,
    TEXT_PROJECTION,
    TEXT_STREAM,
    VIDEO_NAMES,
    nearest,
    no_denoiser,
    nothing_found,
)


@dataclass(frozen=True)
class Site:
    """One Linear layer of a denoiser that an adapter can edit.

    Args:
        component: Name of the pipeline's component, such as "transformer".
        module: Path of the layer in it, such as "blocks.0.attn2.to_k".
        in_features: Width of its input.
        out_features: Width of its output.
        kind: "text" if its input carries the prompt, "image" if it carries the picture alone, "hidden" otherwise.
    """

    component: str
    module: str
    in_features: int
    out_features: int
    kind: str

    @property
    def name(self) -> str:
        """Full name, such as "transformer.blocks.0.attn2.to_k"."""
        return f"{self.component}.{self.module}"

    @property
    def block(self) -> int | None:
        """Index of its block, such as 3 in "blocks.3.attn2.to_k"; None outside of the blocks."""
        index = BLOCK.search(self.module)
        return int(index[1]) if index else None


def denoisers(pipe: Any) -> dict[str, nn.Module]:
    """Return the networks of a pipeline that an adapter can edit, by component name.

    A compiled denoiser is returned as the module that was compiled, one in a `PeftModel` as the model inside.

    Raises:
        DenoiserError: If there is none.
    """
    try:
        components = getattr(pipe, "components", None)
    except (AttributeError, ValueError) as error:  # diffusers', of a pipeline that lacks a part or has another one
        raise DenoiserError(
            f"The components of {type(pipe).__name__} cannot be listed: {error}. Load it again."
        ) from error
    parts = components if isinstance(components, Mapping) else {}
    networks = {name: parts[name] for name in COMPONENTS if isinstance(parts.get(name), nn.Module)}
    if not networks:
        raise DenoiserError(no_denoiser(pipe, parts))
    return {name: bare_denoiser(module) for name, module in networks.items()}


def find_sites(
    pipe: Any, selection: str | Sequence[str] = "text", blocks: Collection[int] | None = None
) -> tuple[Site, ...]:
    """Return the sites of a pipeline that a selection names, in the order of its modules.

    Args:
        pipe: A diffusers pipeline.
        selection: "text", "text-in-blocks" (of these the layers inside of transformer blocks, which LoRA loaders of
            all engines reach), "text-projection" (the layer in front of all blocks that reads the text encoder),
            "image", "hidden", a glob pattern over full names such as "transformer.blocks.*.attn2.to_k", or several.
        blocks: Indices of the blocks whose sites are kept; None keeps all.

    Raises:
        ConfigError: If the selection or the blocks are of another kind.
        DenoiserError: If the pipeline has no denoiser, or its query, key and value projections are fused.
        SiteError: If a part of the selection names no site.

    Example:
        >>> [site.name for site in find_sites(pipe, "text", blocks=[0])]
        ['transformer.blocks.0.attn2.to_k', 'transformer.blocks.0.attn2.to_v']
    """
    parts = check_sites(selection)
    patterns = (parts,) if isinstance(parts, str) else parts
    blocks = None if blocks is None else check_blocks(blocks)
    every = [site for name, denoiser in denoisers(pipe).items() for site in _all_sites(name, denoiser)]
    names: set[str] = set()
    for pattern in patterns:
        matched = _match(pipe, pattern, every)
        if not matched:
            raise SiteError(nothing_found(pattern, denoisers(pipe), [site.name for site in every]))
        names |= matched
    first = _text_projection(pipe) if "text-projection" in patterns else ()
    sites = tuple(replace(each, kind="text") if each.name in first else each for each in every if each.name in names)
    if blocks is not None:
        sites = _keep_blocks(pipe, sites, blocks)
    _check_not_fused(pipe, sites)
    return sites


def site_module(pipe: Any, site_name: str) -> nn.Module:
    """Return the layer at a site: the outermost one, so that a LoRA layer around it counts.

    Raises:
        SiteError: If the pipeline has no such layer.
    """
    return site_modules(pipe, [site_name])[site_name]


def site_modules(pipe: Any, site_names: Iterable[str]) -> dict[str, nn.Module]:
    """Return the layers at several sites, by name, as `site_module`; diffusers lists the components for all at once."""
    networks = denoisers(pipe)
    return {name: _module_at(pipe, networks, name) for name in site_names}


def _module_at(pipe: Any, networks: Mapping[str, nn.Module], site_name: str) -> nn.Module:
    component, _, path = site_name.partition(".")
    if component not in networks:
        raise SiteError(
            f"Site {site_name!r} names the component {component!r}, but {type(pipe).__name__} has the denoisers "
            f"{', '.join(networks)}."
        )
    module = _walk(networks[component], path)
    if module is None or not _is_linear(module):
        names = [f"{component}.{name}" for name, _ in linear_layers(networks[component])]
        raise SiteError(f"{type(pipe).__name__} has no Linear layer {site_name!r}.{nearest(site_name, names)}")
    return module


def base_linear(module: nn.Module) -> nn.Module:
    """Return the layer inside of PEFT's wrappers (a LoRA layer, a module to save), or the layer itself."""
    while isinstance(inner := getattr(module, "base_layer", None) or module._modules.get("original_module"), nn.Module):
        module = inner
    return module


def check_not_empty(denoiser: nn.Module, path: str) -> None:
    """Raise `DenoiserError` if the weight at a path is on the meta device and nothing would bring it back."""
    around = [denoiser]
    for part in path.split("."):
        child = around[-1]._modules.get(part)
        if child is None:
            return
        around.append(_uncompiled(child))
    layer = base_linear(around[-1])
    weight = layer_weight(layer)
    if getattr(weight, "is_meta", False) and not any("_hf_hook" in vars(module) for module in (*around, layer)):
        raise DenoiserError(
            f"The weights of {type(denoiser).__name__} are on the meta device, so that {path!r} holds no numbers, and "
            "no offloading brings them back. Load the pipeline again with from_pretrained()."
        )


def linear_layers(denoiser: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Yield path and layer of every Linear of a denoiser; a LoRA layer counts as the Linear that it wraps."""
    for name, module in _modules(denoiser):
        if _is_linear(module):
            yield name, module


def bare_denoiser(denoiser: nn.Module) -> nn.Module:
    """Return a denoiser without what `torch.compile` and `peft.get_peft_model` put around it."""
    while True:
        inner = _uncompiled(denoiser)
        tuner = inner._modules.get("base_model") if hasattr(inner, "peft_config") else None
        if tuner is not None:
            inner = tuner._modules.get("model") or tuner
        if inner is denoiser:
            return denoiser
        denoiser = inner


def _uncompiled(module: nn.Module) -> nn.Module:
    return module._modules.get("_orig_mod") or module


def _modules(module: nn.Module, prefix: str = "") -> Iterator[tuple[str, nn.Module]]:
    """Like `named_modules`, but it sees through `torch.compile` and does not enter a Linear."""
    yield prefix, module
    if _is_linear(module):
        return
    for name, child in module.named_children():
        yield from _modules(_uncompiled(child), f"{prefix}.{name}" if prefix else name)


def _walk(module: nn.Module, path: str) -> nn.Module | None:
    for part in path.split("."):
        child = module._modules.get(part)
        if child is None:
            return None
        module = _uncompiled(child)
    return module


def _is_linear(module: Any) -> bool:
    if not isinstance(module, nn.Module):
        return False
    base = base_linear(module)
    quantised = "Linear" in type(base).__name__ and isinstance(getattr(base, "in_features", None), int)
    return isinstance(base, nn.Linear) or (quantised and not isinstance(base, nn.Bilinear))


def _all_sites(component: str, denoiser: nn.Module) -> list[Site]:
    kinds = {**dict.fromkeys(_image_layers(denoiser), "image"), **dict.fromkeys(_text_layers(denoiser), "text")}
    sites = []
    for name, module in linear_layers(denoiser):
        base: Any = base_linear(module)
        kind = kinds.get(name, "hidden")
        sites.append(Site(component, name, int(base.in_features), int(base.out_features), kind))
    return sites


def _text_layers(denoiser: nn.Module) -> Iterator[str]:
    """Yield the paths of the layers whose input is the prompt, found by structure."""
    if type(denoiser).__name__ in NO_TEXT:
        return
    excluded = TEMPORAL | NOT_CALLED.get(type(denoiser).__name__, set())
    for name, module in _modules(denoiser):
        parts = name.split(".")
        if not excluded.isdisjoint(parts):
            continue
        for leaf in _text_projections(module, parts[-1]):
            yield f"{name}.{leaf}"
        if type(module).__name__ in SINGLE_STREAM and not _has_text_stream(module):
            yield from SINGLE_STREAM[type(module).__name__]


def _text_projections(attention: nn.Module, name: str) -> tuple[str, ...]:
    """Return the children of an attention that read the prompt."""
    if type(attention).__name__ in SWAPPED_STREAMS:
        return VIDEO_NAMES
    if _is_linear(getattr(attention, "add_q_proj", None)):
        return tuple(leaf for leaf in TEXT_STREAM if _is_linear(getattr(attention, leaf, None)))
    return _first_present(attention, KEY_VALUE) if _is_cross_attention(attention, name) else ()


def _image_layers(denoiser: nn.Module) -> Iterator[str]:
    """Yield the paths of the layers whose input is the picture alone, found by structure."""
    kind = type(denoiser).__name__
    # Keys and values of the picture have the names of a text stream, which has queries too.
    names = KEY_VALUE if kind in NO_TEXT else IMAGE_KEY_VALUE
    for name, module in _modules(denoiser):
        if _is_cross_attention(module, name.rpartition(".")[2]) and not _has_text_stream(module):
            for leaf in _first_present(module, names):
                if leaf not in NOT_CALLED.get(kind, ()):
                    yield f"{name}.{leaf}"
    path = IMAGE_PROJECTION.get(kind)
    if path and _walk(denoiser, path):
        yield path


def _is_cross_attention(attention: nn.Module, name: str) -> bool:
    # Modules over time have `attn2` too, as a second self-attention: they say so in `is_cross_attention`.
    return name in CROSS_ATTENTION and bool(getattr(attention, "is_cross_attention", True))


def _first_present(attention: nn.Module, choices: Sequence[tuple[str, ...]]) -> tuple[str, ...]:
    """Return the first of some sets of children that are all Linear layers; none if there is no such set."""
    present = (leaves for leaves in choices if all(_is_linear(getattr(attention, leaf, None)) for leaf in leaves))
    return next(present, ())


def _has_text_stream(block: nn.Module) -> bool:
    return any(name.endswith("add_q_proj") for name, _ in linear_layers(block))


def _hidden_layers(denoiser: nn.Module) -> Iterator[str]:
    """Yield the layers that read an attention's output or start a feed-forward, in the blocks of the video."""
    swapped = any(type(module).__name__ in SWAPPED_STREAMS for module in denoiser.modules())
    excluded = NOT_VIDEO | NOT_CALLED.get(type(denoiser).__name__, set())
    for path, _ in linear_layers(denoiser):
        parts = path.split(".")
        if not BLOCK.search(path) or not excluded.isdisjoint(parts):
            continue
        joint_out = parts[0] == "single_transformer_blocks" and parts[-1] == "proj_out"
        usual = joint_out or ATTENTION_OUT.search(path) or FEED_FORWARD_IN.search(path)
        if SWAPPED_HIDDEN.search(path) if swapped else usual:
            yield path


def _match(pipe: Any, pattern: str, every: Sequence[Site]) -> set[str]:
    if pattern in ("text", "image"):
        return {site.name for site in every if site.kind == pattern}
    if pattern == "text-projection":
        return _text_projection(pipe)
    if pattern == "text-in-blocks":
        return {site.name for site in every if site.kind == "text" and site.block is not None}
    if pattern == "hidden":
        return {f"{name}.{path}" for name, module in denoisers(pipe).items() for path in _hidden_layers(module)}
    return {site.name for site in every if fnmatchcase(site.name, pattern)}


def _text_projection(pipe: Any) -> set[str]:
    layers = ((name, network, path) for name, network in denoisers(pipe).items() for path, _ in linear_layers(network))
    return {
        f"{name}.{path}"
        for name, network, path in layers
        if TEXT_PROJECTION.fullmatch(path) and path not in NOT_CALLED.get(type(network).__name__, ())
    }


def _keep_blocks(pipe: Any, sites: tuple[Site, ...], blocks: Collection[int]) -> tuple[Site, ...]:
    present = sorted({site.block for site in sites if site.block is not None})
    missing = sorted(set(blocks) - set(present))
    if missing or not blocks:
        span = f"from {present[0]} to {present[-1]}" if present else "none"
        raise SiteError(
            f"No selected site of {type(pipe).__name__} is in block {', '.join(map(str, missing)) or '(none given)'}; "
            f"the blocks with such sites: {span}."
        )
    return tuple(site for site in sites if site.block in blocks)


def _check_not_fused(pipe: Any, sites: tuple[Site, ...]) -> None:
    """Refuse projections that are bypassed: after `fuse_qkv_projections` an edit of `to_k` would have no effect."""
    networks = denoisers(pipe)
    for site in sites:
        parent, _, leaf = site.module.rpartition(".")
        attention = _walk(networks[site.component], parent) if parent else None
        projections = {*VIDEO_NAMES, *TEXT_STREAM, *(name for names in KEY_VALUE for name in names)}
        if leaf in projections and getattr(attention, "fused_projections", False):
            raise DenoiserError(
                f"The query, key and value projections of {site.component}.{parent} are fused, so that {leaf} is not "
                f"used. Call pipe.{site.component}.unfuse_qkv_projections() first."
            )
