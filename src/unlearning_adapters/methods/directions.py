"""How a direction is found: pure functions from rows of activations to what a site's edit reads and writes.

Rows are float32, shape (rows, features), one row per token as the site receives it. Sums over features x features are
never formed where there are fewer rows than features: they are solved exactly in the span of the rows, in float64.
Symbols, equations and sources: docs/maths.md.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import DEFAULT_EPSILON, MAX_CALIBRATED_STRENGTH
from unlearning_adapters.errors import ConceptError, ConfigError

from .refusal import (
    SAME_ROWS,
    ConceptRows,
    concept_rows,
    distinct_rows,
    exact_rows,
    pooled_refusal_vector,
    refusal_vector,
    ridge_solve,
    token_differences,
)

__all__ = [
    "ConceptRows",
    "calibrate_strength",
    "concept_rows",
    "concept_share",
    "cpca_direction",
    "leace_direction",
    "mean_direction",
    "pca_direction",
    "pooled_refusal_vector",
    "random_direction",
    "refusal_vector",
    "ridge_direction",
    "token_differences",
]

# Eigenvalues below this share of the largest one are rounding of float32 rows, solved in float64.
ZERO_EIGENVALUE = 1e-9
# Rows this small beside others are lost in the rounding of their sum of squares; the squares of yet smaller ones, of a
# contrast near 1e-308, are no numbers at all.
LOST_ROWS = 1e-12
# A concept is erased whole if the strength covers the pairs up to this quantile; the worst pair alone is too noisy.
COVERED_PAIRS = 0.9


def mean_direction(r: Tensor) -> Direction:
    """Return the paper's raw refusal vector as an orthogonal direction, `a = w = r / |r|` (arXiv 2506.07891).

    Args:
        r: Refusal vector, shape (features,).

    Returns:
        Direction of rank 1.
    """
    return _orthogonal(exact_rows(r)[None], r.device)


def pca_direction(difference_rows: Tensor, r: Tensor, components: int = 100, rank: int = 1) -> Direction:
    """Return the refusal vector within the principal components of the differences (the paper's PCA ablation).

    `v = U_k U_k^T r`, `U_k` the k eigenvectors of the uncentred second moment `C_r` of the differences with the
    largest eigenvalues; `a = w = v / |v|`. Further rows are the principal components of what v leaves of the
    differences.

    Args:
        difference_rows: Token differences of the pairs, shape (n, features).
        r: Refusal vector, shape (features,).
        components: Number k of components; all there are if fewer.
        rank: Number of rows wanted; fewer are returned if the differences span fewer.

    Returns:
        Direction with orthonormal rows, the same for reading and writing.

    Raises:
        ConceptError: If nothing of r lies in the components.
    """
    rows, vector = exact_rows(difference_rows), exact_rows(r)
    direction = _within(vector, _leading(rows, components, rows.norm()), "difference")
    rest = rows - (rows @ direction)[:, None] * direction
    return _orthogonal(torch.cat([direction[None], _leading(rest, rank - 1, rows.norm())]), r.device)


def cpca_direction(
    difference_rows: Tensor, neutral_rows: Tensor, r: Tensor, components: int = 100, contrast: float = 1.0
) -> Direction:
    """Return the paper's direction: the refusal vector within the contrastive principal components.

    `v = U_k U_k^T r`, `U_k` the k eigenvectors of `C_r - contrast * C_e` with the largest **signed** eigenvalues,
    `a = w = v / |v|` (arXiv 2506.07891; contrastive PCA: Abid et al. 2018). `C_r` is the uncentred second moment of
    the differences (centring takes r out), `C_e` the covariance of the neutral rows. Both live in the span of the
    rows: with Q an orthonormal basis of it (thin QR) the eigenvectors are Q times those of
    `Q^T (C_r - contrast * C_e) Q`, exactly. Only positive eigenvalues are used, so fewer than k components if fewer
    are positive: those at zero are an arbitrary basis of what no row spans, negative ones are neutral directions.

    Args:
        difference_rows: Token differences of the pairs, shape (n, features).
        neutral_rows: Activations of neutral prompts, shape (m, features), m may be 0.
        r: Refusal vector, shape (features,).
        components: Number k of components.
        contrast: Weight alpha >= 0 of the neutral covariance; 0 is `pca_direction`.

    Returns:
        Direction of rank 1 with `a = w`.

    Raises:
        ConceptError: If no eigenvalue is positive, or nothing of r lies in the components.
    """
    differences, neutral = exact_rows(difference_rows), exact_rows(neutral_rows)
    if len(neutral):
        neutral = neutral - neutral.mean(dim=0)
    # Rows scaled so that their plain products are the two moments.
    differences = differences / max(1, len(differences)) ** 0.5
    neutral = neutral * (contrast / max(1, len(neutral))) ** 0.5
    if neutral.norm() <= LOST_ROWS * differences.norm():
        neutral = neutral[:0]
    # The basis stays in its factors, since only few of its combinations are needed: 1.5 times as fast.
    factors, scales = torch.geqrf(torch.cat([differences, neutral]).T)
    inner = factors.triu()[: len(scales)]
    differences, neutral = inner[:, : len(differences)], inner[:, len(differences) :]
    values, vectors = torch.linalg.eigh(differences @ differences.T - neutral @ neutral.T)
    largest = vectors[:, values > ZERO_EIGENVALUE * values.abs()[[0, -1]].max()][:, -components:]
    if not largest.shape[1]:
        raise ConceptError(
            f"No component of {len(difference_rows)} token differences exceeds the neutral covariance times "
            f"{contrast:g}: lower `contrast`, or give pairs that differ more."
        )
    padded = torch.nn.functional.pad(largest, (0, 0, 0, len(factors) - len(largest)))
    found = torch.ormqr(factors[:, : len(scales)], scales, padded)
    return _orthogonal(_within(exact_rows(r), found.T, "contrastive")[None], r.device)


def ridge_direction(
    r: Tensor,
    rows: Tensor,
    epsilon: float = DEFAULT_EPSILON,
    *,
    rank: int = 1,
    difference_rows: Tensor | None = None,
    weights: Tensor | None = None,
    landing: Tensor | None = None,
    further: Tensor | None = None,
) -> Direction:
    """Return the direction that writes the refusal vector where, and only where, it is read (the default method).

    `w = r`, `a = (S + e I)^-1 r / (r^T (S + e I)^-1 r)`, `S` the uncentred second moment of the neutral and safe rows,
    `e = epsilon * trace(S) / features`: of all reads with `a . r = 1` this one has the smallest `a^T (S + e I) a`, so
    it moves neutral tokens least. With fewer rows than features the Woodbury form on the rows is used,
    `(X^T X + e I)^-1 = (I - X^T (X X^T + e I)^-1 X) / e`. UCE with preserved words (arXiv 2308.14761) is the
    special case of one edited word c and guide g: `W' = W - W (c - g) (M^-1 c)^T`, M its preserve term, in place of S.

    With a rank above 1 the writes are r and the leading right singular vectors of what r leaves of the differences,
    and the reads are solved jointly: `A = (V^T M V)^-1 V^T M`, `M = (S + e I)^-1`, so that `read @ write.T = I`.

    With a `landing` l the first write is l in place of r, and the reads stay those of r but for their scale,
    `A = (R^T M V)^-1 R^T M` with R the writes before: r knows the concept from all pairs, l leads it to one place.

    Args:
        r: Refusal vector, shape (features,).
        rows: Activations of neutral prompts and of the safe sides, shape (n, features).
        epsilon: Regularisation, > 0, as a share of the mean eigenvalue of S.
        rank: Number of rows wanted; fewer are returned if the differences span fewer.
        difference_rows: Token differences of the pairs, shape (k, features); needed if `rank` > 1.
        weights: Weight per row, shape (n,); by default equal rows (padding) count once and all others equally.
        landing: What to write in place of r (`landing_vector`), shape (features,); None takes r.
        further: Further writes, such as the differences of pairs that r does not know, shape (k, features); they come
            last, and are solved jointly with the others.

    Returns:
        Oblique direction with `read @ write.T` the identity; its first row writes `landing`.

    Raises:
        ConceptError: If there is no row, or all are zero.
        ConfigError: If `epsilon` or `rank` is out of range, or `difference_rows` are missing.
    """
    if not epsilon > 0 or rank < 1 or (rank > 1 and difference_rows is None):
        raise ConfigError(
            f"Expected `epsilon` > 0 and `rank` >= 1, with `difference_rows` if `rank` > 1, "
            f"but got epsilon {epsilon!r}, rank {rank!r} and "
            f"{'no difference rows' if difference_rows is None else f'{len(difference_rows)} difference rows'}."
        )
    write = exact_rows(r)[None]
    if difference_rows is not None and rank > 1:
        differences = exact_rows(difference_rows)
        unit = torch.nn.functional.normalize(write, dim=1)
        # As long as r, so that the joint solve is well scaled.
        rest = _leading(differences - (differences @ unit.T) @ unit, rank - 1, differences.norm())
        write = torch.cat([write, rest * write.norm()])
    if further is not None:
        write = torch.cat([write, exact_rows(further).to(write.device)])
    moment = _moment_rows(exact_rows(rows), weights)
    solved = ridge_solve(moment, write, epsilon * float(moment.square().sum()) / moment.shape[1])
    if landing is not None:
        write = torch.cat([exact_rows(landing).to(write.device)[None], write[1:]])
    return _direction(torch.linalg.solve(solved @ write.T, solved), write, r.device)


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
    kept = singular.square() > ZERO_EIGENVALUE * singular[0].square()
    whitened = (basis[kept] @ difference) / singular[kept].square()
    read = whitened @ basis[kept]
    return _direction((read / (read @ difference))[None], difference[None], concept_rows.device)


def random_direction(in_features: int, generator: torch.Generator, like: Direction | None = None) -> Direction:
    """Return the control: an orthogonal direction drawn at random, uniform over the sphere.

    Args:
        in_features: Width of the site's input.
        generator: Source of randomness, on the CPU, so that the same seed gives the same direction everywhere.
        like: Direction whose rank and device are taken; rank 1 on the CPU if None.

    Returns:
        Direction with orthonormal rows, the same for reading and writing.
    """
    rank = 1 if like is None else like.rank
    drawn = torch.randn(in_features, rank, generator=generator, dtype=torch.float64)
    return _orthogonal(torch.linalg.qr(drawn).Q.T, torch.device("cpu") if like is None else like.read.device)


def calibrate_strength(differences: Sequence[Sequence[Tensor]], build: Callable[[tuple[int, ...]], Direction]) -> float:
    """Return the strength that removes the concept whole from a pair that the direction was not made from.

    For each pair i the direction is made from the other pairs. `share_i = max_t(a . (c_it - s_i))`, over the tokens t
    that carry the concept, is the part of the concept that strength 1 removes from pair i, since `a . w = 1`, and
    `1 / share_i` the strength that removes all of it, taken from 1 to 2. The largest and not the mean: tokens beside
    the concept's own, of a contextual encoder, hold some of it and lose as much of it as they hold. The result is the
    0.9 quantile over the pairs.

    Args:
        differences: Of each pair the tokens that carry the concept less what stands in their place, shape
            (tokens, features), at each step at which the pair was recorded; shares are means over the steps.
        build: Makes a direction from the pairs with the given indices; its first row is read, and its first write is
            the concept whole.

    Returns:
        Strength from 1 to 2; 1 if there is only one pair, since nothing can be left out.
    """
    if len(differences) < 2:
        return 1.0
    needed = []
    for left_out, steps in enumerate(differences):
        others = build(tuple(index for index in range(len(differences)) if index != left_out))
        needed.append(1 / min(max(concept_share(others.read[0], steps), 1 / MAX_CALIBRATED_STRENGTH), 1.0))
    return float(torch.tensor(needed, dtype=torch.float64).quantile(COVERED_PAIRS))


def concept_share(read: Tensor, steps: Sequence[Tensor]) -> float:
    """Return the part of a pair's concept that strength 1 removes, `max_t(a . (c_t - s))`, the mean over the steps.

    Args:
        read: What knows the concept, a direction's first row, shape (features,).
        steps: The tokens that carry the concept less what stands in their place, shape (tokens, features), at each
            step at which the pair was recorded.
    """
    read = exact_rows(read)
    largest = [float((exact_rows(rows).to(read.device) @ read).max()) for rows in steps]
    return sum(largest) / len(largest)


def _direction(read: Tensor, write: Tensor, device: torch.device) -> Direction:
    return Direction(read.to(device, torch.float32), write.to(device, torch.float32))


def _orthogonal(rows: Tensor, device: torch.device) -> Direction:
    unit = torch.nn.functional.normalize(rows, dim=1).to(device, torch.float32)
    return Direction(unit, unit)


def _moment_rows(rows: Tensor, weights: Tensor | None) -> Tensor:
    """Return rows X with `X^T X` the uncentred second moment."""
    if weights is None:
        rows = distinct_rows(rows)
        weights = torch.ones(len(rows), dtype=rows.dtype, device=rows.device)
    share = exact_rows(weights).to(rows.device)
    moment = rows * (share / share.sum()).sqrt()[:, None]
    if not len(rows) or not float(moment.square().sum()) > 0:
        raise ConceptError(
            f"Expected neutral or safe activations that are not all zero, but got {len(rows)} distinct rows: "
            "check that the sites read the prompt, and give the concept neutral prompts."
        )
    return moment


def _leading(rows: Tensor, count: int, size: Tensor) -> Tensor:
    """Return at most `count` leading right singular vectors of rows, without those that are rounding against `size`."""
    _, singular, vectors = torch.linalg.svd(rows, full_matrices=False)
    leading: Tensor = vectors[singular > SAME_ROWS * size][:count]
    return leading


def _within(r: Tensor, basis: Tensor, kind: str) -> Tensor:
    """Return the unit vector along `U_k U_k^T r` for a basis with orthonormal rows."""
    projected = (basis @ r) @ basis
    length, whole = float(projected.norm()), float(r.norm())
    if not length > SAME_ROWS * whole:
        raise ConceptError(
            f"Nothing of the refusal vector lies in the {len(basis)} {kind} components (length {length:.2e} of "
            f"{whole:.2e}): use more components or a lower contrast."
        )
    return projected / length
