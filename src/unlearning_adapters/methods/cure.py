"""The method "cure": Concept Unlearning via Orthogonal Representation Editing (arXiv 2505.12677)."""

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError

from .factors import additive
from .method import Method
from .refusal import distinct_rows, exact_rows
from .rows import GroupRows

# Below this share of the largest gain a component of CURE is rounding.
ZERO_GAIN = 1e-9


def cure_direction(forget: Tensor, retain: Tensor, *, sharpness: float = 2.0) -> Direction:
    """Return the edit of CURE, "Concept Unlearning via Orthogonal Representation Editing" (arXiv 2505.12677).

    `W' = W (I - P_f + P_f P_r)`, `P = V diag(f) V^T` from the SVD of one mean row per prompt, with
    `f = a s / ((a - 1) s + 1)` of the normalised squared singular values s.

    Args:
        forget: Mean row of each prompt that shows the concept, shape (n, features).
        retain: Mean row of each prompt that must not change, shape (m, features).
        sharpness: a; 2 for objects and styles, 5 for nudity.

    Returns:
        Additive direction of rank at most n, and at most 64.

    Raises:
        ConceptError: If there is no prompt of one kind.
    """
    if not len(forget) or not len(retain):
        raise ConceptError(
            f"CURE needs prompts to forget and prompts to retain, but got {len(forget)} and {len(retain)}: "
            "without the latter it removes what all prompts share."
        )
    basis, gains = _soft_projector(exact_rows(forget), sharpness)
    retain_basis, kept_gains = _soft_projector(exact_rows(retain).to(basis.device), sharpness)
    significant = gains > ZERO_GAIN * gains.max()  # prompts that say the same span fewer directions than there are
    basis, gains = basis[significant], gains[significant]
    read = basis - ((basis @ retain_basis.T) * kept_gains) @ retain_basis
    return additive(read, basis * gains[:, None], forget.device)


def _soft_projector(rows: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    _, singular, basis = torch.linalg.svd(rows, full_matrices=False)
    share = singular.square() / singular.square().sum()
    return basis, sharpness * share / ((sharpness - 1) * share + 1)


def prompt_means(prompts: Sequence[Tensor]) -> Tensor:
    """Return the mean of the distinct rows of each prompt, shape (prompts, features); padding counts once."""
    return torch.stack([distinct_rows(rows.float()).mean(dim=0) for rows in prompts])


def _find(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    retain = [prompt for prompt in (*rows.neutral.prompts, *rows.neutral.guidance, *rows.safe) if len(prompt)]
    return cure_direction(prompt_means(rows.unsafe), prompt_means(retain), sharpness=config.sharpness)


CURE = Method(_find, needs_neutral=True)
