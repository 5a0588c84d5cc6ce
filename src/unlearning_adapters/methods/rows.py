"""What a group of sites reads for the pairs and the neutral prompts of a concept: the input of every method."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property

import torch
from torch import Tensor

from .refusal import ConceptRows, concept_rows, counted_rows, token_differences
from .shared_moment import SharedMoment


@dataclass(frozen=True, eq=False)
class Sides:
    """What the sites read for both sides of a pair, at one step.

    Args:
        unsafe: Rows of the unsafe side, shape (tokens, features), float32.
        safe: Rows of the safe side, shape (tokens, features).
    """

    unsafe: Tensor
    safe: Tensor

    @cached_property
    def concept(self) -> ConceptRows:
        """The tokens that carry the concept, and what stands in their place.

        Raises:
            ConceptError: If the two sides read alike.
        """
        return concept_rows(self.unsafe, self.safe)


@dataclass(frozen=True, eq=False)
class NeutralRows:
    """What the sites read for prompts that must not change.

    Args:
        prompts: Rows of each neutral prompt, shape (tokens, features) each; one of no rows if there is none.
        guidance: Rows of each prompt that guidance steers away from.
    """

    prompts: tuple[Tensor, ...]
    guidance: tuple[Tensor, ...] = ()

    @property
    def all(self) -> Tensor:
        """Rows of all neutral prompts and those of guidance, shape (rows, features)."""
        return torch.cat([*self.prompts, *self.guidance])

    def same_tensors(self, other: "NeutralRows") -> bool:
        """Whether the rows of another are these very tensors."""
        mine, others = ((rows.prompts, rows.guidance) for rows in (self, other))
        return [list(map(id, part)) for part in mine] == [list(map(id, part)) for part in others]

    @cached_property
    def counted(self) -> tuple[Tensor, Tensor]:
        """The distinct rows of the neutral prompts, and how often each of them is read, shape (rows,)."""
        return counted_rows(torch.cat(self.prompts))

    @cached_property
    def moment(self) -> SharedMoment | None:
        """Second moment of these rows, weighted by how often they are read, for all solves; None without a row."""
        return SharedMoment(*self.counted) if len(self.counted[0]) else None


@dataclass(frozen=True, eq=False)
class GroupRows:
    """What the sites of one group read.

    Args:
        pairs: Of each pair its two sides, at each step at which the pair was recorded apart.
        neutral: What must not change.
        kind: Kind of the sites: "text", "image" or "hidden".
        gram: Sum over the sites of `W^T W`, shape (features, features), for a method with `needs_gram`.
    """

    pairs: tuple[tuple[Sides, ...], ...]
    neutral: NeutralRows
    kind: str = "text"
    gram: Tensor | None = field(default=None, repr=False)

    @classmethod
    def of_sides(
        cls, unsafe: Sequence[Tensor], safe: Sequence[Tensor], neutral: NeutralRows, kind: str = "text"
    ) -> "GroupRows":
        """Make the rows of pairs that were recorded at one step: one tensor per side of a pair."""
        return cls(tuple((Sides(*both),) for both in zip(unsafe, safe, strict=True)), neutral, kind)

    @property
    def sides(self) -> tuple[Sides, ...]:
        """The two sides of all pairs at all steps, in order."""
        return tuple(sides for pair in self.pairs for sides in pair)

    @property
    def unsafe(self) -> tuple[Tensor, ...]:
        """Rows of the unsafe sides."""
        return tuple(sides.unsafe for sides in self.sides)

    @property
    def safe(self) -> tuple[Tensor, ...]:
        """Rows of the safe sides."""
        return tuple(sides.safe for sides in self.sides)

    @property
    def features(self) -> int:
        """Width of the input of the sites."""
        return int(self.pairs[0][0].unsafe.shape[1])

    def only(self, pairs: Sequence[int]) -> "GroupRows":
        """Return the rows of some of the pairs, each with all of its steps."""
        return replace(self, pairs=tuple(self.pairs[pair] for pair in pairs))

    def token_differences(self) -> Tensor:
        """Return the token differences of all pairs, shape (rows, features)."""
        return torch.cat([token_differences(sides.unsafe, sides.safe) for sides in self.sides])
