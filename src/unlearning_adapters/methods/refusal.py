"""From rows of activations to the refusal vector: which tokens carry the concept, how they differ, and the ridge solve.

Rows are float32, shape (rows, features), one row per token as the site receives it. Everything is computed in float64.
Symbols, equations and sources: docs/maths.md 2 and 3.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearning_adapters.errors import ConceptError

# A token carries the concept if it is at least this share of the largest distance away from the other side.
STANDS_OUT = 0.5
AGREED_SHARE = 0.85  # of the weight of what is written, on the pairs that agree
# Below this share of the rows' own size two rows are the same up to the rounding of a float32 forward pass.
SAME_ROWS = 1e-5
AT_ONCE = 2**24  # numbers of rows that are put on the grid together, so that no copy of all of them is made


@dataclass(frozen=True)
class ConceptRows:
    """The tokens of a pair that carry the concept, and what stands in their place on the safe side.

    Args:
        concept: Mean of the unsafe rows that carry the concept, shape (features,), float32.
        counterpart: Mean of the safe rows in their place, shape (features,), float32.
        unsafe_index: Which unsafe rows these are, shape (k,).
        safe_index: Which safe rows these are, shape (l,).
    """

    concept: Tensor
    counterpart: Tensor
    unsafe_index: Tensor
    safe_index: Tensor


def concept_rows(unsafe_rows: Tensor, safe_rows: Tensor) -> ConceptRows:
    """Find the tokens of a pair that carry the concept, by content and not by position, without a tokenizer.

    Let d_i be the distance of unsafe row i to the nearest safe row. Rows with `d_i >= max(d) / 2` carry the concept;
    tokens that only moved, padding, and tokens that a contextual encoder changed a little stay below. The safe rows
    that stand out of the unsafe side as much are the counterpart (a word was replaced); if none does (a word was
    deleted) it is the safe rows that match the unsafe tokens just before and after (docs/maths.md 2).

    Args:
        unsafe_rows: Activations of the unsafe side, shape (n, features).
        safe_rows: Activations of the safe side, shape (m, features); m may differ from n.

    Returns:
        The mean concept row, the mean counterpart row, and which rows they are. Equal rows count once in a mean.

    Raises:
        ConceptError: If both sides are the same, or the unsafe side has nothing that the safe side lacks.
    """
    unsafe, safe = exact_rows(unsafe_rows), exact_rows(safe_rows)
    distances = _distances(unsafe, safe)
    from_safe, from_unsafe = distances.amin(dim=1), distances.amin(dim=0)
    _check_contrast(from_safe, from_unsafe, SAME_ROWS * torch.cat([unsafe, safe]).norm(dim=1).max())
    unsafe_stands = from_safe >= STANDS_OUT * from_safe.max()
    safe_stands = from_unsafe >= STANDS_OUT * torch.maximum(from_unsafe.max(), from_safe.max())
    if not safe_stands.any():
        safe_stands = _matches_around(unsafe_stands, distances.argmin(dim=1), len(safe))
    return ConceptRows(
        concept=distinct_rows(unsafe[unsafe_stands]).mean(dim=0).to(unsafe_rows.device, torch.float32),
        counterpart=distinct_rows(safe[safe_stands]).mean(dim=0).to(safe_rows.device, torch.float32),
        unsafe_index=unsafe_stands.nonzero().flatten().to(unsafe_rows.device),
        safe_index=safe_stands.nonzero().flatten().to(safe_rows.device),
    )


def token_differences(unsafe_rows: Tensor, safe_rows: Tensor) -> Tensor:
    """Return every unsafe token less its counterpart: token-level rows for the second moment of the differences.

    Concept tokens are taken less the mean counterpart of `concept_rows`, all others less the nearest safe row.

    Args:
        unsafe_rows: Activations of the unsafe side of a pair, shape (n, features).
        safe_rows: Activations of the safe side, shape (m, features).

    Returns:
        Differences of shape (k, features), k <= n, float32: equal rows count once, and tokens that are the same on
        both sides are left out.

    Raises:
        ConceptError: As `concept_rows`.
    """
    concept = concept_rows(unsafe_rows, safe_rows)
    unsafe, safe = exact_rows(unsafe_rows), exact_rows(safe_rows)
    counterpart = safe[_distances(unsafe, safe).argmin(dim=1)]
    counterpart[concept.unsafe_index.to(safe.device)] = exact_rows(concept.counterpart)
    differences = distinct_rows(unsafe - counterpart)
    return differences[differences.any(dim=1)].to(unsafe_rows.device, torch.float32)


def refusal_vector(pairs: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
    """Return the refusal vector, the mean difference of the pairs.

    `r = mean_i(mean(unsafe_i) - mean(safe_i))`, arXiv 2506.07891. Given the two rows that `concept_rows` finds for each
    pair, r is taken at the tokens that carry the concept; given all rows of each side it is the paper's pooled r.

    Args:
        pairs: Per pair what stands for its unsafe and its safe side, each of shape (features,) or (rows, features).

    Returns:
        Vector of shape (features,), float32 (float64 for rows of float64); adding it moves an activation towards the
        concept.

    Raises:
        ConceptError: If there is no pair, or the pairs do not differ on average.
    """
    if not pairs:
        raise ConceptError("Expected at least one pair to take a refusal vector from, but got none.")
    means = [[exact_rows(side).reshape(-1, side.shape[-1]).mean(dim=0) for side in pair] for pair in pairs]
    r = torch.stack([unsafe - safe for unsafe, safe in means]).mean(dim=0)
    size = float(torch.stack([mean for pair in means for mean in pair]).norm(dim=1).max())
    length = float(r.norm())
    if not length > SAME_ROWS * size:
        raise ConceptError(
            f"The activations of both sides are the same on average (difference {length:.2e}, size {size:.2e}): "
            "check that the pairs differ in the concept and that the sites read the prompt."
        )
    like = pairs[0][0]
    return r.to(like.device, torch.promote_types(like.dtype, torch.float32))


def agreeing_pairs(differences: Sequence[Tensor]) -> tuple[int, ...]:
    """Return which pairs agree on how the concept differs from what stands in its place.

    A mean of differences to things that are unlike each other, such as several colours, leads to none of them, and a
    model shows something in between. Two differences agree if their distance is at most half of the largest one. The
    pair with which most others agree is returned with those others; of several such pairs, the one with the smallest
    mean distance to all (docs/maths.md 2).

    Args:
        differences: Concept less counterpart of each pair, shape (features,).

    Returns:
        Indices of pairs, in order; all of them where the differences are the same.
    """
    rows = torch.stack([exact_rows(row) for row in differences])
    distances = _distances(rows, rows)
    if not distances.max() > SAME_ROWS * rows.norm(dim=1).max():
        return tuple(range(len(rows)))
    near = distances <= STANDS_OUT * distances.max()
    counts = near.sum(dim=1).tolist()
    order = sorted(range(len(rows)), key=lambda row: (-counts[row], float(distances[row].mean())))
    return tuple(near[order[0]].nonzero().flatten().tolist())


def landing_vector(differences: Sequence[Tensor]) -> Tensor:
    """Return the mean difference of the pairs, with 85 % of the weight on those that agree.

    Not all of it: two concepts that land on each other, such as two colours, could then not be stacked, since what
    takes the one away is what brings the other (docs/maths.md 5). If more than 85 % of the pairs agree, or
    all of them, it is the plain mean.

    Args:
        differences: Concept less counterpart of each pair, shape (features,).

    Returns:
        Vector of shape (features,), float32.
    """
    rows = torch.stack([exact_rows(row) for row in differences])
    agree = torch.zeros(len(rows), dtype=torch.bool, device="cpu")
    agree[list(agreeing_pairs(differences))] = True
    share = max(AGREED_SHARE, float(agree.double().mean()))
    weights = torch.where(agree, share / agree.sum(), (1 - share) / (~agree).sum().clamp_min(1))
    landing: Tensor = weights.to(rows) @ rows
    return landing.to(differences[0].device, torch.float32)


def pooled_refusal_vector(unsafe: Sequence[Tensor], safe: Sequence[Tensor]) -> Tensor:
    """Return the paper's refusal vector, pooled over all tokens: `r = mean_i(mean(unsafe_i) - mean(safe_i))`.

    Source: arXiv 2506.07891. Pooled, r also holds what the rest of a prompt does (docs/maths.md 2).

    Args:
        unsafe: Rows of the unsafe side of each pair, shape (n_i, features) each.
        safe: Rows of the safe side of each pair, shape (m_i, features) each.

    Returns:
        Vector of shape (features,), float32.

    Raises:
        ConceptError: As `refusal_vector`.
    """
    return refusal_vector(list(zip(unsafe, safe, strict=True)))


def distinct_rows(rows: Tensor) -> Tensor:
    """Return the rows without repetitions, so that padding, of which a prompt may have hundreds, counts once.

    Args:
        rows: Rows of shape (n, features).

    Returns:
        The first of each set of equal rows, in order, shape (k, features); rows that differ by the rounding of a
        float32 forward pass alone are equal.
    """
    return counted_rows(rows)[0]


def counted_rows(rows: Tensor) -> tuple[Tensor, Tensor]:
    """Return the rows without repetitions, as `distinct_rows`, and how often each of them came, shape (k,), float64."""
    if len(rows) < 2 or not (sizes := rows.norm(dim=1)).any():
        return rows[:1], torch.tensor([len(rows)] if len(rows) else [], dtype=torch.float64, device="cpu")
    # A cell of the grid must be wider than rounding by about the number of features, or one feature in thousands
    # crosses a border and splits equal rows; different tokens are still hundreds of cells apart.
    step = 100 * SAME_ROWS * sizes[sizes > 0].median()
    first: dict[bytes, int] = {}
    counts: Counter[int] = Counter()
    start = 0
    for part in rows.split(max(1, AT_ONCE // max(1, rows.shape[1]))):
        # Cells stay floating, as an integer would overflow where a row is 2^31 steps long; + 0 turns -0 into 0.
        for index, cells in enumerate((part / step).round_().add_(0.0).cpu().numpy(), start):
            counts[first.setdefault(cells.tobytes(), index)] += 1
        start += len(part)
    return rows[list(first.values())], torch.tensor(list(counts.values()), dtype=torch.float64, device="cpu")


def exact_rows(rows: Tensor) -> Tensor:
    """Return rows in float64, on the CPU where the device has no float64.

    Args:
        rows: Rows or a vector, any shape and floating dtype.

    Returns:
        The same numbers, float64, without a gradient.
    """
    rows = rows.detach()
    return (rows.cpu() if rows.device.type == "mps" else rows).double()


def scaled_rows(rows: Tensor, factors: Tensor) -> Tensor:
    """Return rows times a factor each, in float64 as `exact_rows`; it takes no more memory than the result.

    Args:
        rows: Shape (n, features), any floating dtype; they are not changed.
        factors: Shape (n,).
    """
    exact = exact_rows(rows)
    exact = exact.clone() if exact.data_ptr() == rows.data_ptr() else exact
    return exact.mul_(factors.to(exact)[:, None])


def ridge_solve(rows: Tensor, targets: Tensor, ridge: float) -> Tensor:
    """Return `targets (X^T X + ridge I)^-1`, in the span of the rows X where they are fewer than features.

    Then `(X^T X + e I)^-1 = (I - X^T (X X^T + e I)^-1 X) / e` (Woodbury; docs/maths.md 3), and no features x features
    matrix is formed.

    Args:
        rows: X, shape (n, features), float64.
        targets: Rows of the same width, shape (k, features).
        ridge: Above 0.

    Returns:
        Solved targets of shape (k, features).
    """
    count, features = rows.shape
    if count >= features:
        return _solve(rows.T @ rows, ridge, targets.T).T
    inside = _solve(rows @ rows.T, ridge, rows @ targets.T)
    return (targets - inside.T @ rows) / ridge


def _solve(products: Tensor, ridge: float, targets: Tensor) -> Tensor:
    """Return `(products + ridge I)^-1 targets`; products is overwritten."""
    products.diagonal().add_(ridge)
    solution: Tensor = torch.linalg.solve(products, targets)
    return solution


def _distances(unsafe: Tensor, safe: Tensor) -> Tensor:
    # Float64 keeps this one matrix product exact enough; in float32 equal rows come out 1e-3 of their size apart.
    squares = unsafe.square().sum(dim=1)[:, None] + safe.square().sum(dim=1) - 2 * unsafe @ safe.T
    return squares.clamp_min(0).sqrt()


def _check_contrast(from_safe: Tensor, from_unsafe: Tensor, same: Tensor) -> None:
    if from_safe.max() > same:
        return
    numbers = f"largest distance {float(from_safe.max()):.2e}, rows are the same up to {float(same):.2e}"
    if from_unsafe.max() > same:
        raise ConceptError(
            f"The unsafe side of a pair has no token that the safe side lacks ({numbers}): "
            "name the concept on the unsafe side."
        )
    raise ConceptError(
        f"The activations of both sides of a pair are the same ({numbers}): check that the pairs differ in the concept "
        "and that the sites read the prompt."
    )


def _matches_around(stands: Tensor, nearest: Tensor, safe_count: int) -> Tensor:
    """Return which safe rows match the unsafe rows just before and after those that stand out; all if none do."""
    others = (~stands).nonzero().flatten()
    matches = torch.zeros(safe_count, dtype=torch.bool, device=stands.device)
    for row in stands.nonzero().flatten():
        for side in (others[others < row][-1:], others[others > row][:1]):
            matches[nearest[side]] = True
    return matches if matches.any() else ~matches
