"""The solve behind a joint edit: which rows act, at which strengths, and `G^-1 L` of them (docs/maths.md 5).

Float64 on the CPU: m x m problems are tiny, and the result must not depend on the device. One pass of elimination from
the strongest row down decides about all rows; the inverse of the rows that act grows by one border per row, so that m
rows cost m^3 operations and not m^4.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
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
Array = NDArray[Any]


@dataclass(frozen=True)
class ActiveRows:
    """The rows of all directions that do something, strongest first, in an order that only their content sets.

    Args:
        owner: Index of the direction that each row belongs to.
        number: Which row of that direction it is.
        strength: Its strength.
        shrinkage: That of its direction.
        additive: Whether it is added as it stands.
        read: Shape (m, in_features), float64.
        write: The same.
    """

    owner: Array
    number: Array
    strength: Array
    shrinkage: Array
    additive: Array
    read: Array
    write: Array

    def __len__(self) -> int:
        return len(self.owner)

    def at(self, index: Array) -> "ActiveRows":
        """Return some of the rows."""
        return ActiveRows(*(part[index] for part in vars(self).values()))


class SolvePlan(NamedTuple):
    """What becomes of each row.

    Args:
        acting: Indices of the rows that act.
        dials: L, diagonal but for rows that share most of themselves with rows before them.
        merged: Pairs (stronger, weaker) of near-duplicates.
        absorbed: Indices of rows that are left out.
    """

    acting: list[int]
    dials: Array
    merged: list[tuple[int, int]]
    absorbed: list[int]


class Solution(NamedTuple):
    """The solved rows.

    Args:
        rows: The rows that act, the additive ones last.
        mix: `G^-1 L`; of additive rows their strengths on the diagonal.
        merged: Pairs (stronger, weaker) of directions that share a near-duplicate row.
        absorbed: Directions of which a row was left out.
    """

    rows: ActiveRows
    mix: Array
    merged: tuple[tuple[int, int], ...]
    absorbed: tuple[int, ...]


def solve(directions: Sequence[Direction], strengths: Sequence[float]) -> Solution:
    """Return the joint solve of several directions; their order does not change a bit of it.

    Args:
        directions: One or more directions of one width.
        strengths: A strength per direction, 0 to 4, which the direction's gain multiplies.

    Raises:
        ConfigError: If the numbers or widths do not fit, a strength is out of range, or a row is not a direction.
    """
    rows = active_rows(directions, strengths)
    joint, additive = rows.at(np.flatnonzero(~rows.additive)), rows.at(np.flatnonzero(rows.additive))
    plan = plan_rows(joint)
    active = joint.at(np.array(plan.acting, dtype=np.int64))
    size, count = len(active), len(active) + len(additive)
    mix = np.zeros((count, count))
    if size:
        mix[:size, :size] = mix_of(active, plan.dials, float(joint.shrinkage.min()))
    mix[range(size, count), range(size, count)] = additive.strength
    together = [np.concatenate(parts) for parts in zip(vars(active).values(), vars(additive).values(), strict=True)]
    owner = joint.owner.tolist()
    merged = {(owner[strong], owner[weak]) for strong, weak in plan.merged}
    return Solution(
        ActiveRows(*together),
        mix,
        tuple(sorted(pair for pair in merged if pair[0] != pair[1])),
        tuple(sorted({owner[row] for row in plan.absorbed})),
    )


def active_rows(directions: Sequence[Direction], strengths: Sequence[float]) -> ActiveRows:
    """Return the rows of all directions that do something; arguments and errors as those of `solve`."""
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
    owners = [owner for owner, amount in enumerate(amounts) if amount > 0]
    if len(owners) > 1:
        owners.sort(key=lambda owner: (-amounts[owner], _content(directions[owner])))
    members = [directions[owner] for owner in owners]
    ranks = [direction.rank for direction in members]
    empty = np.empty((0, widths[0]))
    read, write = (
        np.concatenate([empty, *(_array(getattr(direction, part)) for direction in members)])
        for part in ("read", "write")
    )
    rows = ActiveRows(
        owner=np.repeat(np.array(owners, dtype=np.int64), ranks),
        number=np.concatenate([np.empty(0, np.int64), *map(np.arange, ranks)]),
        strength=np.repeat(np.array([amounts[owner] for owner in owners]), ranks),
        shrinkage=np.repeat(np.array([direction.shrinkage for direction in members]), ranks),
        additive=np.repeat(np.array([direction.additive for direction in members], dtype=bool), ranks),
        read=read,
        write=write,
    )
    nonzero = read.any(axis=1) | write.any(axis=1)  # a file pads directions to one rank with rows of zeros
    rows = rows if nonzero.all() else rows.at(np.flatnonzero(nonzero))
    _check_units(rows)
    return rows


def mix_of(rows: ActiveRows, dials: Array, share: float) -> Array:
    """Return `G^-1 L` of rows of which none is additive, with the inverse shrunk.

    The singular values s of G become `max(s, (1 - t) s + t)`, t the share: what an exact edit multiplies by `1 / s` to
    tell concepts apart that read alike, it multiplies by less. Rows are balanced before, since (c a, w / c) is the same
    direction as (a, w). The rows of one adapter alone have `G = I`.

    Args:
        rows: The rows that act.
        dials: L of them.
        share: The least shrinkage of all rows, of those that are left out too: which of several equal ones is left out
            depends on the order of loading, and the edit must not.
    """
    gram: Array = rows.read @ rows.write.T
    if not share or not (rows.owner != rows.owner[0]).any():
        return np.asarray(np.linalg.solve(gram, dials))
    balance = np.sqrt(np.linalg.norm(rows.write, axis=1) / np.linalg.norm(rows.read, axis=1))
    left, sizes, right = np.linalg.svd(balance[:, None] * gram / balance)
    inverse = (right.T / np.maximum(sizes, (1 - share) * sizes + share)) @ left.T
    return np.asarray((inverse * balance / balance[:, None]) @ dials)


def plan_rows(rows: ActiveRows) -> SolvePlan:
    """Choose the rows of the solve and their strengths: a pass of Gaussian elimination from the strongest down.

    Args:
        rows: Rows of which none is additive.
    """
    count = len(rows)
    gram, near = rows.read @ rows.write.T, _near_duplicates(rows)
    dials, inverse = np.zeros((count, count)), np.zeros((count, count))
    active: list[int] = []
    merged, absorbed = [], []
    for row in range(count):
        strength, twins = float(rows.strength[row]), [other for other in active if near[row, other]]
        if twins:
            strongest = max(twins, key=lambda other: (dials[other, other], -other))
            strength = max(strength, float(dials[strongest, strongest]))
            merged.append((strongest, row))
        size = len(active)
        # What the acting rows read of this row: a_row = shared . A + a rest that reads none of their writes.
        shared, across = gram[row, active] @ inverse[:size, :size], gram[active, row]
        rest = gram[row, row] - shared @ across
        left = abs(rest / gram[row, row])
        if left >= ABSORBED_BELOW:
            if left < INDEPENDENT_FROM:
                dials[row, active] = shared @ dials[np.ix_(active, active)] - strength * shared
            dials[row, row] = strength
            active.append(row)
            _grow(inverse, size, inverse[:size, :size] @ across, shared, rest)
        elif not twins:
            absorbed.append(row)
    return SolvePlan(active, dials[np.ix_(active, active)], merged, absorbed)


def _grow(inverse: Array, size: int, column: Array, row: Array, rest: float) -> None:
    """Take one more row and column into an inverse: the border of a block matrix with the Schur complement `rest`."""
    inverse[:size, :size] += np.outer(column, row) / rest
    inverse[:size, size] = -column / rest
    inverse[size, :size] = -row / rest
    inverse[size, size] = 1 / rest


def _near_duplicates(rows: ActiveRows) -> Array:
    """Return for each two rows whether they are one concept; (-a, -w) is the same direction as (a, w)."""
    if len(rows) < 2:
        return np.zeros((len(rows), len(rows)), dtype=bool)
    read, write = (
        part / np.maximum(np.linalg.norm(part, axis=1, keepdims=True), 1e-12) for part in (rows.read, rows.write)
    )
    of_reads, of_writes = read @ read.T, write @ write.T
    near: Array = (abs(of_reads) > NEAR_DUPLICATE) & (abs(of_writes) > NEAR_DUPLICATE) & (of_reads * of_writes > 0)
    return near


def _check_units(rows: ActiveRows) -> None:
    values = np.einsum("ij,ij->i", rows.read, rows.write)
    for value in values[~rows.additive & ~(abs(values - 1) <= UNIT_TOLERANCE)]:  # also NaN
        raise ConfigError(
            f"Expected read . write = 1 for each row of a direction, but got {value:g}: build the adapter again."
        )


def _content(direction: Direction) -> bytes:
    digest = hashlib.sha256(b"additive" if direction.additive else b"")
    for rows in (direction.read, direction.write):
        digest.update(rows.detach().cpu().float().contiguous().numpy().data)
    return digest.digest()


def _array(rows: Tensor) -> Array:
    array: Array = rows.detach().cpu().double().numpy()
    return array
