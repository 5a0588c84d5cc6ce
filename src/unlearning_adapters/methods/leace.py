"""The method "leace": the linear part of the eraser of Belrose et al. 2023 (arXiv 2306.03819)."""

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import BuildConfig

from .factors import oblique
from .method import Method
from .refusal import distinct_rows, exact_rows, refusal_vector
from .rows import GroupRows

# Eigenvalues below this share of the largest one are rounding of float32 rows, solved in float64.
ZERO_EIGENVALUE = 1e-9


def leace_direction(concept_rows: Tensor, safe_rows: Tensor) -> Direction:
    """Return the linear part of the LEACE eraser of the label "shows the concept", an oblique direction of rank 1.

    `W^+ P W` with `W = S^(-1/2)`, S the covariance of all rows and P the projection on `W d`, `d` the difference of
    the class means (Belrose et al. 2023, arXiv 2306.03819, theorem 4.3), is `d a^T` with `a = S^+ d / (d^T S^+ d)`:
    write d, read a. The eraser's constant term needs a bias at the site and is dropped, so `x` is not re-centred.
    Unlike `ridge_direction` S is centred, has the concept's own rows in it, and is not regularised.

    Args:
        concept_rows: Rows that show the concept, shape (n, features).
        safe_rows: Rows that do not, shape (m, features).

    Returns:
        Direction of rank 1 with `a . w = 1`.

    Raises:
        ConceptError: If the means of both sides are the same.
    """
    sides = [distinct_rows(exact_rows(concept_rows)), distinct_rows(exact_rows(safe_rows))]
    difference = refusal_vector([(sides[0], sides[1])])
    rows = torch.cat(sides)
    _, singular, basis = torch.linalg.svd(rows - rows.mean(dim=0), full_matrices=False)
    nonzero = singular.square() > ZERO_EIGENVALUE * singular[0].square()
    whitened = (basis[nonzero] @ difference) / singular[nonzero].square()
    read = whitened @ basis[nonzero]
    return oblique((read / (read @ difference))[None], difference[None], concept_rows.device)


def _find(rows: GroupRows, _config: BuildConfig, _generator: torch.Generator) -> Direction:
    return leace_direction(torch.cat(rows.unsafe), torch.cat(rows.safe))


LEACE = Method(_find, searched={})
