"""What a build works on: the pairs, the sites, and what these read for pairs and neutral prompts."""

import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.concepts.wording import find_word, tokens
from unlearning_adapters.config import DEFAULT_PAIRS, BuildConfig
from unlearning_adapters.errors import ConceptError
from unlearning_adapters.methods.registry import METHODS
from unlearning_adapters.methods.rows import GroupRows, NeutralRows, Sides
from unlearning_adapters.pipelines.activations import Recording, record
from unlearning_adapters.pipelines.edits import check_no_fused_lora
from unlearning_adapters.pipelines.moving_sites import few_steps, find_feeds
from unlearning_adapters.pipelines.reading_base import check_reads_base
from unlearning_adapters.pipelines.sites import Site, check_not_empty, denoisers, site_module

from .gains import check_blocks
from .shared_neutral import record_neutral
from .site_selection import choose_sites

NEUTRAL_TEXT_ROWS = 64  # per neutral prompt; more than the words of nearly all prompts
NEUTRAL_HIDDEN_ROWS = 2048  # of all neutral prompts together


@dataclass(frozen=True)
class Material:
    """What a build works on: the pairs, the sites, and what these read; any number of directions can be made of it.

    Args:
        pairs: The pairs that are used.
        sites: The sites.
        recorded: What they read for the unsafe sides of all pairs, then for the safe ones.
        neutral: What they read for the neutral prompts, or None without such.
        guidance: Which neutral prompts are those that guidance steers away from.
        prompts: The neutral prompts.
    """

    pairs: tuple[Pair, ...]
    sites: tuple[Site, ...]
    recorded: Recording
    neutral: Recording | None
    guidance: tuple[bool, ...] = ()
    prompts: tuple[str, ...] = ()

    @property
    def groups(self) -> int:
        """Number of groups of sites that read the same."""
        return len(self.recorded.rows)

    def neutral_texts(self, group: int) -> list[tuple[str, Tensor]]:
        """Return the neutral prompts, but for those of guidance, with what a group of text sites reads for each."""
        if self.neutral is None or self.kind_of(group) != "text":
            return []
        read = zip(self.prompts, self.neutral.of(self.recorded.members(group)[0]), self.guidance, strict=True)
        return [(prompt, rows) for prompt, rows, guided in read if not guided]

    def kind_of(self, group: int) -> str:
        """Return the kind of the sites of a group."""
        first = self.recorded.members(group)[0]
        return next(site.kind for site in self.sites if site.name == first)

    def group_of(self, site: Site) -> int:
        """Return the group of a site."""
        return self.recorded.groups[site.name]

    def telling(self, group: int) -> list[int]:
        """Return the indices of the pairs that differ in what sites of a group's kind read; all if none does."""
        count = len(self.pairs)
        unsafe, safe = self.recorded.rows[group][:count], self.recorded.rows[group][count:]
        differs = {
            "text": [pair.text_differs for pair in self.pairs],
            "image": [pair.image_differs for pair in self.pairs],
        }.get(self.kind_of(group), [True] * count)
        found = [index for index in range(count) if differs[index] or not torch.equal(unsafe[index], safe[index])]
        return found or list(range(count))

    def rows(self, group: int) -> GroupRows:
        """Return what a group reads, without pairs that differ in nothing that sites of its kind read."""
        count = len(self.pairs)
        # Both sides of a pair are compared at one timestep, so that each call counts by itself.
        sides = self.recorded.by_call.get(group) or tuple((rows,) for rows in self.recorded.rows[group])
        pairs = tuple(
            tuple(Sides(*both) for both in zip(unsafe, safe, strict=True))
            for unsafe, safe in zip(sides[:count], sides[count:], strict=True)
        )
        return GroupRows(pairs, self._neutral_rows(group), self.kind_of(group)).only(self.telling(group))

    def _neutral_rows(self, group: int) -> NeutralRows:
        """Return what a group reads for the neutral prompts, one of no rows if there are none, and for guidance."""
        none = (self.recorded.rows[group][0][:0],)
        if self.neutral is None:
            return NeutralRows(none)
        read = list(zip(self.neutral.of(self.recorded.members(group)[0]), self.guidance, strict=True))
        prompts = tuple(rows for rows, guided in read if not guided)
        return NeutralRows(prompts or none, tuple(rows for rows, guided in read if guided))

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
        check_no_fused_lora(site_module(pipe, site.name), site.name)
    return Material(pairs, sites, *_record(pipe, concept, pairs, sites, config, progress, call_kwargs))


def _chosen_pairs(concept: Concept, config: BuildConfig) -> tuple[Pair, ...]:
    if config.pairs is not None and config.pairs > len(concept.pairs):
        raise ConceptError(
            f"Expected the concept {concept.name!r} to have the {config.pairs} pairs that `pairs` asks for, but it has "
            f"{len(concept.pairs)}. Lower `pairs`, or add pairs."
        )
    if not (concept.neutral or concept.neutral_images) and METHODS[config.method].needs_neutral:
        kind = "prompts" if any(pair.text_differs for pair in concept.pairs) else "pictures"
        warnings.warn(
            f"The concept {concept.name!r} has no neutral {kind}: the method {config.method!r} protects only what the "
            f"safe sides of its pairs show. Add neutral {kind} to keep more.",
            stacklevel=4,
        )
    return tuple(concept.pairs[: config.pairs or DEFAULT_PAIRS])


def _record(
    pipe: Any,
    concept: Concept,
    pairs: Sequence[Pair],
    sites: Sequence[Site],
    config: BuildConfig,
    progress: bool,
    call_kwargs: Mapping[str, Any] | None,
) -> tuple[Recording, Recording | None, tuple[bool, ...], tuple[str, ...]]:
    """Record both sides of all pairs, unsafe sides first, and the neutral prompts; both sides of a pair share noise.

    Which of the neutral prompts are those of guidance is returned as well, and the prompts.
    """
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
    hidden = {site.name: range(config.steps) for site in sites if site.kind == "hidden"}
    check_reads_base(
        pipe,
        sites,
        {**hidden, **feeds.moving},
        pairs[0].unsafe,
        pairs[0].unsafe_image,
        call_kwargs=settings["call_kwargs"],
    )
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
    steered = _guidance_prompts(pipe, call_kwargs) if concept.neutral else []
    guidance = [prompt for prompt in steered if not _names(concept, prompt)]
    prompts, images = _neutral_inputs(concept, pairs, guidance)
    if not prompts:
        return recorded, None, (), ()
    neutral = record_neutral(
        pipe,
        prompts,
        sites,
        images=images,
        seed=config.seed,
        max_rows=max(1, NEUTRAL_HIDDEN_ROWS // len(prompts)) if hidden else NEUTRAL_TEXT_ROWS,
        leaders=recorded.leaders,
        padded=recorded.padded,
        description="Neutral prompts",
        **settings,
    )
    return recorded, neutral, tuple(prompt in guidance for prompt in prompts), tuple(prompts)


def _guidance_prompts(pipe: Any, call_kwargs: Mapping[str, Any] | None) -> list[str]:
    """Return what guidance steers away from: the empty prompt, and the pipeline's own or the given negative prompt.

    They pass the edited layers at every guided step, and guidance multiplies whatever the edit does to them.
    """
    parameter = inspect.signature(type(pipe).__call__).parameters.get("negative_prompt")
    if parameter is None:
        return []
    negative = (call_kwargs or {}).get("negative_prompt", parameter.default)
    return ["", negative] if isinstance(negative, str) and negative else [""]


def _names(concept: Concept, prompt: str) -> bool:
    """Tell whether a prompt holds a word of the concept: one of its `words`, or one that only unsafe sides hold.

    A negative prompt often does, such as "nudity", and what it names is not to be protected.
    """
    kept = {word for text in (*concept.neutral, *(pair.safe for pair in concept.pairs)) for word in tokens(text)}
    unsafe = {word for pair in concept.pairs for word in tokens(pair.unsafe)}
    return find_word(prompt, concept.words) is not None or not (unsafe - kept).isdisjoint(tokens(prompt))


def _neutral_inputs(concept: Concept, pairs: Sequence[Pair], guidance: Sequence[str]) -> tuple[list[str], list[Any]]:
    """Return each neutral prompt with a picture, and each neutral picture with a prompt.

    Where there are more of the one kind than of the other, the other is repeated; without neutral ones, the safe sides
    of the pairs stand in. The prompts of guidance join the neutral ones.
    """
    neutral = [*concept.neutral, *guidance]
    count = max(len(neutral), len(concept.neutral_images))
    prompts = neutral or [pair.safe for pair in pairs]
    images = concept.neutral_images or [pair.safe_image for pair in pairs]
    return list(islice(cycle(prompts), count)), list(islice(cycle(images), count))
