"""Build an adapter from pairs of prompts: sites -> activations -> directions -> adapter; no training, no gradient."""

import re
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .activations import Recording, measure_text_only, record
from .adapter import AdapterInfo, Direction, UnlearningAdapter
from .concepts import Concept, Pair
from .config import BuildConfig
from .directions import (
    calibrate_strength,
    concept_rows,
    cpca_direction,
    leace_direction,
    mean_direction,
    pca_direction,
    pooled_refusal_vector,
    random_direction,
    refusal_vector,
    ridge_direction,
    token_differences,
)
from .errors import ConceptError, SiteError
from .sites import Site, base_linear, denoisers, find_sites, site_module
from .stacking import StackedEdit, lora_factors

NEUTRAL_TEXT_ROWS = 64  # per neutral prompt; more than the words of nearly all prompts
NEUTRAL_HIDDEN_ROWS = 2048  # of all neutral prompts together


@dataclass(frozen=True)
class GroupRows:
    """What the sites of one group read.

    Args:
        unsafe: Rows of the unsafe side of each pair, shape (tokens, features) each.
        safe: Rows of the safe side of each pair.
        neutral: Rows of all neutral prompts, shape (rows, features).
    """

    unsafe: tuple[Tensor, ...]
    safe: tuple[Tensor, ...]
    neutral: Tensor

    def pairs(self, indices: Sequence[int]) -> "GroupRows":
        """Return the same with some of the pairs only."""
        return GroupRows(tuple(self.unsafe[i] for i in indices), tuple(self.safe[i] for i in indices), self.neutral)


def build_adapter(
    pipe: Any,
    concept: Concept,
    config: BuildConfig = BuildConfig(),  # noqa: B008 - frozen
    *,
    progress: bool = True,
    call_kwargs: Mapping[str, Any] | None = None,
) -> UnlearningAdapter:
    """Build the adapter that makes a pipeline forget a concept.

    1. Find the sites: the Linear layers that read the prompt.
    2. Record what they read for both sides of each pair, and for the neutral prompts.
    3. Per group of sites that read the same: find the direction of the concept (docs/maths.md).
    4. Calibrate the strength on pairs that were left out, unless `config.strength` sets it.

    The pipeline is left as it was, its random state and its scheduler included. Default method: `ridge`; the paper's
    methods `mean` and `cpca` (arXiv 2506.07891) keep its strength of 1.

    Args:
        pipe: A diffusers pipeline.
        concept: What is to be forgotten.
        config: How.
        progress: Whether to show progress bars.
        call_kwargs: Further arguments of the pipeline's call while activations are recorded, such as
            {"max_sequence_length": 512}.

    Returns:
        An adapter; the pipeline is not edited yet.

    Raises:
        ConceptError: If the two sides of the pairs read alike at a site, or there are fewer pairs than `config.pairs`.
        DenoiserError: If the pipeline has no denoiser that can be edited.
        SiteError: If the selection names no site, or a site was never called.

    Example:
        >>> adapter = build_adapter(pipe, load_concept("shapeworld-red"))
        >>> adapter.save_pretrained("no-red")
    """
    pairs = _chosen_pairs(concept, config)
    sites = _chosen_sites(pipe, config, call_kwargs)
    recorded, neutral = _record(pipe, concept, pairs, sites, config, progress, call_kwargs)

    generator = torch.Generator("cpu").manual_seed(config.seed)
    by_group: list[Direction] = []
    strengths: list[float] = []
    for group in tqdm(range(len(recorded.rows)), desc="Directions", unit="group", disable=not progress):
        rows = _rows_of(recorded, neutral, group, len(pairs))
        try:
            by_group.append(find_direction(rows, config, generator))
            strengths.append(find_strength(rows, config, generator))
        except ConceptError as error:
            raise ConceptError(f"At the site {recorded.members(group)[0]!r}: {error}") from error

    strength = median(strengths)
    directions = {site.name: by_group[recorded.groups[site.name]] for site in sites}
    return UnlearningAdapter(
        info=_info(pipe, concept, config, strength, sites),
        directions=directions,
        lora_B=_lora_factors(pipe, directions, strength),
    )


def find_direction(rows: GroupRows, config: BuildConfig, generator: torch.Generator) -> Direction:
    """Return the direction of a concept in the input space of a group of sites, by the method of `config`.

    Args:
        rows: What the sites read.
        config: Method and its settings.
        generator: Source of randomness of the method "random".

    Raises:
        ConceptError: If the two sides of the pairs read alike.
    """
    return METHODS[config.method](rows, config, generator)


def find_strength(rows: GroupRows, config: BuildConfig, generator: torch.Generator) -> float:
    """Return the strength of `config`; for "ridge" without one, that which removes the concept from left-out pairs."""
    if config.strength is not None:
        return config.strength
    if config.method != "ridge":
        return 1.0
    found = [concept_rows(unsafe, safe) for unsafe, safe in zip(rows.unsafe, rows.safe, strict=True)]
    return calibrate_strength(
        [(item.concept, item.counterpart) for item in found],
        lambda others: find_direction(rows.pairs(others), config, generator),
    )


def _mean(rows: GroupRows, _config: BuildConfig, _generator: torch.Generator) -> Direction:
    return mean_direction(pooled_refusal_vector(rows.unsafe, rows.safe))


def _pca(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    r = pooled_refusal_vector(rows.unsafe, rows.safe)
    return pca_direction(_differences(rows), r, config.components, config.rank)


def _cpca(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    r = pooled_refusal_vector(rows.unsafe, rows.safe)
    neutral = rows.neutral if len(rows.neutral) else torch.cat(rows.safe)
    return cpca_direction(_differences(rows), neutral, r, config.components, config.contrast)


def _ridge(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    found = [concept_rows(unsafe, safe) for unsafe, safe in zip(rows.unsafe, rows.safe, strict=True)]
    r = refusal_vector([(item.concept, item.counterpart) for item in found])
    kept = torch.cat([rows.neutral, *rows.safe])
    differences = _differences(rows) if config.rank > 1 else None
    return ridge_direction(r, kept, config.epsilon, rank=config.rank, difference_rows=differences)


def _leace(rows: GroupRows, _config: BuildConfig, _generator: torch.Generator) -> Direction:
    return leace_direction(torch.cat(rows.unsafe), torch.cat(rows.safe))


def _random(rows: GroupRows, _config: BuildConfig, generator: torch.Generator) -> Direction:
    return random_direction(rows.neutral.shape[1], generator)


METHODS: dict[str, Callable[[GroupRows, BuildConfig, torch.Generator], Direction]] = {
    "mean": _mean,
    "pca": _pca,
    "cpca": _cpca,
    "ridge": _ridge,
    "leace": _leace,
    "random": _random,
}
NEEDS_NEUTRAL = ("ridge", "cpca")


def _differences(rows: GroupRows) -> Tensor:
    return torch.cat([token_differences(unsafe, safe) for unsafe, safe in zip(rows.unsafe, rows.safe, strict=True)])


def _chosen_pairs(concept: Concept, config: BuildConfig) -> tuple[Pair, ...]:
    if config.pairs is not None and config.pairs > len(concept.pairs):
        raise ConceptError(
            f"Expected the concept {concept.name!r} to have the {config.pairs} pairs that `pairs` asks for, but it has "
            f"{len(concept.pairs)}. Lower `pairs`, or add pairs."
        )
    if not concept.neutral and config.method in NEEDS_NEUTRAL:
        warnings.warn(
            f"The concept {concept.name!r} has no neutral prompts: the method {config.method!r} protects only what the "
            "safe sides of its pairs show. Add neutral prompts to keep more.",
            stacklevel=3,
        )
    return concept.pairs[: config.pairs]


def _chosen_sites(pipe: Any, config: BuildConfig, call_kwargs: Mapping[str, Any] | None) -> tuple[Site, ...]:
    """Find the sites by structure, or, for a denoiser of a kind that is not known, by measurement."""
    try:
        return find_sites(pipe, config.sites, config.blocks)
    except SiteError:
        if config.sites != "text" or any(site.kind == "text" for site in find_sites(pipe, "*")):
            raise
        measured = measure_text_only(pipe, call_kwargs=call_kwargs)
        in_blocks = tuple(site for site in measured if site.block is not None)
        chosen = in_blocks or measured  # text that is refined in front of the blocks is read again inside of them
        chosen = tuple(site for site in chosen if config.blocks is None or site.block in config.blocks)
        if not chosen:
            raise
        return chosen


def _record(
    pipe: Any,
    concept: Concept,
    pairs: Sequence[Pair],
    sites: Sequence[Site],
    config: BuildConfig,
    progress: bool,
    call_kwargs: Mapping[str, Any] | None,
) -> tuple[Recording, Recording | None]:
    """Record both sides of all pairs, unsafe sides first, and the neutral prompts; both sides of a pair share noise."""
    seeds = [config.seed + index for index in range(len(pairs))]
    safe_images = [pair.safe_image for pair in pairs]
    settings: dict[str, Any] = {
        "steps": config.steps,
        "batch_size": config.batch_size,
        "call_kwargs": call_kwargs,
        "progress": progress,
    }
    recorded = record(
        pipe,
        [pair.unsafe for pair in pairs] + [pair.safe for pair in pairs],
        sites,
        images=[pair.unsafe_image for pair in pairs] + safe_images,
        seed=seeds + seeds,
        description="Pairs",
        **settings,
    )
    if not concept.neutral:
        return recorded, None
    hidden = any(site.kind == "hidden" for site in sites)
    neutral = record(
        pipe,
        concept.neutral,
        sites,
        images=list(islice(cycle(safe_images), len(concept.neutral))),
        seed=config.seed,
        max_rows=max(1, NEUTRAL_HIDDEN_ROWS // len(concept.neutral)) if hidden else NEUTRAL_TEXT_ROWS,
        description="Neutral prompts",
        **settings,
    )
    return recorded, neutral


def _rows_of(recorded: Recording, neutral: Recording | None, group: int, pairs: int) -> GroupRows:
    sides = recorded.rows[group]
    kept = neutral.of(recorded.members(group)[0]) if neutral else (sides[0][:0],)
    return GroupRows(sides[:pairs], sides[pairs:], torch.cat(kept))


def _lora_factors(pipe: Any, directions: Mapping[str, Direction], strength: float) -> dict[str, Tensor]:
    """Return `-strength * W @ write.T` per site for stock LoRA loaders; nothing if a weight cannot be read as numbers."""
    factors: dict[str, Tensor] = {}
    for name, direction in directions.items():
        weight = getattr(base_linear(site_module(pipe, name)), "weight", None)
        if not isinstance(weight, Tensor) or weight.is_meta or not weight.is_floating_point():
            return {}  # quantised or offloaded: only the adapter's own loader, which needs no B, can use it
        edit = StackedEdit(direction.read, strength * direction.write.T).to(weight.device)
        factors[name] = lora_factors(weight.detach(), edit)[1].cpu()
    return factors


def _info(pipe: Any, concept: Concept, config: BuildConfig, strength: float, sites: Sequence[Site]) -> AdapterInfo:
    networks = denoisers(pipe)
    used = dict.fromkeys(site.component for site in sites)
    return AdapterInfo(
        concept=concept.name,
        method=config.method,
        strength=strength,
        settings=config.to_dict(),
        base_model=_name_or_path(pipe),
        base_revision=_revision(next(iter(networks.values()))),
        pipeline=type(pipe).__name__,
        denoisers={name: type(networks[name]).__name__ for name in used},
        pairs_hash=concept.pairs_hash,
        versions={name: _version(name) for name in ("unlearning-adapters", "torch", "diffusers")},
        description=concept.description or f"Makes the model forget {concept.name}.",
    )


def _name_or_path(component: Any) -> str:
    config: Any = getattr(component, "config", None) or {}
    return str(config.get("_name_or_path") or "")


def _revision(network: Any) -> str:
    """Return the commit of the base: a model from the Hub remembers its folder in the cache, `snapshots/<commit>`."""
    commit = re.search(r"snapshots[/\\]([0-9a-f]{40})(?![0-9a-f])", _name_or_path(network))
    return commit[1] if commit else ""


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"  # run from its source
