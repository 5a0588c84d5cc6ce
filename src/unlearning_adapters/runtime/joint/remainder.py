"""The edit of a site's input when some adapters are fused: the rest of the joint edit, or None if there is none.

The weight holds the edit F of the fused adapters, `W' = W (I - F)`, and the joint edit of all adapters is E. The input
has to be edited by the R that makes both together the joint edit:

    (I - F) (I - R) = I - E        so        (I - F) R = E - F

`I - F` has an inverse, unless F removes something wholly (a direction at strength 1): no input brings that back. Then
there is an R only if E removes the same of it as F does. See docs/maths.md 5.
"""

import torch
from torch import Tensor

from .joint_edit import StackedEdit

# Singular values of I - F up to this are zeros that float32 has rounded.
SINGULAR = 1e-5
# The edits are given in float32, so that the equation holds to their rounding, in units of |mix| |read|.
ROUNDING = 2e-6
# What an R of a larger norm takes away and adds again would multiply the rounding of the fused weight by as much.
LARGEST = 8.0


def remaining_edit(whole: StackedEdit, fused: StackedEdit) -> StackedEdit | None:
    """Return the edit of the input that makes it and the fused weight together the whole edit.

    `(I - F) R = E - F`, solved for the R of least norm (SVD, float64) in the few dimensions in which the edits differ
    from nothing: both sides live in the span of the reads and writes.

    Args:
        whole: The joint edit E of all adapters of the site.
        fused: The edit F that is in the weight, of the same width.

    Returns:
        R on the device of `whole`; its rank is at most the sum of both ranks. None if no R solves the equation, or
        only one whose norm is above 8 times that of E.

    Example:
        >>> e = torch.eye(3)
        >>> half = StackedEdit(e[:1], 0.5 * e[:1].T)
        >>> remaining_edit(StackedEdit(e[:1], e[:1].T), half).mix.abs().max()  # 0.5 is left, all of it goes
        tensor(1.)
    """
    edits = [(edit.read.detach().cpu().double(), edit.mix.detach().cpu().double()) for edit in (whole, fused)]
    basis = torch.linalg.qr(torch.cat([part for read, mix in edits for part in (read.T, mix)], dim=1)).Q
    E, F = ((basis.T @ mix) @ (read @ basis) for read, mix in edits)
    left = torch.eye(len(F), dtype=F.dtype, device=F.device) - F
    R = _least_solution(left, E - F)
    scale = 1 + sum(float((mix.norm(dim=0) * read.norm(dim=1)).norm()) for read, mix in edits)
    largest = LARGEST * max(1.0, _norm(E))
    if _norm(left @ R - (E - F)) > ROUNDING * scale or _norm(R) > largest:
        return None
    out, sizes, into = torch.linalg.svd(R)
    rank = int((sizes > ROUNDING * 1e-3 * scale).sum())
    mix, read = basis @ (out[:, :rank] * sizes[:rank]), into[:rank] @ basis.T
    return StackedEdit(read.float().contiguous(), mix.float().contiguous()).to(whole.read.device)


def _least_solution(matrix: Tensor, right: Tensor) -> Tensor:
    """Return the solution of least norm, or the nearest to one."""
    out, sizes, into = torch.linalg.svd(matrix)
    keep = sizes > SINGULAR * max(1.0, float(sizes[:1].sum()))
    solution: Tensor = into[keep].T @ ((out[:, keep].T @ right) / sizes[keep, None])
    return solution


def _norm(matrix: Tensor) -> float:
    return float(torch.linalg.matrix_norm(matrix, 2)) if matrix.numel() else 0.0
