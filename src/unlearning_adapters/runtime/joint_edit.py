"""What several directions do together at one site: the joint edit, how it acts on inputs and weights, and as a LoRA.

With the reads stacked as `A` (m x in), the writes as the columns of `V` (in x m), `G = A V` and `L = diag(strengths)`:

    x' = x - V G^-1 L A x        W' = W - (W V G^-1 L) A

Each direction's own read-out is scaled by exactly its own dial, `a_j . x' = (1 - strength_j) a_j . x`, in any order.
See docs/maths.md 5 for the equations, their source, and what is done with directions that are not independent.
Directions that are `additive` (edits of other works) have no such dials: each takes `strength * V A x` as it stands.
The strength of a direction is that of its adapter times its own gain.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.config import site_strength
from unlearning_adapters.errors import ConfigError

# Two directions whose reads and writes are both closer than this (cosine) are the same concept: with different
# strengths the exact solve would amplify their difference (norm of the edit 2.3 at 0.9, 7.1 at 0.99, 22 at 0.999).
NEAR_DUPLICATE = 0.9
# A row of whose own read-out the stronger ones leave less than this (1 - 0.9^2) has a dial for the rest only.
INDEPENDENT_FROM = 0.19
# Below this a row adds nothing but rounding and parts of other tokens, times 1 / 0.05.
ABSORBED_BELOW = 0.05
# Files may hold directions in half precision, so `a . w = 1` holds to about 1e-3; anything else is not a direction.
UNIT_TOLERANCE = 0.02
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
        absorbed: Directions of which a row was left out because the others already remove it.
    """

    merged: tuple[tuple[int, int], ...] = ()
    absorbed: tuple[int, ...] = ()


def stack_directions(directions: Sequence[Direction], strengths: Sequence[float]) -> StackedEdit:
    """Return the joint edit of several directions at one site, the same bit for bit in whatever order they come.

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
    rows = _active_rows(directions, strengths)
    device, in_features = directions[0].read.device, directions[0].in_features
    if not rows:
        return StackedEdit(torch.zeros(0, in_features, device=device), torch.zeros(in_features, 0, device=device))
    kept, dials = _solve(rows)
    reads, writes = torch.stack([row.read for row in kept]), torch.stack([row.write for row in kept])
    return StackedEdit(reads.float().to(device), (writes.T @ dials).float().contiguous().to(device))


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
    rows = [row for row in _active_rows(directions, strengths) if not row.additive]
    if not rows:
        return StackReport()
    plan = _plan(rows)
    merged = {(rows[strong].owner, rows[weak].owner) for strong, weak in plan.merged}
    absorbed = {rows[row].owner for row in plan.absorbed}
    return StackReport(tuple(sorted(pair for pair in merged if pair[0] != pair[1])), tuple(sorted(absorbed)))


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
        removed = (x.float() @ edit.read.T) @ edit.mix.T
        return (x - removed).to(x.dtype)


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
    rows = _active_rows(directions, strengths)
    heights = {int(output.shape[0]) for output in outputs}
    ranks = [direction.rank for direction in directions]
    if len(heights) != 1 or [int(output.shape[1]) for output in outputs] != ranks:
        raise ConfigError(
            f"Expected outputs of one height and of the ranks {ranks}, "
            f"but got the shapes {[tuple(output.shape) for output in outputs]}."
        )
    if not rows:
        return torch.zeros(0, directions[0].in_features), torch.zeros(*heights, 0)
    kept, dials = _solve(rows)
    made = torch.stack([outputs[row.owner][:, row.number].detach().cpu().double() for row in kept], dim=1)
    return torch.stack([row.read for row in kept]).float(), -(made @ dials).float()


def edited_weight(weight: Tensor, edit: StackedEdit) -> Tensor:
    """Return `W' = W - (W mix) read` in float32, as a whole: for tests and small layers; `fuse` works in place.

    Args:
        weight: Weight of the site's Linear, shape (out_features, in_features).
        edit: The joint edit of the site, on the weight's device.

    Returns:
        Edited weight of shape (out_features, in_features), float32.
    """
    return weight.float() - weight_factor(weight, edit) @ edit.read


class _Row(NamedTuple):
    owner: int
    number: int  # which row of its direction
    strength: float
    read: Tensor
    write: Tensor
    additive: bool


class _Plan(NamedTuple):
    kept: list[int]
    dials: Tensor  # L, diagonal but for rows that share most of themselves with rows before them
    merged: list[tuple[int, int]]
    absorbed: list[int]


def _active_rows(directions: Sequence[Direction], strengths: Sequence[float]) -> list[_Row]:
    """Return the rows of all directions that do something, strongest first, in an order that only the content sets."""
    if not directions or len(directions) != len(strengths):
        raise ConfigError(
            f"Expected at least one direction and as many strengths, but got {len(directions)} and {len(strengths)}."
        )
    widths = sorted({direction.in_features for direction in directions})
    if len(widths) > 1:
        raise ConfigError(f"Expected directions of one width, but got in_features {', '.join(map(str, widths))}.")
    amounts = [
        site_strength(strength, direction.gain) for direction, strength in zip(directions, strengths, strict=True)
    ]
    contents = [_content(direction) for direction in directions]
    order = sorted(range(len(directions)), key=lambda index: (-amounts[index], contents[index]))
    rows = []
    for owner in order:
        if amounts[owner] > 0:
            for number, read, write in zip(*_checked(directions[owner]), strict=True):
                rows.append(_Row(owner, number, amounts[owner], read, write, directions[owner].additive))
    return rows


def _content(direction: Direction) -> bytes:
    digest = hashlib.sha256(b"additive" if direction.additive else b"")
    for rows in (direction.read, direction.write):
        digest.update(rows.detach().cpu().float().contiguous().numpy().tobytes())
    return digest.digest()


def _checked(direction: Direction) -> tuple[list[int], Tensor, Tensor]:
    """Return numbers, reads and writes in float64 on the CPU, without the zero rows that pad a file to one rank."""
    read, write = (rows.detach().cpu().double() for rows in (direction.read, direction.write))
    used = read.any(dim=1) | write.any(dim=1)
    read, write = read[used], write[used]
    for value in [] if direction.additive else (read * write).sum(dim=1).tolist():
        if not abs(value - 1) <= UNIT_TOLERANCE:  # also true of NaN
            raise ConfigError(
                f"Expected read . write = 1 for each row of a direction, but got {value:g}: build the adapter again."
            )
    return used.nonzero().flatten().tolist(), read, write


def _solve(rows: Sequence[_Row]) -> tuple[list[_Row], Tensor]:
    """Return the rows that act, and `G^-1 L` of them; those that are additive have their strengths on the diagonal."""
    joint = [row for row in rows if not row.additive]
    added = [row for row in rows if row.additive]
    kept, parts = added, [torch.diag(torch.tensor([row.strength for row in added], dtype=torch.float64))]
    if joint:
        plan = _plan(joint)
        chosen = [joint[row] for row in plan.kept]
        reads, writes = torch.stack([row.read for row in chosen]), torch.stack([row.write for row in chosen])
        # float64 on the CPU: m x m problems are tiny, and the result must not depend on the device.
        kept, parts = [*chosen, *added], [torch.linalg.solve(reads @ writes.T, plan.dials), *parts]
    return kept, torch.block_diag(*parts)


def _plan(rows: Sequence[_Row]) -> _Plan:
    """Choose the rows of the solve and their strengths: a pass of Gaussian elimination from the strongest down."""
    reads, writes = torch.stack([row.read for row in rows]), torch.stack([row.write for row in rows])
    gram, near = reads @ writes.T, _near_duplicates(reads, writes)
    dials = torch.zeros_like(gram)
    kept: list[int] = []
    merged, absorbed = [], []
    for row, (_, _, strength, _, _, _) in enumerate(rows):
        twins = [other for other in kept if near[row, other]]
        if twins:
            strongest = max(twins, key=lambda other: (float(dials[other, other]), -other))
            strength = max(strength, float(dials[strongest, strongest]))
            merged.append((strongest, row))
        # What the kept rows read of this row: a_row = shared . A_kept + a rest that reads none of their writes.
        shared = torch.linalg.solve(gram[kept][:, kept].T, gram[row, kept])
        left = abs(1 - float(shared @ gram[kept, row] / gram[row, row]))
        if left >= ABSORBED_BELOW:
            if left < INDEPENDENT_FROM:
                dials[row, kept] = shared @ dials[kept][:, kept] - strength * shared
            dials[row, row] = strength
            kept.append(row)
        elif not twins:
            absorbed.append(row)
    return _Plan(kept, dials[kept][:, kept], merged, absorbed)


def _near_duplicates(reads: Tensor, writes: Tensor) -> Tensor:
    """Return for each two rows whether they are one concept; (-a, -w) is the same direction as (a, w)."""
    read, write = (torch.nn.functional.normalize(rows, dim=1) for rows in (reads, writes))
    of_reads, of_writes = read @ read.T, write @ write.T
    return (of_reads.abs() > NEAR_DUPLICATE) & (of_writes.abs() > NEAR_DUPLICATE) & (of_reads * of_writes > 0)
