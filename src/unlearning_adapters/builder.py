"""Build an adapter from pairs of prompts or pictures: sites -> activations -> directions -> adapter; no training."""

import inspect
import re
import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from importlib.metadata import PackageNotFoundError, version
from itertools import cycle, islice
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch import Tensor
from tqdm import tqdm

from .activations import Recording, record
from .adapter import AdapterInfo, Direction, UnlearningAdapter
from .block_strengths import check_blocks, with_block_strengths
from .concepts import Concept
from .config import DEFAULT_PAIRS, MAX_RANK, BuildConfig, site_strength
from .errors import ConceptError, DenoiserError
from .methods import NEEDS_GRAM, NEEDS_NEUTRAL, GroupRows, find_direction, find_strength
from .moving_sites import few_steps, find_feeds
from .pairs import Pair
from .site_choice import choose_sites
from .sites import Site, check_not_empty, denoisers
from .weights import layer_response, weight_gram

NEUTRAL_TEXT_ROWS = 64  # per neutral prompt; more than the words of nearly all prompts
NEUTRAL_HIDDEN_ROWS = 2048  # of all neutral prompts together
LEFT_OUT = 0.01  # share of an edit that may fall to the limit of its rank unsaid


def build_adapter(
    pipe: Any,
    concept: Concept,
    config: BuildConfig = BuildConfig(),  # noqa: B008 - frozen
    *,
    progress: bool = True,
    call_kwargs: Mapping[str, Any] | None = None,
) -> UnlearningAdapter:
    """Build the adapter that makes a pipeline forget a concept.

    1. Find the sites: the Linear layers that read what the pairs differ in, the prompt or the picture.
    2. Record what they read for both sides of each pair, and for the neutral prompts and pictures: in the first step,
       and at text and image sites whose input changes from step to step (`find_feeds`) in three.
    3. Per group of sites that read the same: find the direction of the concept (docs/maths.md).
    4. Calibrate the strength on pairs that were left out, unless `config.strength` sets it; a block multiplies it by
       its factor in `config.block_strengths`.

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
        ConceptError: If the two sides of the pairs read alike at a site, if the pipeline takes nothing in which they
            differ, or if there are fewer pairs than `config.pairs`.
        DenoiserError: If the pipeline has no denoiser that can be edited, or the method needs weights that are
            quantised or out of reach.
        SiteError: If the selection names no site, a block has none, or a site was never called.

    Example:
        >>> adapter = build_adapter(pipe, load_concept("shapeworld-red"))
        >>> adapter.save_pretrained("no-red")
    """
    material = gather(pipe, concept, config, progress=progress, call_kwargs=call_kwargs)
    generator = torch.Generator("cpu").manual_seed(config.seed)
    by_group: list[Direction] = []
    strengths: list[float] = []
    networks = denoisers(pipe)
    for group in tqdm(range(material.groups), desc="Directions", unit="group", disable=not progress):
        rows = material.rows(group)
        if config.method in NEEDS_GRAM:
            rows = replace(rows, gram=_gram(networks, material.recorded.members(group), config.method))
        with material.named(group):
            if config.method == "ridge":  # which solves once more for each pair that calibration leaves out
                rows = rows.condensed()
            by_group.append(find_direction(rows, config, generator))
            strengths.append(find_strength(rows, config, generator))
    left_out = max(direction.left_out for direction in by_group)
    if left_out > LEFT_OUT:
        warnings.warn(
            f"The edit of the method {config.method!r} has more than {MAX_RANK} rows, the limit: the best {MAX_RANK} "
            f"leave out {100 * left_out:.1f} % of it. Lower `pairs` for an exact edit.",
            stacklevel=2,
        )
    found = {site.name: by_group[material.group_of(site)] for site in material.sites}
    directions = with_block_strengths(found, material.sites, config.block_strengths)
    return assemble(pipe, concept, config, directions, median(strengths))


@dataclass(frozen=True)
class Material:
    """What a build works on: the pairs, the sites, and what these read; any number of directions can be made of it.

    Args:
        pairs: The pairs that are used.
        sites: The sites.
        recorded: What they read for the unsafe sides of all pairs, then for the safe ones.
        neutral: What they read for the neutral prompts, or None without such.
    """

    pairs: tuple[Pair, ...]
    sites: tuple[Site, ...]
    recorded: Recording
    neutral: Recording | None

    @property
    def groups(self) -> int:
        """Number of groups of sites that read the same."""
        return len(self.recorded.rows)

    def group_of(self, site: Site) -> int:
        """Return the group of a site."""
        return self.recorded.groups[site.name]

    def rows(self, group: int) -> GroupRows:
        """Return what a group reads, without pairs that differ in nothing that sites of its kind read."""
        kinds = {site.name: site.kind for site in self.sites}
        return _rows_of(self.recorded, self.neutral, group, self.pairs, kinds[self.recorded.members(group)[0]])

    @contextmanager
    def named(self, group: int) -> Iterator[None]:
        """Name the first site of a group in a `ConceptError` that is raised inside."""
        try:
            yield
        except ConceptError as error:
            raise ConceptError(f"At the site {self.recorded.members(group)[0]!r}: {error}") from error


def gather(
    pipe: Any,
    concept: Concept,
    config: BuildConfig,
    *,
    progress: bool = True,
    call_kwargs: Mapping[str, Any] | None = None,
) -> Material:
    """Find the sites of a build and record what they read: its first two steps; arguments as in `build_adapter`."""
    pairs = _chosen_pairs(concept, config)
    sites = choose_sites(pipe, concept, pairs, config, call_kwargs)
    check_blocks(config.block_strengths, sites)
    networks = denoisers(pipe)
    for site in sites:
        check_not_empty(networks[site.component], site.module)
    return Material(pairs, sites, *_record(pipe, concept, pairs, sites, config, progress, call_kwargs))


def assemble(
    pipe: Any, concept: Concept, config: BuildConfig, directions: Mapping[str, Direction], strength: float
) -> UnlearningAdapter:
    """Make the adapter of directions that were found: the last step of a build.

    Args:
        pipe: The pipeline, for the name of the base and the stock LoRA factors.
        concept: What is forgotten.
        config: How the directions were found.
        directions: A direction per site, by name.
        strength: Strength that the adapter has by default.
    """
    return UnlearningAdapter(
        info=_info(pipe, concept, config, strength, directions),
        directions=directions,
        lora_B=_lora_factors(pipe, directions, strength),
    )


def _chosen_pairs(concept: Concept, config: BuildConfig) -> tuple[Pair, ...]:
    if config.pairs is not None and config.pairs > len(concept.pairs):
        raise ConceptError(
            f"Expected the concept {concept.name!r} to have the {config.pairs} pairs that `pairs` asks for, but it has "
            f"{len(concept.pairs)}. Lower `pairs`, or add pairs."
        )
    if not (concept.neutral or concept.neutral_images) and config.method in NEEDS_NEUTRAL:
        kind = "prompts" if any(pair.text_differs for pair in concept.pairs) else "pictures"
        warnings.warn(
            f"The concept {concept.name!r} has no neutral {kind}: the method {config.method!r} protects only what the "
            f"safe sides of its pairs show. Add neutral {kind} to keep more.",
            stacklevel=4,
        )
    return concept.pairs[: config.pairs or DEFAULT_PAIRS]


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
    settings: dict[str, Any] = {
        "steps": config.steps,
        "batch_size": config.batch_size,
        "call_kwargs": call_kwargs,
        "progress": progress,
    }
    feeds = find_feeds(pipe, sites, pairs[0].unsafe, pairs[0].unsafe_image, seed=config.seed, call_kwargs=call_kwargs)
    if feeds.moving:
        settings |= {"calls": feeds.moving, "call_kwargs": few_steps(call_kwargs)}
    recorded = record(
        pipe,
        [pair.unsafe for pair in pairs] + [pair.safe for pair in pairs],
        sites,
        images=[pair.unsafe_image for pair in pairs] + [pair.safe_image for pair in pairs],
        seed=seeds + seeds,
        leaders=feeds.leaders,
        description="Pairs",
        **settings,
    )
    prompts, images = _neutral_inputs(concept, pairs, _guidance_prompts(pipe, call_kwargs))
    if not prompts:
        return recorded, None
    hidden = any(site.kind == "hidden" for site in sites)
    neutral = record(
        pipe,
        prompts,
        sites,
        images=images,
        seed=config.seed,
        max_rows=max(1, NEUTRAL_HIDDEN_ROWS // len(prompts)) if hidden else NEUTRAL_TEXT_ROWS,
        leaders=recorded.leaders,
        description="Neutral prompts",
        **settings,
    )
    return recorded, neutral


def _guidance_prompts(pipe: Any, call_kwargs: Mapping[str, Any] | None) -> list[str]:
    """Return what guidance steers away from: the empty prompt, and the pipeline's own or the given negative prompt.

    They pass the edited layers at every guided step, and guidance multiplies whatever the edit does to them.
    """
    parameter = inspect.signature(type(pipe).__call__).parameters.get("negative_prompt")
    if parameter is None:
        return []
    negative = (call_kwargs or {}).get("negative_prompt", parameter.default)
    return ["", negative] if isinstance(negative, str) and negative else [""]


def _neutral_inputs(concept: Concept, pairs: Sequence[Pair], guidance: Sequence[str]) -> tuple[list[str], list[Any]]:
    """Return each neutral prompt with a picture, and each neutral picture with a prompt.

    Where there are more of the one kind than of the other, the other is repeated; without neutral ones, the safe sides
    of the pairs stand in. The prompts of guidance join the neutral ones.
    """
    neutral = [*concept.neutral, *guidance] if concept.neutral else []
    count = max(len(neutral), len(concept.neutral_images))
    prompts = neutral or [pair.safe for pair in pairs]
    images = concept.neutral_images or [pair.safe_image for pair in pairs]
    return list(islice(cycle(prompts), count)), list(islice(cycle(images), count))


def _rows_of(recorded: Recording, neutral: Recording | None, group: int, pairs: Sequence[Pair], kind: str) -> GroupRows:
    """Return the rows of a group, without pairs that differ in nothing that sites of its kind read."""
    unsafe, safe = recorded.rows[group][: len(pairs)], recorded.rows[group][len(pairs) :]
    by_call = recorded.by_call.get(group)
    differs = {
        "text": [pair.text_differs for pair in pairs],
        "image": [pair.image_differs for pair in pairs],
    }.get(kind, [True] * len(pairs))
    telling = [index for index in range(len(pairs)) if differs[index] or not torch.equal(unsafe[index], safe[index])]
    kept = neutral.of(recorded.members(group)[0]) if neutral else (unsafe[0][:0],)
    rows = GroupRows(unsafe, safe, kept, kind=kind)
    if by_call:  # each call is a pair of its own, so that both sides are compared at one timestep
        sides = (by_call[: len(pairs)], by_call[len(pairs) :])
        unsafe, safe = (tuple(rows for calls in side for rows in calls) for side in sides)
        rows = GroupRows(unsafe, safe, kept, steps=len(by_call[0]), kind=kind)
    return rows.pairs(telling) if telling else rows


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
        factors[name] = (-site_strength(strength, direction.gain, name) * response.T).contiguous()
    return factors


def _info(pipe: Any, concept: Concept, config: BuildConfig, strength: float, sites: Iterable[str]) -> AdapterInfo:
    networks = denoisers(pipe)
    used = dict.fromkeys(site.split(".", 1)[0] for site in sites)
    return AdapterInfo(
        concept=concept.name,
        method=config.method,
        strength=strength,
        settings=config.to_dict(),
        base_model=base_model_of(pipe),
        base_revision=base_revision_of(next(iter(networks.values()))),
        pipeline=type(pipe).__name__,
        denoisers={name: type(networks[name]).__name__ for name in used},
        pairs_hash=concept.pairs_hash,
        versions={name: _version(name) for name in ("unlearning-adapters", "torch", "diffusers")},
        description=concept.description or f"Makes the model forget {concept.name}.",
    )


def base_model_of(pipe: Any) -> str:
    """Return the Hub id of the base; of a local folder only its name, since files are shared and paths are private."""
    name = _name_or_path(pipe)
    return Path(name).name if Path(name).is_absolute() or Path(name).exists() else name


def _name_or_path(component: Any) -> str:
    config: Any = getattr(component, "config", None)
    name = config.get("_name_or_path") if isinstance(config, Mapping) else getattr(config, "_name_or_path", "")
    return str(name or "")


def base_revision_of(network: Any) -> str:
    """Return the commit of the base: a model from the Hub remembers its folder in the cache, `snapshots/<commit>`."""
    commit = re.search(r"snapshots[/\\]([0-9a-f]{40})(?![0-9a-f])", _name_or_path(network))
    return commit[1] if commit else ""


def _version(distribution: str) -> str:
    try:
        return version(distribution)
    except PackageNotFoundError:
        return "not installed"  # run from its source
