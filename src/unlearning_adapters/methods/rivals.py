"""Closed-form edits of other works, on the rows of ours, so that all are compared on the same sites and in one file.

Each returns what `W' = W - (W V^T) A` takes from what a site reads, reads `A` and writes `V` of shape (rank, features),
float32. Their products `A V^T` are no identity: they are `additive` directions (docs/maths.md 6).
An edit of more rows than a file may hold is written with the best that it may (`_fewest_rows`).
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import MAX_RANK
from unlearning_adapters.errors import ConceptError

from .refusal import distinct_rows, exact_rows, ridge_solve

# UCE's and RECE's weights were set for CLIP's tokens, |c|^2 about 768: on rows of another size they are scaled alike.
CLIP_SQUARE = 768.0
# What is left out when a sum of many edits is written with the fewest rows.
KEPT_ENERGY = 0.99999
# Below this share of the largest gain a component of CURE is rounding.
ZERO_GAIN = 1e-9


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
    return _additive(*_uce(concepts, guides, preserved, ridge, erase, keep), concepts.device)


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
    edit, found = identity, tokens
    for _ in range(rounds + 1):
        scale = _relative_size(tokens) / _relative_size(found)  # undoes that `_uce` goes by what it erases
        step = _uce(found, guides, preserved, ridge * scale, erase, keep)
        read, write = (exact_rows(rows.float()) for rows in step)  # a round attacks the edit as a file holds it
        edit = edit @ (identity - write.T @ read)
        pulled = edit.T @ quadratic
        found = torch.linalg.solve(penalty * identity + pulled @ edit, pulled @ tokens.T).T
    return _factored(identity - edit, (rounds + 1) * len(tokens), concepts.device)


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
    kept, kept_gains = _soft_projector(exact_rows(retain).to(basis.device), sharpness)
    used = gains > ZERO_GAIN * gains.max()  # prompts that say the same span fewer directions than there are
    basis, gains = basis[used], gains[used]
    read = basis - ((basis @ kept.T) * kept_gains) @ kept
    return _additive(read, basis * gains[:, None], forget.device)


def _soft_projector(rows: Tensor, sharpness: float) -> tuple[Tensor, Tensor]:
    _, singular, basis = torch.linalg.svd(rows, full_matrices=False)
    share = singular.square() / singular.square().sum()
    return basis, sharpness * share / ((sharpness - 1) * share + 1)


def _relative_size(rows: Tensor) -> float:
    return float(rows.square().sum(dim=1).mean()) / CLIP_SQUARE


def _factored(matrix: Tensor, rank: int, device: torch.device) -> Direction:
    """Return a matrix `V^T A` of low rank as reads and writes."""
    left, singular, right = torch.linalg.svd(matrix)
    energy = singular.square().cumsum(0) / singular.square().sum()
    used = min(rank, MAX_RANK, int((energy < KEPT_ENERGY).sum()) + 1)
    return _of_components(left, singular, right, used, device)


def _additive(read: Tensor, write: Tensor, device: torch.device) -> Direction:
    if len(read) > MAX_RANK:
        return _fewest_rows(read, write, device)
    return Direction(read.to(device, torch.float32), write.to(device, torch.float32), additive=True)


def _fewest_rows(read: Tensor, write: Tensor, device: torch.device) -> Direction:
    """Return `V^T A` with as many rows as its rank, or the best 64 by C. Eckart and G. Young 1936 (Frobenius norm).

    With `A^T = P S` and `V^T = Q T` (QR), `V^T A = Q (T S^T) P^T`: the SVD is that of a matrix as small as the rows are
    few.
    """
    (into, inner), (out, outer) = torch.linalg.qr(read.T), torch.linalg.qr(write.T)
    left, singular, right = torch.linalg.svd(outer @ inner.T)
    rounding = torch.finfo(singular.dtype).eps * max(read.shape) * singular[0]
    used = min(MAX_RANK, max(1, int((singular > rounding).sum())))
    return _of_components(out @ left, singular, right @ into.T, used, device)


def _of_components(left: Tensor, singular: Tensor, right: Tensor, used: int, device: torch.device) -> Direction:
    """Return the first components of an SVD as reads and writes of equal size, and what share the others hold."""
    root = singular[:used].sqrt()[:, None]
    read, write = right[:used] * root, left.T[:used] * root
    left_out = float(singular[used:].norm() / singular.norm().clamp_min(torch.finfo(singular.dtype).tiny))
    return Direction(read.to(device, torch.float32), write.to(device, torch.float32), additive=True, left_out=left_out)


def prompt_means(prompts: Sequence[Tensor]) -> Tensor:
    """Return the mean of the distinct rows of each prompt, shape (prompts, features); padding counts once."""
    return torch.stack([distinct_rows(rows.float()).mean(dim=0) for rows in prompts])
