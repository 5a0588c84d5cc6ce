"""The method "ridge", the default: it writes the refusal vector where, and only where, that is read (docs/maths.md 3).

Sums over features x features are never formed where there are fewer rows than features: they are solved exactly in the
span of the rows, in float64.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import DEFAULT_EPSILON, BuildConfig
from unlearning_adapters.errors import ConceptError, ConfigError

from .factors import leading_rows, oblique
from .method import Method, Range
from .refusal import distinct_rows, exact_rows, landing_vector, refusal_vector, ridge_solve, scaled_rows
from .rows import GroupRows
from .shared_moment import SharedMoment

# A neutral prompt that shows the concept in other words makes a read know it by what stands in its place, the other way
# round, and an edit would turn that into the concept. Part of the concept that may be read there, at strength 1, and
# the shares of all weight that it gets, one after the other, where more is.
TURNED = 0.15
HELD = (0.03, 0.3)


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
    shared: SharedMoment | None = None,
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
        shared: Further rows, whose moment many directions have in common; `rows` need `weights` then.

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
        rest = leading_rows(differences - (differences @ unit.T) @ unit, rank - 1, differences.norm())
        write = torch.cat([write, rest * write.norm()])
    if further is not None:
        write = torch.cat([write, exact_rows(further).to(write.device)])
    moment = _moment_rows(rows, weights, shared)
    squares = _sum_of_squares(moment, shared)
    ridge = epsilon * squares / moment.shape[1]
    solution = ridge_solve(moment, write, ridge) if shared is None else shared.solve(write, moment, ridge)
    if landing is not None:
        write = torch.cat([exact_rows(landing).to(write.device)[None], write[1:]])
    return oblique(torch.linalg.solve(solution @ write.T, solution), write, r.device)


def _moment_rows(rows: Tensor, weights: Tensor | None, shared: SharedMoment | None) -> Tensor:
    """Return rows X with `X^T X` their uncentred second moment, beside a shared one the sum and not the mean."""
    if weights is None:
        rows = distinct_rows(exact_rows(rows))
        weights = torch.ones(len(rows), dtype=rows.dtype, device=rows.device)
    share = exact_rows(weights)
    return scaled_rows(rows, (share / (share.sum() if shared is None else 1)).sqrt())


def _sum_of_squares(moment: Tensor, shared: SharedMoment | None) -> float:
    """Return the trace of the whole moment, or raise `ConceptError` if it is zero."""
    squares = float(moment.square().sum()) + (0.0 if shared is None else shared.trace)
    if not squares > 0:
        count = len(moment) + (0 if shared is None else shared.count)
        raise ConceptError(
            f"Expected neutral or safe activations that are not all zero, but got {count} distinct rows: "
            "check that the sites read the prompt, and give the concept neutral prompts."
        )
    return squares


def protected_rows(rows: GroupRows) -> tuple[Tensor, Tensor]:
    """Return the rows that must not change, shape (rows, features), and the weight of each, shape (rows,).

    A row that several prompts read weighs as many, and the rows of guidance together as much as all others, since a
    guided model reads them at every step. At sites that read no text, equal rows count once.
    """
    neutral, counts = rows.neutral.counted
    if rows.kind != "text":
        equal = distinct_rows(torch.cat([neutral, *rows.neutral.guidance, *rows.safe]))
        return equal, torch.ones(len(equal), dtype=torch.float64, device=equal.device)
    others, weights = _beside_neutral(rows)
    return torch.cat([neutral, others]), torch.cat([counts, weights])


def _beside_neutral(rows: GroupRows) -> tuple[Tensor, Tensor]:
    """Return the protected rows of text sites that are not those of neutral prompts: safe sides, then guidance."""
    counts, safe = rows.neutral.counted[1], torch.cat(rows.safe)
    guidance = torch.cat([safe[:0], *rows.neutral.guidance])
    share = (counts.sum() + len(safe)) / max(1, len(guidance))
    return torch.cat([safe, guidance]), torch.cat([counts.new_ones(len(safe)), share.expand(len(guidance))])


def _find(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    return _find_with_extra_rows(rows, config, ())


def _find_with_extra_rows(rows: GroupRows, config: BuildConfig, outliers: Sequence[int]) -> Direction:
    """Return the direction, with a further row for each of the given pairs, the difference of that pair alone."""
    concepts = [sides.concept for sides in rows.sides]
    r = refusal_vector([(item.concept, item.counterpart) for item in concepts])
    by_pair = [
        torch.stack([sides.concept.concept - sides.concept.counterpart for sides in pair]).mean(dim=0)
        for pair in rows.pairs
    ]
    landing = None
    # What hidden sites read is the content of a whole scene, which only the mean over all pairs is free of.
    if config.landing == "majority" and rows.kind == "text":
        landing = landing_vector(by_pair)
    differences = rows.token_differences() if config.rank > 1 else None
    counterparts = torch.stack([item.counterpart for item in concepts])
    shared = rows.neutral.moment if rows.kind == "text" else None
    protected = protected_rows(rows) if shared is None else _beside_neutral(rows)
    for share in (0.0, *HELD):
        moment, weights = _with_share(*protected, counterparts, share, 0.0 if shared is None else shared.weight)
        direction = ridge_direction(
            r,
            moment,
            config.epsilon,
            rank=config.rank,
            difference_rows=differences,
            weights=weights,
            landing=landing,
            further=torch.stack([by_pair[pair] for pair in outliers]) if outliers else None,
            shared=shared,
        )
        # Further rows of a direction share the counterparts among them.
        if rows.kind != "text" or config.rank > 1:
            break
        if float((counterparts @ direction.read[0].to(counterparts)).abs().max()) <= TURNED:
            break
    return direction


def _with_share(rows: Tensor, weights: Tensor, more: Tensor, share: float, others: float) -> tuple[Tensor, Tensor]:
    """Return rows and weights with further rows that together have a share of all weight, that of others included."""
    if not share:
        return rows, weights
    each = (others + weights.sum()) * share / (1 - share) / len(more)
    return torch.cat([rows, more]), torch.cat([weights, each.expand(len(more))])


RIDGE = Method(
    _find,
    needs_neutral=True,
    calibrates=True,
    find_with_extra_rows=_find_with_extra_rows,
    searched={"rank": Range(1, 4), "epsilon": Range(1e-4, 1.0, log=True)},
)
