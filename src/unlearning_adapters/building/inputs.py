"""`BuildInputs`: the pairs, the sites, and what the sites read for pairs and neutral prompts."""

import warnings
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from itertools import cycle, islice
from typing import Any

import torch
from torch import Tensor

from unlearning_adapters.concepts.concept import Concept
from unlearning_adapters.concepts.pair import Pair
from unlearning_adapters.concepts.wording import show
from unlearning_adapters.config import DEFAULT_PAIRS, BuildConfig
from unlearning_adapters.errors import ConceptError, ConfigError
from unlearning_adapters.methods.registry import METHODS
from unlearning_adapters.methods.rows import GroupRows, NeutralRows, Sides
from unlearning_adapters.pipelines.activations import Recording, record
from unlearning_adapters.pipelines.edits import check_no_fused_lora, check_no_unfused_lora
from unlearning_adapters.pipelines.probes import few_steps, find_shared_inputs
from unlearning_adapters.pipelines.reading_base import check_reads_base
from unlearning_adapters.pipelines.running.fitting import Fitting
from unlearning_adapters.pipelines.sites import Site, check_not_empty, denoisers, site_modules

from .gains import check_blocks
from .guidance import guidance_prompts
from .shared_neutral import record_neutral, remembered, shared_rows
from .site_selection import select_sites, without_unread_pictures

NEUTRAL_TEXT_ROWS = 64  # per neutral prompt; more than the words of nearly all prompts
NEUTRAL_HIDDEN_ROWS = 2048  # of all neutral prompts together


@dataclass(frozen=True)
class BuildInputs:
    """The pairs of a build, its sites, and what these read; any number of directions can be made of it.

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
        """Return the neutral prompts, without those of guidance, and what a group of text sites reads for each."""
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
        indices = [index for index in range(count) if differs[index] or not torch.equal(unsafe[index], safe[index])]
        return indices or list(range(count))

    def rows(self, group: int) -> GroupRows:
        """Return what a group reads, without pairs that differ in nothing that sites of its kind read."""
        count = len(self.pairs)
        # Both sides of a pair are compared at one timestep, so that each call counts by itself.
        sides = self.recorded.by_call.get(group) or tuple((rows,) for rows in self.recorded.rows[group])
        calls = range(len(sides[0]))
        both = list(zip(sides[:count], sides[count:], strict=True))
        # Calls in which nothing differs read the negative prompt alone: some pipelines guide in any case.
        differs = [call for call in calls if not all(torch.equal(one[call], other[call]) for one, other in both)]
        pairs = tuple(tuple(Sides(one[call], other[call]) for call in differs or calls) for one, other in both)
        return GroupRows(pairs, self._neutral_rows[group], self.kind_of(group)).only(self.telling(group))

    @cached_property
    def _neutral_rows(self) -> tuple[NeutralRows, ...]:
        """What each group reads for the neutral prompts, one of no rows if there are none, and for guidance."""
        return tuple(shared_rows(group, self._neutral_rows_of(group)) for group in range(self.groups))

    def _neutral_rows_of(self, group: int) -> NeutralRows:
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


def record_inputs(
    pipe: Any,
    concept: Concept,
    config: BuildConfig,
    *,
    progress: bool = True,
    call_kwargs: Mapping[str, Any] | None = None,
) -> BuildInputs:
    """Find the sites of a build and record what they read: its first two steps; arguments as in `build_adapter`."""
    check_arguments(concept, config, call_kwargs)
    pairs = _chosen_pairs(concept, config)
    plain = not any(pair.image_differs for pair in pairs) and any(pair.text_differs for pair in pairs)
    sites = remembered(
        ("sites", id(pipe), config.sites, config.blocks, call_kwargs, plain or pairs),
        lambda: select_sites(pipe, concept, pairs, config, call_kwargs),
    )
    check_blocks(config.block_strengths, sites)
    networks = denoisers(pipe)
    for site in sites:
        check_not_empty(networks[site.component], site.module)
    for name, module in site_modules(pipe, [site.name for site in sites]).items():
        check_no_fused_lora(module, name)
    check_no_unfused_lora(pipe)
    return _record(pipe, concept, pairs, sites, config, progress, call_kwargs)


def check_arguments(concept: object, config: object, call_kwargs: object) -> None:
    """Raise `ConceptError` or `ConfigError` if an argument of a build is of another type."""
    if not isinstance(concept, Concept):
        raise ConceptError(f"Expected a Concept, such as load_concept('shapeworld-red'), but got {show(concept)}.")
    if not isinstance(config, BuildConfig):
        raise ConfigError(f"Expected a BuildConfig, such as BuildConfig(pairs=8), but got {show(config)}.")
    if call_kwargs is not None and not (
        isinstance(call_kwargs, Mapping) and all(isinstance(k, str) for k in call_kwargs)
    ):
        raise ConfigError(f"Expected `call_kwargs` to be a mapping of arguments, but got {show(call_kwargs)}.")


def check_concepts(concepts: object) -> list[Concept]:
    """Return several concepts as a list, or raise `ConceptError` if an entry is not a concept."""
    if not isinstance(concepts, Iterable) or isinstance(concepts, (str, bytes, Mapping)):
        raise ConceptError(f"Expected a list of concepts, but got {show(concepts)}.")
    try:
        every = list(concepts)
    except TypeError as error:  # an array of no dimension
        raise ConceptError(f"Expected a list of concepts, but got {show(concepts)}.") from error
    for index, concept in enumerate(every, start=1):
        if not isinstance(concept, Concept):
            raise ConceptError(f"Expected entry {index} of the concepts to be a Concept, but got {show(concept)}.")
    return every


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
) -> BuildInputs:
    """Record both sides of all pairs, unsafe sides first, and the neutral prompts; both sides of a pair share noise."""
    hidden = {site.name: range(config.steps) for site in sites if site.kind == "hidden"}
    fitting = Fitting(pipe, call_kwargs, any_video=not hidden)
    first = {"prompt": pairs[0].unsafe, "image": pairs[0].unsafe_image}
    shared_inputs, fits = remembered(
        ("shared_inputs", id(pipe), sites, config.seed, call_kwargs, first["image"]),
        lambda: (
            fitting.run(lambda given: find_shared_inputs(pipe, sites, **first, seed=config.seed, call_kwargs=given)),
            fitting.found,
        ),
    )
    fitting.take(fits)
    if config.sites is None and shared_inputs.leaders:
        sites = without_unread_pictures(pipe, concept, pairs, sites, shared_inputs.leaders)
    settings: dict[str, Any] = {"steps": config.steps, "batch_size": config.batch_size, "progress": progress}
    if shared_inputs.moving:
        settings["calls"] = shared_inputs.moving
        fitting.given = few_steps(fitting.arguments)
    remembered(
        ("base", id(pipe), sites, config.steps, call_kwargs, first["image"]),
        lambda: check_reads_base(
            pipe, sites, {**hidden, **shared_inputs.moving}, **first, call_kwargs=fitting.arguments
        ),
    )
    seeds = [config.seed + index for index in range(len(pairs))]
    recording = fitting.run(
        lambda given: record(
            pipe,
            [pair.unsafe for pair in pairs] + [pair.safe for pair in pairs],
            sites,
            images=[pair.unsafe_image for pair in pairs] + [pair.safe_image for pair in pairs],
            seed=seeds + seeds,
            leaders=shared_inputs.leaders,
            description="Pairs",
            call_kwargs=given,
            **settings,
        )
    )
    guidance = guidance_prompts(pipe, concept, call_kwargs) if concept.neutral else []
    prompts, images = _neutral_inputs(concept, pairs, guidance)
    if not prompts:
        return BuildInputs(tuple(pairs), tuple(sites), recording, None)
    neutral = record_neutral(
        pipe,
        prompts,
        sites,
        images=images,
        seed=config.seed,
        max_rows=max(1, NEUTRAL_HIDDEN_ROWS // len(prompts)) if hidden else NEUTRAL_TEXT_ROWS,
        leaders=recording.leaders,
        padded=recording.padded,
        call_kwargs=fitting.arguments,
        description="Neutral prompts",
        **settings,
    )
    guided = tuple(prompt in guidance for prompt in prompts)
    return BuildInputs(tuple(pairs), tuple(sites), recording, neutral, guided, tuple(prompts))


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
