"""The methods "uce" and "rece": Unified Concept Editing (arXiv 2308.14761), and the same attacked and repeated.

They return what `W' = W - (W V^T) A` takes from what a site reads, reads `A` and writes `V` of shape (rank, features),
float32. `A V^T` is not the identity: these are `additive` directions (docs/maths.md 6).
"""

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError

from .factors import additive, of_matrix
from .method import Method
from .refusal import distinct_rows, exact_rows, ridge_solve
from .rows import GroupRows

# UCE's and RECE's weights were set for CLIP's tokens, |c|^2 about 768: on rows of another size they are scaled alike.
CLIP_SQUARE = 768.0


def uce_direction(
    concepts: Tensor, guides: Tensor, preserved: Tensor, *, ridge: float = 0.5, erase: float = 1.0, keep: float = 1.0
) -> Direction:
    """Return the edit of UCE, "Unified Concept Editing in Diffusion Models" (arXiv 2308.14761), exactly.

    `W' = (l W + s_e sum_i (W g_i) c_i^T + s_p sum_p (W p) p^T) M^-1` with
    `M = l I + s_e sum_i c_i c_i^T + s_p sum_p p p^T` is `W - W (C - G)^T (s_e C M^-1)`: reads `s_e C M^-1`, writes
    `C - G`. `l`, which UCE sets for CLIP, is scaled by the mean square of the rows over 768.

    Args:
        concepts: Tokens c_i that carry the concept, shape (n, features).
        guides: Tokens g_i that take their place, shape (n, features).
        preserved: Tokens that must not change, shape (m, features).
        ridge: l.
        erase: s_e.
        keep: s_p.

    Returns:
        Additive direction of rank n, at most 64: more are compressed, exactly if the edit's rank is at most 64.

    Raises:
        ConceptError: If there is no concept token.
    """
    return additive(*_uce(concepts, guides, preserved, ridge, erase, keep), concepts.device)


def _uce(
    concepts: Tensor, guides: Tensor, preserved: Tensor, ridge: float, erase: float, keep: float
) -> tuple[Tensor, Tensor]:
    """Return reads and writes of UCE, a row of each per concept token, float64."""
    tokens, aims = exact_rows(concepts), exact_rows(guides)
    if not len(tokens):
        raise ConceptError("UCE needs at least one token that carries the concept, but got none.")
    rows = torch.cat([tokens * erase**0.5, exact_rows(preserved).to(tokens.device) * keep**0.5])
    return erase * ridge_solve(rows, tokens, ridge * _relative_size(tokens)), tokens - aims


def rece_direction(
    concepts: Tensor,
    guides: Tensor,
    preserved: Tensor,
    gram: Tensor,
    *,
    rounds: int = 3,
    ridge: float = 0.1,
    erase: float = 1.0,
    keep: float = 0.1,
    search: float = 0.1,
) -> Direction:
    """Return the edit of RECE, "Reliable and Efficient Concept Erasure" (arXiv 2407.12383): UCE, attacked and repeated.

    In each round the tokens c' that bring the concept back most, `argmin sum_i |W_i c' - W_i^0 c|^2 + m |c'|^2`, are
    `c' = (m I + sum_i W_i^T W_i)^-1 (sum_i W_i^T W_i^0) c` over all edited weights; they are erased by another UCE edit
    of the current weights. With `W_i = W_i^0 E` only `Q = sum_i W_i^0T W_i^0` is needed: `(m I + E^T Q E)^-1 E^T Q c`.
    `l` stays the one of the first edit, as in the authors' code, however short the c' are.

    A round preserves what UCE preserves but not what was erased so far, and may give the concept back
    (docs/maths.md 6). The authors keep the round whose pictures show the concept least; here all `rounds` are taken.

    Args:
        concepts: Tokens that carry the concept, shape (n, features).
        guides: Tokens that take their place, shape (n, features).
        preserved: Tokens that must not change, shape (m, features).
        gram: Q, the sum over the sites that read these rows of `W^T W`, shape (features, features).
        rounds: Number of rounds after the first edit.
        ridge: l of UCE.
        erase: s_e of UCE.
        keep: s_p of UCE.
        search: m, as a share of the mean eigenvalue of Q.

    Returns:
        Additive direction of rank at most (rounds + 1) n, and at most 64.

    Raises:
        ConceptError: As `uce_direction`.
    """
    tokens = exact_rows(concepts)
    identity = torch.eye(tokens.shape[1], dtype=torch.float64, device=tokens.device)
    quadratic = exact_rows(gram).to(tokens.device)
    penalty = search * quadratic.trace() / len(quadratic)
    edit, targets = identity, tokens
    for _ in range(rounds + 1):
        scale = _relative_size(tokens) / _relative_size(targets)  # undoes that `_uce` goes by what it erases
        step = _uce(targets, guides, preserved, ridge * scale, erase, keep)
        read, write = (exact_rows(rows.float()) for rows in step)  # a round attacks the edit as a file holds it
        edit = edit @ (identity - write.T @ read)
        product = edit.T @ quadratic
        targets = torch.linalg.solve(penalty * identity + product @ edit, product @ tokens.T).T
    return of_matrix(identity - edit, (rounds + 1) * len(tokens), concepts.device)


def _relative_size(rows: Tensor) -> float:
    return float(rows.square().sum(dim=1).mean()) / CLIP_SQUARE


def edited_tokens(rows: GroupRows) -> tuple[Tensor, Tensor, Tensor]:
    """Return the tokens that carry the concept, the counterpart of each, and the rows that must not change."""
    concepts, guides = [], []
    for sides in rows.sides:
        concepts.append(distinct_rows(sides.unsafe[sides.concept.unsafe_index]))
        guides.append(sides.concept.counterpart.expand_as(concepts[-1]))
    return torch.cat(concepts), torch.cat(guides), distinct_rows(torch.cat([rows.neutral.all, *rows.safe]))


def _find_uce(rows: GroupRows, _config: BuildConfig, _generator: torch.Generator) -> Direction:
    return uce_direction(*edited_tokens(rows))


def _find_rece(rows: GroupRows, config: BuildConfig, _generator: torch.Generator) -> Direction:
    if rows.gram is None:
        raise ConceptError("The method 'rece' needs `gram`, the sum over the sites of W^T W, but got none.")
    return rece_direction(*edited_tokens(rows), rows.gram, rounds=config.rounds)


UCE = Method(_find_uce, needs_neutral=True)
RECE = Method(_find_rece, needs_neutral=True, needs_gram=True)
