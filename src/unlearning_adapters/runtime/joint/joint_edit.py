"""The joint edit of several directions at one site: how it acts on inputs and weights, and its LoRA factors.

With the reads stacked as `A` (m x in), the writes as the columns of `V` (in x m), `G = A V` and `L = diag(strengths)`:

    x' = x - V G^-1 L A x        W' = W - (W V G^-1 L) A

Each direction's own read-out is scaled by exactly its own dial, `a_j . x' = (1 - strength_j) a_j . x`, in any order.
See docs/maths.md 5 for the equations, their source, and what is done with directions that are not independent.
Directions that are `additive` (edits of other works) have no such dials: each takes `strength * V A x` as it stands.
The strength of a direction is that of its adapter times its own gain.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.errors import ConfigError

from .joint_solve import solve

# Weights are read in float32 in blocks of rows of this many elements (64 MB), not as a whole.
BLOCK_ELEMENTS = 2**24


@dataclass(frozen=True)
class StackedEdit:
    """The joint edit of all active directions at one site, `x' = x - (x @ read.T) @ mix.T`.

    Args:
        read: Rows that are read, `A`, shape (m, in_features), float32; m is 0 where nothing is active.
        mix: What is taken away per read-out, `V G^-1 L`, shape (in_features, m), float32.
    """

    read: Tensor
    mix: Tensor

    def __post_init__(self) -> None:
        if self.read.ndim != 2 or self.mix.shape != self.read.T.shape:
            raise ConfigError(
                "Expected `read` of shape (m, in_features) and `mix` of shape (in_features, m), "
                f"but got {tuple(self.read.shape)} and {tuple(self.mix.shape)}."
            )

    @property
    def rank(self) -> int:
        """Number m of rows that are read."""
        return int(self.read.shape[0])

    @property
    def in_features(self) -> int:
        """Width of the site's input."""
        return int(self.read.shape[1])

    def to(self, device: torch.device | str) -> "StackedEdit":
        """Return the same edit on another device."""
        return StackedEdit(self.read.to(device), self.mix.to(device))


@dataclass(frozen=True)
class StackReport:
    """What `stack_directions` did with directions that are not independent; indices are those of its arguments.

    Args:
        merged: Pairs (stronger, weaker) of near-duplicates: the weaker one acts at the strength of the stronger one.
        absorbed: Directions with a row that was left out because the others already remove it.
    """

    merged: tuple[tuple[int, int], ...] = ()
    absorbed: tuple[int, ...] = ()


def stack_directions(directions: Sequence[Direction], strengths: Sequence[float]) -> StackedEdit:
    """Return the joint edit of several directions at one site; their order does not change a bit of it.

    `x' = x - V G^-1 L A x` (docs/maths.md 5; a joint projection where all strengths are 1). Rows are taken from the
    strongest to the weakest, and:

    - a direction at strength 0 is left out, so that the edit equals, bit for bit, the one without it;
    - near-duplicates (|cosine| of reads and of writes both above 0.9, with one sign) share the larger strength;
    - a row of whose own read-out the rows before it leave less than 19 % sets the strength of that rest only: what it
      shares with stronger ones goes with them, since two dials for one thing would amplify what tells them apart;
    - a row of which they leave less than 5 % is left out, so that G is never singular and loading a concept twice
      equals loading it once, bit for bit. `stack_report` says which directions were merged or left out;
    - additive directions are added at their strengths: of them none of this holds.

    Args:
        directions: One or more directions of one width, from adapters that are active at this site.
        strengths: A strength per direction, 0 to 4, which the direction's gain multiplies.

    Returns:
        The edit on the device of the first direction; its rank is at most the sum of the ranks.

    Raises:
        ConfigError: If the numbers or widths do not fit, a strength is out of range, or a row is not a direction.

    Example:
        >>> e = torch.eye(3)
        >>> edit = stack_directions([Direction(e[:1], e[:1]), Direction(e[1:2], e[1:2])], [1.0, 0.5])
        >>> apply_edit(torch.tensor([4.0, 4.0, 4.0]), edit)
        tensor([0., 2., 4.])
    """
    return solved_edit(directions, strengths)[0]


def solved_edit(directions: Sequence[Direction], strengths: Sequence[float]) -> tuple[StackedEdit, StackReport]:
    """Return what `stack_directions` and `stack_report` return, from one solve; arguments as theirs."""
    solution = solve(directions, strengths)
    device, rows = directions[0].read.device, solution.rows
    read, mix = (torch.from_numpy(part).float().to(device) for part in (rows.read, rows.write.T @ solution.mix))
    return StackedEdit(read, mix.contiguous()), StackReport(solution.merged, solution.absorbed)


def stack_report(directions: Sequence[Direction], strengths: Sequence[float]) -> StackReport:
    """Return which of these directions `stack_directions` merges or leaves out, so that a user can be told.

    Args:
        directions: As for `stack_directions`.
        strengths: As for `stack_directions`.

    Returns:
        Pairs of near-duplicates and indices of absorbed directions; both empty if all are independent.

    Raises:
        ConfigError: As `stack_directions`.
    """
    return solved_edit(directions, strengths)[1]


def apply_edit(x: Tensor, edit: StackedEdit) -> Tensor:
    """Return what a site reads after the edit, `x' = x - (x @ read.T) @ mix.T`.

    Args:
        x: Activations, shape (..., in_features), any floating dtype, on the device of the edit.
        edit: The joint edit of the site.

    Returns:
        Activations of the shape and dtype of `x`, computed in float32 (also under autocast) and rounded once;
        `x` itself where nothing is active.
    """
    if edit.rank == 0:
        return x
    with torch.autocast(x.device.type, enabled=False):
        change = (x.float() @ edit.read.T) @ edit.mix.T
        return (x - change).to(x.dtype)


def weight_factor(weight: Tensor, edit: StackedEdit) -> Tensor:
    """Return `W mix`, the left factor of what is taken from a weight: `W' = W - (W mix) read`.

    Args:
        weight: Weight of the site's Linear, shape (out_features, in_features), any floating dtype.
        edit: The joint edit of the site, on the weight's device.

    Returns:
        Factor of shape (out_features, m), float32.
    """
    rows = max(1, BLOCK_ELEMENTS // max(1, weight.shape[1]))
    return torch.cat([block.float() @ edit.mix for block in weight.split(rows)])


def lora_factors(weight: Tensor, edit: StackedEdit) -> tuple[Tensor, Tensor]:
    """Return the edit of a weight as LoRA factors, `W' = W + lora_B @ lora_A`.

    Args:
        weight: Weight of the site's Linear, shape (out_features, in_features).
        edit: The joint edit of the site, on the weight's device.

    Returns:
        `lora_A` = read, shape (m, in_features), and `lora_B` = -(W mix), shape (out_features, m); both float32.
    """
    return edit.read, -weight_factor(weight, edit)


def stacked_factors(
    directions: Sequence[Direction], strengths: Sequence[float], outputs: Sequence[Tensor]
) -> tuple[Tensor, Tensor]:
    """Return the joint edit as LoRA factors where the weight itself is not at hand, only what it makes of the writes.

    `lora_A = A` and `lora_B = -(W V) G^-1 L` (docs/maths.md 5), with `W V` gathered from `outputs`: the same edit as
    `lora_factors` gives for the weight, from numbers that adapter files hold.

    Args:
        directions: As for `stack_directions`.
        strengths: As for `stack_directions`.
        outputs: What the weight makes of each direction's writes, `W @ write.T`, shape (out_features, rank).

    Returns:
        `lora_A`, shape (m, in_features), and `lora_B`, shape (out_features, m); both float32 on the CPU.

    Raises:
        ConfigError: As `stack_directions`, or if an output does not fit its direction.
    """
    solution = solve(directions, strengths)
    heights = {int(output.shape[0]) for output in outputs}
    ranks = [direction.rank for direction in directions]
    if len(heights) != 1 or [int(output.shape[1]) for output in outputs] != ranks:
        raise ConfigError(
            f"Expected outputs of one height and of the ranks {ranks}, "
            f"but got the shapes {[tuple(output.shape) for output in outputs]}."
        )
    rows, mix = solution.rows, torch.from_numpy(solution.mix)
    columns = [outputs[owner][:, number] for owner, number in zip(rows.owner, rows.number, strict=True)]
    matrix = torch.stack([column.detach().cpu().double() for column in columns], dim=1) if columns else None
    left = torch.zeros(*heights, 0, dtype=torch.float32, device="cpu") if matrix is None else -(matrix @ mix).float()
    return torch.from_numpy(rows.read).float(), left


def edited_weight(weight: Tensor, edit: StackedEdit) -> Tensor:
    """Return `W' = W - (W mix) read` in float32, as a whole: for tests and small layers; `fuse` works in place.

    Args:
        weight: Weight of the site's Linear, shape (out_features, in_features).
        edit: The joint edit of the site, on the weight's device.

    Returns:
        Edited weight of shape (out_features, in_features), float32.
    """
    return weight.float() - weight_factor(weight, edit) @ edit.read
