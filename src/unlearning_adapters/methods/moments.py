"""Directions at video tokens: moments of what a site reads with and without the concept, and one solve.

Nothing but sums over tokens is kept: three matrices of features x features per site, whatever the number of clips,
noise levels and tokens. Symbols, equations and sources: docs/maths.md 7.
"""

from collections.abc import Sequence
from dataclasses import dataclass, field
from statistics import median

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.errors import ConfigError

from .refusal import exact_rows

NOTHING = 1e-12  # part of what a site reads below which a difference is rounding
WEIGHTS = (0.25, 256.0)  # least and largest weight of what must stay
HALVINGS = 7  # of the logarithm of the weight


@dataclass
class Moments:
    """Sums over what one site reads of tokens that show the concept, x, and of their counterfactuals, t.

    `shown = sum x x^T`, `cross = sum (x - t) x^T`, `apart = sum |x - t|^2`, and of what must stay `kept = sum y y^T`.

    Args:
        features: Width of the site's input.
    """

    features: int
    shown: Tensor = field(init=False)
    cross: Tensor = field(init=False)
    kept: Tensor = field(init=False)
    apart: float = 0.0

    def __post_init__(self) -> None:
        self.shown, self.cross, self.kept = (
            torch.zeros(self.features, self.features, dtype=torch.float64, device="cpu") for _ in range(3)
        )

    def add_pair(self, tokens: Tensor, counterfactual: Tensor, weight: float = 1.0) -> None:
        """Add tokens that show the concept, and what should be read in their place, which must stay.

        Args:
            shown: Shape (tokens, features).
            counterfactual: Of the same shape.
            weight: Weight of each token.
        """
        if tokens.shape != counterfactual.shape:
            raise ConfigError(
                f"Expected tokens and counterfactuals of one shape, but got {tuple(tokens.shape)} and "
                f"{tuple(counterfactual.shape)}."
            )
        read, led_to = exact_rows(self._checked(tokens)), exact_rows(counterfactual)
        self.kept += weight * _gram(led_to).cpu()  # the weight on features x features, not on all tokens
        apart = read - led_to
        self.shown += weight * _gram(read).cpu()
        self.cross += weight * (apart.T @ read).cpu()
        self.apart += weight * float(apart.norm()) ** 2

    def add_kept(self, rows: Tensor, weight: float = 1.0) -> None:
        """Add tokens that must stay, shape (tokens, features)."""
        read = exact_rows(self._checked(rows))
        self.kept += weight * _gram(read).cpu()

    def _checked(self, rows: Tensor) -> Tensor:
        if rows.ndim != 2 or rows.shape[1] != self.features:
            raise ConfigError(f"Expected rows of shape (tokens, {self.features}), but got {tuple(rows.shape)}.")
        return rows

    @property
    def differs(self) -> bool:
        """Whether the concept changes what the site reads."""
        return self.apart > NOTHING * float(self.shown.trace())

    def gram(self, weight: float, epsilon: float) -> Tensor:
        """Return `shown + weight kept + e I`, `e = epsilon` times the mean eigenvalue, shape (features, features)."""
        total = self.shown + weight * self.kept
        ridge = epsilon * float(total.trace()) / self.features
        return total + ridge * torch.eye(self.features, dtype=torch.float64, device=total.device)

    def share(self, weight: float, epsilon: float) -> float:
        """Return the part of the difference that the edit takes away at this site, `tr(E cross^T) / apart`."""
        return self.effects(weight, epsilon)[0]

    def effects(self, weight: float, epsilon: float) -> tuple[float, float]:
        """Return the share, and how much the edit moves what must stay, `tr(E kept E^T) / tr(kept)`."""
        edit = torch.linalg.solve(self.gram(weight, epsilon), self.cross.T).T
        taken, moved = float((edit * self.cross).sum()), float(((edit @ self.kept) * edit).sum())
        return taken / self.apart, moved / max(float(self.kept.trace()), NOTHING)


def _gram(rows: Tensor) -> Tensor:
    """Return `rows^T rows`, of which three quarters are computed: the last one is known by symmetry."""
    half = rows.shape[1] // 2
    left, right = rows[:, :half], rows[:, half:]
    across = left.T @ right
    return torch.cat([torch.cat([left.T @ left, across], dim=1), torch.cat([across.T, right.T @ right], dim=1)])


def protective_weight(sites: Sequence[Moments], share: float, moved: float, epsilon: float) -> float:
    """Return the least weight of what must stay at which the edit keeps to two limits, each at the median of the sites.

    What is taken and what is moved fall as the weight rises; the weight is found by halving its logarithm. A concept
    that is read well, such as a colour, is erased beside a large weight, and little else moves. A motion, which differs
    at every frame, moves more, and meets the second limit first.

    Args:
        sites: What some of the sites read.
        share: Largest share of the difference that a site takes away, above 0.
        moved: Largest part of what must stay that it moves, in squares, above 0.
        epsilon: Ridge, as a share of the mean eigenvalue.
    """
    low, high = (torch.tensor(weight, dtype=torch.float32, device="cpu").log2().item() for weight in WEIGHTS)
    for _ in range(HALVINGS):
        middle = (low + high) / 2
        shares, moves = zip(*(each.effects(2**middle, epsilon) for each in sites), strict=True)
        if median(shares) > share or median(moves) > moved:
            low = middle
        else:
            high = middle
    return float(2**low)


def counterfactual_direction(moments: Moments, weight: float, epsilon: float, rank: int) -> Direction | None:
    """Return the edit that maps activations with the concept to their counterfactuals and keeps others: a regression.

    `E = argmin sum |x - E x - t|^2 + weight sum |E y|^2 + e |E|^2 = cross (shown + weight kept + e I)^-1`, and of it
    the best `rank` rows in the metric of what is read (reduced-rank regression, Izenman 1975).

    Args:
        moments: What the site reads.
        weight: Weight of what must stay.
        epsilon: Ridge, as a share of the mean eigenvalue.
        rank: Number of rows at most.

    Returns:
        Additive direction of `rank` rows or fewer; None if the concept does not change what the site reads.
    """
    if not moments.differs:
        return None
    root = torch.linalg.cholesky(moments.gram(weight, epsilon))
    whitened = torch.linalg.solve_triangular(root, moments.cross.T, upper=False).T  # E root
    left, singular, right = torch.linalg.svd(whitened, full_matrices=False)
    rows = min(rank, int((singular > NOTHING * singular[0]).sum()))
    read = torch.linalg.solve_triangular(root.T, right[:rows].T, upper=True).T
    write = (left[:, :rows] * singular[:rows]).T
    balance = (read.norm(dim=1) / write.norm(dim=1)).sqrt()[:, None]
    left_out = float(singular[rows:].norm() / singular.norm())
    return Direction((read / balance).float(), (write * balance).float(), additive=True, left_out=left_out)
