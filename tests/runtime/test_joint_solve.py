"""The elimination that chooses rows, against one that solves anew for each row."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from planted import direction
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.runtime.joint.joint_solve import (
    ABSORBED_BELOW,
    INDEPENDENT_FROM,
    active_rows,
    plan_rows,
    solve,
)


def plan_by_solving(gram, strengths):
    """Which rows act, at which dials, without near-duplicates: by a solve of its own for each row."""
    acting, dials = [], np.zeros_like(gram)
    for row, strength in enumerate(strengths):
        shared = np.linalg.solve(gram[np.ix_(acting, acting)].T, gram[row, acting])
        left = abs(1 - shared @ gram[acting, row] / gram[row, row])
        if left < ABSORBED_BELOW:
            continue
        if left < INDEPENDENT_FROM:
            dials[row, acting] = shared @ dials[np.ix_(acting, acting)] - strength * shared
        dials[row, row] = strength
        acting.append(row)
    return acting, dials[np.ix_(acting, acting)]


def overlapping(count: int, features: int, share: float, seed: int) -> list[Direction]:
    """Directions that have a part in common, so that in few features later ones are left less and less."""
    rng, parts = np.random.default_rng(seed), []
    for number in range(count):
        base = direction(features, seed=1000 * seed + number)
        mixed = (1 - share) * base.write + share * direction(features, seed=seed + 1).write * rng.uniform(0.2, 1.0)
        parts.append(Direction(base.read / (base.read @ mixed.T), mixed))
    return parts


@pytest.mark.parametrize("features", [12, 48])
@given(count=st.integers(1, 14), share=st.floats(0, 0.6), seed=st.integers(0, 500))
@settings(max_examples=30, deadline=None)
def test_the_elimination_takes_the_rows_and_dials_of_single_solves(features, count, share, seed):
    rows = active_rows(overlapping(count, features, share, seed), [2.0 - 0.1 * number for number in range(count)])
    plan = plan_rows(rows)
    if plan.merged:
        return
    acting, dials = plan_by_solving(rows.read @ rows.write.T, rows.strength)
    assert plan.acting == acting
    np.testing.assert_allclose(plan.dials, dials, atol=1e-6 * max(1, abs(dials).max()))


def test_some_of_these_rows_are_left_out_and_some_depend_on_others():
    """Or the test above would show less than it says."""
    absorbed = dependent = 0
    for seed in range(40):
        rows = active_rows(overlapping(14, 12, 0.3, seed), [2.0 - 0.1 * number for number in range(14)])
        plan = plan_rows(rows)
        absorbed += len(plan.absorbed)
        dependent += int(np.count_nonzero(plan.dials - np.diag(np.diag(plan.dials))) > 0)
    assert absorbed > 20 and dependent > 5


def test_a_hundred_directions_keep_their_own_dials():
    parts = [direction(512, seed=number) for number in range(100)]
    strengths = [0.5 + 0.01 * number for number in range(100)]
    solution = solve(parts, strengths)
    edit = solution.rows.write.T @ solution.mix @ solution.rows.read
    x = np.random.default_rng(0).standard_normal((7, 512))
    after = x - x @ edit.T
    for part, strength in zip(parts, strengths, strict=True):
        read = part.read.double().numpy()[0]
        np.testing.assert_allclose(after @ read, (1 - strength) * (x @ read), atol=1e-5)
    assert abs(after - x).max() > 0.1
