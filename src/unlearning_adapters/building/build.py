"""Build an adapter from pairs of prompts or pictures: sites -> activations -> directions -> adapter; no training."""

import warnings
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from os import PathLike
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from unlearning_adapters.adapter.adapter import UnlearningAdapter
from unlearning_adapters.adapter.direction import AdapterInfo, Direction
from unlearning_adapters.adapter.versions import version_of
from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import DenoiserError
from unlearning_adapters.methods.registry import METHODS, find_direction, find_strength
from unlearning_adapters.methods.strength import pair_shares
from unlearning_adapters.pipelines.base_model import base_model_of, base_revision_of
from unlearning_adapters.pipelines.running.call_lock import reading
from unlearning_adapters.pipelines.sites import denoisers
from unlearning_adapters.pipelines.weights import layer_response, weight_gram

from .advice import build_warnings
from .gains import with_block_strengths
from .inputs import check_arguments, record_inputs
from .outlier_pairs import with_outlier_rows
from .shared_neutral import shared_neutral
from .video.counterfactuals import check_makes_base_clips, scope_warnings, video_directions
from .video.scenes import given_clips


def build_adapter(
    pipe: Any,
    concept: Concept,
    config: BuildConfig = BuildConfig(),  # noqa: B008 - frozen
    *,
    progress: bool = True,
    call_kwargs: Mapping[str, Any] | None = None,
    neutral_cache: str | PathLike[str] | None = None,
    clips: str | PathLike[str] | Mapping[str, Sequence[Any]] | None = None,
) -> UnlearningAdapter:
    """Build the adapter that makes a pipeline forget a concept.

    1. Find the sites: the Linear layers that read what the pairs differ in, the prompt or the picture.
    2. Record what they read for both sides of each pair, and for the neutral prompts and pictures: in the first step,
       and at text and image sites whose input changes from step to step (`find_shared_inputs`) in three.
    3. Per group of sites that read the same: find the direction of the concept (docs/maths.md).
    4. Calibrate the strength on pairs that were left out, unless `config.strength` sets it; a block multiplies it by
       its factor in `config.block_strengths`. If less than half of a pair is then removed, this outlier pair gets an
       extra row at the text sites.
    5. With `scope="concept"`, find the edit at video tokens as well, from clips of the pairs (`video_directions`).

    The pipeline is left as it was, its random state and its scheduler included. The adapter is that of the base model:
    with other adapters or LoRAs attached or fused, the build returns the same adapter bit for bit, or raises an error
    that names what is in the way. Default method: `ridge`; the paper's methods `mean` and `cpca` (arXiv 2506.07891)
    keep its strength of 1.

    Args:
        pipe: A diffusers pipeline.
        concept: What is to be forgotten.
        config: Settings of the build.
        progress: Whether to show progress bars.
        call_kwargs: Further arguments of the pipeline's call while activations are recorded, such as
            {"max_sequence_length": 512}; the `negative_prompt` that clips will be made with is protected, unless it
            names the concept.
        neutral_cache: Folder that keeps what text sites read of neutral prompts: a later build on the same base, with
            the same sites and settings, records only prompts that are not there yet.
        clips: With `scope="concept"`, clips of both sides of the pairs in place of those that the pipeline would make:
            a folder with the folders "unsafe", "safe" and, if wanted, "neutral", or a mapping of these names to lists
            of clips (`read_clips`). Both sides of a scene must be alike but for the concept, place by place, and have
            the size of the pipeline's own clips.

    Returns:
        An adapter; the pipeline is not edited yet.

    Warns:
        UserWarning: If the concept may survive in the words of a pair or in other words, if the edit changes neutral
            prompts, or if measurements showed `scope="concept"` to be weak on this kind of denoiser.

    Raises:
        ConceptError: If the two sides of the pairs read alike at a site, if the pipeline takes nothing in which they
            differ, if there are fewer pairs than `config.pairs`, or if given clips do not fit the pairs or the size.
        ConfigError: If an argument is of another type, or the neutral cache is of another base or other settings.
        DenoiserError: If the pipeline has no denoiser that can be edited, the method needs weights that are quantised
            or out of reach, a site reads what a LoRA or another adapter, attached or fused, has changed, or with
            `scope="concept"` the clips would be those of such an edit.
        FuseError: If a LoRA is fused into a site's weight, so that the base's own is unknown.
        SiteError: If the selection names no site, a block has none, or a site was never called.

    Example:
        >>> adapter = build_adapter(pipe, load_concept("shapeworld-red"))
        >>> adapter.save_pretrained("no-red")
    """
    check_arguments(concept, config, call_kwargs)
    networks = denoisers(pipe)
    given = None if clips is None else given_clips(clips, concept, config)
    with ExitStack() as stack:
        stack.enter_context(reading(networks.values()))
        if neutral_cache is not None:
            stack.enter_context(shared_neutral((), neutral_cache))
        if config.scope == "concept":
            check_makes_base_clips(pipe)
        inputs = record_inputs(pipe, concept, config, progress=progress, call_kwargs=call_kwargs)
        generator = torch.Generator("cpu").manual_seed(config.seed)
        by_group: list[Direction] = []
        strengths: list[float] = []
        parts: list[list[float]] = []
        method = METHODS[config.method]
        knows_pairs = method.find_with_extra_rows is not None and config.rank == 1 and config.strength is None
        for group in tqdm(range(inputs.groups), desc="Directions", unit="group", disable=not progress):
            rows = inputs.rows(group)
            if method.needs_gram:
                rows = replace(rows, gram=_gram(networks, inputs.recorded.members(group), config.method))
            with inputs.named(group):
                by_group.append(find_direction(rows, config, generator))
                strengths.append(find_strength(rows, config, generator))
                parts.append(pair_shares(rows, by_group[-1]) if knows_pairs and rows.kind == "text" else [])
        strength = median(strengths)
        by_group, outliers, survivors = with_outlier_rows(inputs, by_group, parts, strength, config)
        for text in build_warnings(inputs, config, by_group, strength, outliers, survivors):
            warnings.warn(text, stacklevel=2)
        by_site = {site.name: by_group[inputs.group_of(site)] for site in inputs.sites}
        directions = with_block_strengths(by_site, inputs.sites, config.block_strengths)
        if config.scope == "concept":
            video = video_directions(
                pipe, concept, inputs.pairs, config, strength, directions,
                progress=progress, call_kwargs=call_kwargs, clips=given,
            )  # fmt: skip
            directions = {**video, **directions}
            for text in scope_warnings(pipe, concept.name):
                warnings.warn(text, stacklevel=2)
        return assemble(pipe, concept, config, directions, strength)


def assemble(
    pipe: Any, concept: Concept, config: BuildConfig, directions: Mapping[str, Direction], strength: float
) -> UnlearningAdapter:
    """Make the adapter from its directions: the last step of a build.

    Args:
        pipe: The pipeline, for the name of the base and the stock LoRA factors.
        concept: What is forgotten.
        config: How the directions were found.
        directions: A direction per site, by name.
        strength: Strength that the adapter has by default.
    """
    if config.shrinkage:
        directions = {name: replace(one, shrinkage=config.shrinkage) for name, one in directions.items()}
    return UnlearningAdapter(
        info=_info(pipe, concept, config, strength, directions),
        directions=directions,
        lora_B=_lora_factors(pipe, directions, strength),
    )


def _gram(networks: Mapping[str, Any], sites: Sequence[str], method: str) -> Tensor:
    """Return the sum of `W^T W` over sites that read the same."""
    total: Tensor | None = None
    for site in sites:
        component, _, path = site.partition(".")
        gram = weight_gram(networks[component], path)
        if gram is None:
            raise DenoiserError(
                f"The method {method!r} needs the weight of {site!r} as plain numbers, but it is quantised or out of "
                "reach. Load the pipeline without quantisation and offloading to files, or choose another method."
            )
        total = gram if total is None else total + gram
    assert total is not None
    return total


def _lora_factors(pipe: Any, directions: Mapping[str, Direction], strength: float) -> dict[str, Tensor]:
    """Return `-strength * gain * W @ write.T` per site, for stock LoRA loaders; nothing if a weight is out of reach."""
    networks, factors = denoisers(pipe), {}
    for name, direction in directions.items():
        component, _, path = name.partition(".")
        response = layer_response(networks[component], path, direction.write)
        if response is None:
            return {}  # only this package's own loader, which needs no factor, can use the adapter
        factors[name] = direction.stock_factor(response, strength, name).contiguous()
    return factors


def _info(pipe: Any, concept: Concept, config: BuildConfig, strength: float, sites: Iterable[str]) -> AdapterInfo:
    networks = denoisers(pipe)
    components = dict.fromkeys(site.split(".", 1)[0] for site in sites)
    return AdapterInfo(
        concept=concept.name,
        method=config.method,
        strength=strength,
        settings=config.to_dict(),
        base_model=base_model_of(pipe),
        base_revision=base_revision_of(next(iter(networks.values()))),
        pipeline=type(pipe).__name__,
        denoisers={name: type(networks[name]).__name__ for name in components},
        pairs_hash=concept.pairs_hash,
        versions={name: version_of(name) for name in ("unlearning-adapters", "torch", "diffusers")},
        description=concept.description or f"Makes the model forget {concept.name}.",
    )
