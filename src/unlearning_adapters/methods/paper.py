"""The methods of the paper (arXiv 2506.07891): its refusal vector, and the same within principal components."""

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError

from .factors import leading_rows, orthogonal
from .method import Method, Range
from .refusal import SAME_ROWS, exact_rows, pooled_refusal_vector
from .rows import GroupRows

# Eigenvalues below this share of the largest one are rounding of float32 rows, solved in float64.
ZERO_EIGENVALUE = 1e-9
FEW = 4  # eigenvectors are a few of those of a matrix, if it has this many times as many rows
POWERS = 30
# Rows this small beside others are lost in the rounding of their sum of squares; the squares of yet smaller ones, of a
# contrast near 1e-308, are no numbers at all.
LOST_ROWS = 1e-12


def mean_direction(r: Tensor) -> Direction:
    """Return the paper's raw refusal vector as an orthogonal direction, `a = w = r / |r|` (arXiv 2506.07891).

    Args:
        r: Refusal vector, shape (features,).

    Returns:
        Direction of rank 1.
    """
    return orthogonal(exact_rows(r)[None], r.device)


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
    direction = _within(vector, leading_rows(rows, components, rows.norm()), "difference")
    rest = rows - (rows @ direction)[:, None] * direction
    return orthogonal(torch.cat([direction[None], leading_rows(rest, rank - 1, rows.norm())]), r.device)


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
    largest = _leading(differences @ differences.T - neutral @ neutral.T, max(1, min(components, differences.shape[1])))
    if not largest.shape[1]:
        raise ConceptError(
            f"No component of {len(difference_rows)} token differences exceeds the neutral covariance times "
            f"{contrast:g}: lower `contrast`, or give pairs that differ more."
        )
    padded = torch.nn.functional.pad(largest, (0, 0, 0, len(factors) - len(largest)))
    basis = torch.ormqr(factors[:, : len(scales)], scales, padded)
    return orthogonal(_within(exact_rows(r), basis.T, "contrastive")[None], r.device)


def _leading(moment: Tensor, count: int) -> Tensor:
    """Return the eigenvectors of a symmetric matrix with the largest positive eigenvalues, at most `count` columns."""
    if moment.device.type != "cpu" or len(moment) < FEW * count:
        values, vectors = torch.linalg.eigh(moment)
        size = float(values.abs()[[0, -1]].max())
    else:  # LAPACK finds a few of many in a third of the time
        from scipy.linalg import eigh

        last = len(moment) - 1
        found = eigh(moment.numpy(), subset_by_index=(last + 1 - count, last), driver="evr", check_finite=False)
        values, vectors = (torch.from_numpy(part) for part in found)
        size = _norm(moment)
    leading: Tensor = vectors[:, values > ZERO_EIGENVALUE * size][:, -count:]
    return leading


def _norm(moment: Tensor) -> float:
    """Return about the largest size of an eigenvalue of a symmetric matrix, by power iteration."""
    vector = moment[:, int(moment.diagonal().abs().argmax())]
    for _ in range(POWERS):
        vector = moment @ (vector / vector.norm())
    return float(vector.norm())


def _within(r: Tensor, basis: Tensor, kind: str) -> Tensor:
    """Return the unit vector along `U_k U_k^T r` for a basis with orthonormal rows."""
    projection = (basis @ r) @ basis
    length, whole = float(projection.norm()), float(r.norm())
    if not length > SAME_ROWS * whole:
        raise ConceptError(
            f"Nothing of the refusal vector lies in the {len(basis)} {kind} components (length {length:.2e} of "
            f"{whole:.2e}): use more components or a lower contrast."
        )
    return projection / length


def _mean(rows: GroupRows, _config: BuildConfig, _generator: torch.Generator) -> Direction:
    return mean_direction(pooled_refusal_vector(rows.unsafe, rows.safe))


def _pca(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    r = pooled_refusal_vector(rows.unsafe, rows.safe)
    return pca_direction(rows.token_differences(), r, config.components, config.rank)


def _cpca(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    r = pooled_refusal_vector(rows.unsafe, rows.safe)
    neutral = rows.neutral.all if len(rows.neutral.all) else torch.cat(rows.safe)
    return cpca_direction(rows.token_differences(), neutral, r, config.components, config.contrast)


MEAN = Method(_mean, searched={})
PCA = Method(_pca, searched={"rank": Range(1, 4)})
CPCA = Method(_cpca, needs_neutral=True, searched={"contrast": Range(0.1, 10.0, log=True)})
