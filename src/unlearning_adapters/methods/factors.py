"""From the rows that a method finds to a `Direction`: orthogonal, oblique, or an edit of at most 64 rows."""

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import MAX_RANK

from .refusal import SAME_ROWS

# What is left out when a sum of many edits is written with the fewest rows.
KEPT_ENERGY = 0.99999


def orthogonal(rows: Tensor, device: torch.device) -> Direction:
    """Return the direction that reads and writes the same orthogonal rows, which are scaled to length 1."""
    unit = torch.nn.functional.normalize(rows, dim=1).to(device, torch.float32)
    return Direction(unit, unit)


def oblique(read: Tensor, write: Tensor, device: torch.device) -> Direction:
    """Return the direction of reads and writes with `read @ write.T` the identity."""
    return Direction(read.to(device, torch.float32), write.to(device, torch.float32))


def leading_rows(rows: Tensor, count: int, size: Tensor) -> Tensor:
    """Return at most `count` leading right singular vectors of rows, without those that are rounding against `size`."""
    _, singular, vectors = torch.linalg.svd(rows, full_matrices=False)
    leading: Tensor = vectors[singular > SAME_ROWS * size][:count]
    return leading


def additive(read: Tensor, write: Tensor, device: torch.device) -> Direction:
    """Return the edit `W' = W - (W V^T) A` of reads A and writes V; more than 64 rows are compressed."""
    if len(read) > MAX_RANK:
        return _fewest_rows(read, write, device)
    return Direction(read.to(device, torch.float32), write.to(device, torch.float32), additive=True)


def of_matrix(matrix: Tensor, rank: int, device: torch.device) -> Direction:
    """Return a matrix `V^T A` of low rank as reads and writes."""
    left, singular, right = torch.linalg.svd(matrix)
    energy = singular.square().cumsum(0) / singular.square().sum()
    count = min(rank, MAX_RANK, int((energy < KEPT_ENERGY).sum()) + 1)
    return _of_components(left, singular, right, count, device)


def _fewest_rows(read: Tensor, write: Tensor, device: torch.device) -> Direction:
    """Return `V^T A` with as many rows as its rank, or the best 64 by C. Eckart and G. Young 1936 (Frobenius norm).

    With `A^T = P S` and `V^T = Q T` (QR), `V^T A = Q (T S^T) P^T`: the SVD is that of a matrix as small as the rows are
    few.
    """
    (into, inner), (out, outer) = torch.linalg.qr(read.T), torch.linalg.qr(write.T)
    left, singular, right = torch.linalg.svd(outer @ inner.T)
    rounding = torch.finfo(singular.dtype).eps * max(read.shape) * singular[0]
    count = min(MAX_RANK, max(1, int((singular > rounding).sum())))
    return _of_components(out @ left, singular, right @ into.T, count, device)


def _of_components(left: Tensor, singular: Tensor, right: Tensor, used: int, device: torch.device) -> Direction:
    """Return the first components of an SVD as reads and writes of equal size, and what share the others hold."""
    root = singular[:used].sqrt()[:, None]
    read, write = right[:used] * root, left.T[:used] * root
    left_out = float(singular[used:].norm() / singular.norm().clamp_min(torch.finfo(singular.dtype).tiny))
    return Direction(read.to(device, torch.float32), write.to(device, torch.float32), additive=True, left_out=left_out)
