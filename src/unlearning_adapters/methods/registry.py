"""The methods: from the rows that a group of sites read to a direction and a strength."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError

from .directions import (
    ConceptRows,
    calibrate_strength,
    concept_rows,
    concept_share,
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
from .refusal import counted_rows, distinct_rows, landing_vector
from .rivals import cure_direction, prompt_means, rece_direction, uce_direction

NEEDS_NEUTRAL = ("ridge", "cpca", "uce", "rece", "cure")
NEEDS_GRAM = ("rece",)
# A neutral prompt that shows the concept in other words makes a read know it by what stands in its place, the other way
# round, and an edit would turn that into the concept. Part of the concept that may be read there, at strength 1, and
# the shares of all weight that it gets, one after the other, where more is.
TURNED = 0.15
HELD = (0.03, 0.3)


@dataclass(frozen=True)
class GroupRows:
    """What the sites of one group read.

    Args:
        unsafe: Rows of the unsafe side of each pair, shape (tokens, features) each; of each step in turn for several.
        safe: Rows of the safe side of each pair, in the same order.
        neutral: Rows of each neutral prompt; one of no rows if there is none.
        guidance: Rows of each prompt that guidance steers away from.
        gram: Sum over the sites of `W^T W`, shape (features, features), for the methods of `NEEDS_GRAM`.
        steps: Number of steps at which each pair was recorded apart.
        kind: Kind of the sites: "text", "image" or "hidden".
        concepts: What carries the concept in each pair and step, if it is known already.
        counts: Number of neutral prompts that each neutral row stands for, if these were pooled.
        own: Pairs that say the concept in another way than the others, and get a row of their own ("ridge").
    """

    unsafe: tuple[Tensor, ...]
    safe: tuple[Tensor, ...]
    neutral: tuple[Tensor, ...]
    guidance: tuple[Tensor, ...] = ()
    gram: Tensor | None = None
    steps: int = 1
    kind: str = "text"
    concepts: tuple[ConceptRows, ...] | None = None
    counts: Tensor | None = None
    own: tuple[int, ...] = ()

    @property
    def neutral_rows(self) -> Tensor:
        """Rows of all neutral prompts and those of guidance, shape (rows, features)."""
        return torch.cat([*self.neutral, *self.guidance])

    @property
    def found(self) -> tuple[ConceptRows, ...]:
        """What carries the concept in each pair and step."""
        if self.concepts is not None:
            return self.concepts
        return tuple(concept_rows(unsafe, safe) for unsafe, safe in zip(self.unsafe, self.safe, strict=True))

    def condensed(self) -> "GroupRows":
        """Return the same prepared for a method that solves many times: neutral rows pooled once, concepts found once.

        Raises:
            ConceptError: If the two sides of a pair read alike.
        """
        rows, counts = counted_rows(torch.cat(self.neutral))
        return replace(self, neutral=(rows,), counts=counts, concepts=self.found)

    def kept(self) -> tuple[Tensor, Tensor]:
        """Return the rows that must not change, shape (rows, features), and the weight of each, shape (rows,).

        A row that several prompts read weighs as many, and the rows of guidance together as much as all others, since
        a guided model reads them at every step. What is not text is no part of that: there equal rows count once.
        """
        neutral, safe = torch.cat(self.neutral), torch.cat(self.safe)
        if self.kind != "text":
            rows = distinct_rows(torch.cat([neutral, *self.guidance, safe]))
            return rows, torch.ones(len(rows), dtype=torch.float64)
        counts = torch.ones(len(neutral), dtype=torch.float64) if self.counts is None else self.counts
        prompts = torch.cat([counts, torch.ones(len(safe), dtype=torch.float64)])
        guidance = torch.cat([neutral[:0], *self.guidance])
        share = prompts.sum() / max(1, len(guidance))
        return torch.cat([neutral, safe, guidance]), torch.cat([prompts, share.expand(len(guidance))])

    @property
    def by_pair(self) -> list[slice]:
        """Where the steps of each pair are among `unsafe`, `safe` and `found`."""
        return [slice(first, first + self.steps) for first in range(0, len(self.unsafe), self.steps)]

    def pairs(self, indices: Sequence[int]) -> "GroupRows":
        """Return the same with some of the pairs only, each with all of its steps, and without rows of their own."""
        places = [index * self.steps + step for index in indices for step in range(self.steps)]
        unsafe, safe = (tuple(side[place] for place in places) for side in (self.unsafe, self.safe))
        concepts = None if self.concepts is None else tuple(self.concepts[place] for place in places)
        return replace(self, unsafe=unsafe, safe=safe, concepts=concepts, own=())


def find_direction(rows: GroupRows, config: BuildConfig, generator: torch.Generator) -> Direction:
    """Return the direction of a concept in the input space of a group of sites, by the method of `config`.

    Args:
        rows: What the sites read.
        config: Method and its settings.
        generator: Source of randomness of the method "random".

    Raises:
        ConceptError: If the two sides of the pairs read alike.
    """
    return _FINDERS[config.method](rows, config, generator)


def find_strength(rows: GroupRows, config: BuildConfig, generator: torch.Generator) -> float:
    """Return the strength of `config`; for "ridge" without one, that which removes the concept from left-out pairs."""
    if config.strength is not None:
        return config.strength
    if config.method != "ridge":
        return 1.0
    return calibrate_strength(
        _differences_by_pair(rows), lambda others: find_direction(rows.pairs(others), config, generator)
    )


def shares(rows: GroupRows, direction: Direction) -> list[float]:
    """Return the part of each pair's concept that strength 1 removes from it (`concept_share`).

    Args:
        rows: What a group reads.
        direction: Its rows know the concept, each as some of the pairs say it: what they read adds up.
    """
    return [concept_share(direction.read.sum(0), steps) for steps in _differences_by_pair(rows)]


def _differences_by_pair(rows: GroupRows) -> list[list[Tensor]]:
    found = [_carried(unsafe, item, rows.kind) for unsafe, item in zip(rows.unsafe, rows.found, strict=True)]
    return [found[steps] for steps in rows.by_pair]


def _carried(unsafe: Tensor, found: ConceptRows, kind: str) -> Tensor:
    """Return the tokens that carry the concept less what stands in their place; their mean where it is not text.

    A picture has hundreds of tokens, of which the largest is noise.
    """
    if kind != "text":
        return (found.concept - found.counterpart)[None]
    return unsafe[found.unsafe_index] - found.counterpart


def _mean_row(rows: Iterable[Tensor]) -> Tensor:
    return torch.stack(list(rows)).mean(dim=0)


def _mean(rows: GroupRows, _config: BuildConfig, _generator: torch.Generator) -> Direction:
    return mean_direction(pooled_refusal_vector(rows.unsafe, rows.safe))


def _pca(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    r = pooled_refusal_vector(rows.unsafe, rows.safe)
    return pca_direction(_differences(rows), r, config.components, config.rank)


def _cpca(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    r = pooled_refusal_vector(rows.unsafe, rows.safe)
    neutral = rows.neutral_rows if len(rows.neutral_rows) else torch.cat(rows.safe)
    return cpca_direction(_differences(rows), neutral, r, config.components, config.contrast)


def _ridge(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    found = rows.found
    r = refusal_vector([(item.concept, item.counterpart) for item in found])
    by_pair = [_mean_row(item.concept - item.counterpart for item in found[steps]) for steps in rows.by_pair]
    landing = None
    # What hidden sites read is the content of a whole scene, which only the mean over all pairs is free of.
    if config.landing == "majority" and rows.kind == "text":
        landing = landing_vector(by_pair)
    differences = _differences(rows) if config.rank > 1 else None
    counterparts = torch.stack([item.counterpart for item in found])
    kept = rows.kept()
    for share in (0.0, *HELD):
        protected, weights = _with_share(*kept, counterparts, share)
        direction = ridge_direction(
            r,
            protected,
            config.epsilon,
            rank=config.rank,
            difference_rows=differences,
            weights=weights,
            landing=landing,
            further=torch.stack([by_pair[pair] for pair in rows.own]) if rows.own else None,
        )
        # Further rows of a direction share the counterparts among them.
        if rows.kind != "text" or config.rank > 1:
            break
        if float((counterparts @ direction.read[0].to(counterparts)).abs().max()) <= TURNED:
            break
    return direction


def _with_share(rows: Tensor, weights: Tensor, more: Tensor, share: float) -> tuple[Tensor, Tensor]:
    """Return rows and weights with further rows that together have a share of all weight."""
    if not share:
        return rows, weights
    each = weights.sum() * share / (1 - share) / len(more)
    return torch.cat([rows, more]), torch.cat([weights, each.expand(len(more))])


def _leace(rows: GroupRows, _config: BuildConfig, _generator: torch.Generator) -> Direction:
    return leace_direction(torch.cat(rows.unsafe), torch.cat(rows.safe))


def _random(rows: GroupRows, _config: BuildConfig, generator: torch.Generator) -> Direction:
    return random_direction(rows.neutral[0].shape[1], generator)


def _uce(rows: GroupRows, _config: BuildConfig, _generator: torch.Generator) -> Direction:
    return uce_direction(*_tokens(rows))


def _rece(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    if rows.gram is None:
        raise ConceptError("The method 'rece' needs `gram`, the sum over the sites of W^T W, but got none.")
    return rece_direction(*_tokens(rows), rows.gram, rounds=config.rounds)


def _cure(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    retain = [prompt for prompt in (*rows.neutral, *rows.guidance, *rows.safe) if len(prompt)]
    return cure_direction(prompt_means(rows.unsafe), prompt_means(retain), sharpness=config.sharpness)


_FINDERS: dict[str, Callable[[GroupRows, BuildConfig, torch.Generator], Direction]] = {
    "mean": _mean,
    "pca": _pca,
    "cpca": _cpca,
    "ridge": _ridge,
    "leace": _leace,
    "uce": _uce,
    "rece": _rece,
    "cure": _cure,
    "random": _random,
}


def _differences(rows: GroupRows) -> Tensor:
    return torch.cat([token_differences(unsafe, safe) for unsafe, safe in zip(rows.unsafe, rows.safe, strict=True)])


def _tokens(rows: GroupRows) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens that carry the concept, the counterpart of each, and the rows that must not change."""
    concepts, guides = [], []
    for unsafe, found in zip(rows.unsafe, rows.found, strict=True):
        concepts.append(distinct_rows(unsafe[found.unsafe_index]))
        guides.append(found.counterpart.expand_as(concepts[-1]))
    return torch.cat(concepts), torch.cat(guides), distinct_rows(torch.cat([rows.neutral_rows, *rows.safe]))
