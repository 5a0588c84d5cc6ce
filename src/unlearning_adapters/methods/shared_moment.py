"""`SharedMoment`: the second moment of rows, decomposed once, for many ridge solves that each add rows of their own."""

from functools import cached_property

import torch
from torch import Tensor

from .refusal import exact_rows, scaled_rows


class SharedMoment:
    """The second moment of weighted rows, which many ridge solves have in common.

    A build solves a dozen times beside the same neutral rows, each time with other rows of pairs and another ridge.
    The eigenvalues of the neutral rows serve any ridge, and the few rows of a solve are added by Woodbury
    (docs/maths.md 3). For 2,000 tokens of 4,096 features the decomposition takes as long as some fifteen solves from
    the beginning, and each solve then a tenth of one. It is made when it is first needed.

    Args:
        rows: Rows N, shape (n, features), any floating dtype.
        weights: Weight of each, shape (n,), above 0: `N^T diag(weights) N` is the moment.
    """

    def __init__(self, rows: Tensor, weights: Tensor) -> None:
        self._rows, self._weights = rows, weights

    @property
    def count(self) -> int:
        """Number of rows."""
        return len(self._rows)

    @cached_property
    def weight(self) -> float:
        """Sum of the weights."""
        return float(self._weights.sum())

    @cached_property
    def trace(self) -> float:
        """Trace of the moment: the weighted sum of the squares of all numbers."""
        return float(self._spectrum[0].sum())

    @cached_property
    def _spectrum(self) -> tuple[Tensor, Tensor]:
        """Eigenvalues v, and rows Z: the eigenvectors, times the root of v where there are fewer rows than features.

        Then `N N^T = Q diag(v) Q^T` is the smaller matrix, and `Z = Q^T N`: nothing is divided by an eigenvalue that
        may be zero.
        """
        rows = scaled_rows(self._rows, exact_rows(self._weights).sqrt())
        values, vectors = torch.linalg.eigh(rows @ rows.T if self._thin else rows.T @ rows)
        return values.clamp_min(0), vectors.T @ rows if self._thin else vectors.T.contiguous()

    @property
    def _thin(self) -> bool:
        return self._rows.shape[0] < self._rows.shape[1]

    def solve(self, targets: Tensor, rows: Tensor, ridge: float) -> Tensor:
        """Return `targets (moment + rows^T rows + ridge I)^-1`.

        With `P = (moment + ridge I)^-1`, which is `Z^T diag(1 / (v + ridge)) Z`, or with fewer rows than features
        `(I - Z^T diag(1 / (v + ridge)) Z) / ridge`, it is `(targets - T U) P`, U the rows and
        `T = targets P U^T (I + U P U^T)^-1` (Woodbury).

        Args:
            targets: Shape (k, features), float64.
            rows: Rows of this solve, shape (m, features), float64.
            ridge: Above 0.

        Returns:
            Solved targets, shape (k, features).
        """
        values, basis = self._spectrum
        count, given = len(targets), torch.cat([targets, rows])
        inside = given @ basis.T
        products = (inside / (values + ridge)) @ inside[count:].T
        if self._thin:
            products = (given @ rows.T - products) / ridge
        taken = _solved(products[count:], products[:count])
        left = (inside[:count] - taken @ inside[count:]) / (values + ridge) @ basis
        return (targets - taken @ rows - left) / ridge if self._thin else left


def _solved(products: Tensor, targets: Tensor) -> Tensor:
    """Return `targets (I + products)^-1`, by Cholesky unless rounding makes it fail."""
    products.diagonal().add_(1)
    root, failure = torch.linalg.cholesky_ex(products)
    if not int(failure):
        return torch.cholesky_solve(targets.T, root).T
    solution: Tensor = torch.linalg.solve(products, targets, left=False)
    return solution
