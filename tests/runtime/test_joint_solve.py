"""The elimination that chooses rows, against one that solves anew for each row."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from reference import dense_shrunk

from planted import direction
from unlearning_adapters.adapter.direction import Direction
from unlearning_adapters.runtime.joint.joint_edit import stack_directions
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


def as_matrix(edit) -> np.ndarray:
    return np.eye(edit.read.shape[1]) - (edit.mix @ edit.read).double().numpy()


@given(count=st.integers(2, 8), overlap=st.floats(0, 0.4), seed=st.integers(0, 500), data=st.data())
@settings(max_examples=40, deadline=None)
def test_a_shrunk_edit_is_the_dense_one_whatever_the_order(count, overlap, seed, data):
    parts = overlapping(count, 48, overlap, seed)
    shares = data.draw(st.lists(st.floats(0.05, 1), min_size=count, max_size=count))
    strengths = [1.5 - 0.1 * number for number in range(count)]
    exact = solve(parts, strengths)
    if exact.absorbed or exact.merged or len(exact.mix) and exact.rows.strength.min() == 0:
        return
    shrunk = [replace(part, shrinkage=share) for part, share in zip(parts, shares, strict=True)]
    edit, dials = stack_directions(shrunk, strengths), plan_rows(active_rows(parts, strengths)).dials
    reads, writes = ([getattr(part, name).double().numpy() for part in parts] for name in ("read", "write"))
    expected = dense_shrunk(reads, writes, dials, min(shares))
    np.testing.assert_allclose(as_matrix(edit), expected, atol=1e-4 * max(1, abs(expected).max()))
    turned = stack_directions(shrunk[::-1], strengths[::-1])
    assert torch.equal(turned.read, edit.read) and torch.equal(turned.mix, edit.mix)
    scaled = [replace(part, read=3 * part.read, write=part.write / 3) for part in shrunk[:1]] + shrunk[1:]
    np.testing.assert_allclose(as_matrix(stack_directions(scaled, strengths)), as_matrix(edit), atol=1e-3)


def test_shrinkage_spares_others_and_makes_this_edit_smaller():
    parts, strengths = overlapping(12, 48, 0.3, 7), [1.0] * 12
    sizes, others = [], np.random.default_rng(1).normal(size=(200, 48))
    for share in (0, 0.1, 0.3, 0.6, 1):
        matrix = np.eye(48) - as_matrix(stack_directions([replace(one, shrinkage=share) for one in parts], strengths))
        sizes.append((np.linalg.norm(matrix, 2), np.linalg.norm(others @ matrix.T)))
        own = [
            (one.read.double().numpy() @ (np.eye(48) - matrix) @ one.write.double().numpy().T).item() for one in parts
        ]
        assert np.abs(own).max() <= share + 1e-6  # left of each concept, read by its own read
    assert sizes == sorted(sizes, reverse=True)


def test_shrinkage_changes_no_bit_of_one_adapter_nor_of_a_stack_with_an_exact_one():
    plain, other = direction(24, rank=3, seed=5), direction(24, seed=6)
    for parts, shares in (([plain], [0.4]), ([plain, other], [0.4, 0])):
        exact = stack_directions(parts, [1.2] * len(parts))
        shrunk = [replace(part, shrinkage=share) for part, share in zip(parts, shares, strict=True)]
        edit = stack_directions(shrunk, [1.2] * len(parts))
        assert torch.equal(exact.read, edit.read) and torch.equal(exact.mix, edit.mix)


@pytest.mark.parametrize("other_share", [0.0, 0.1])
def test_copies_of_an_adapter_with_another_shrinkage_act_the_same_in_any_order(other_share):
    """Only the first of several equal directions acts, and its shrinkage must not be the one that counts."""
    one, neighbour = overlapping(2, 48, 0.4, 3)
    copies = [replace(one, shrinkage=share) for share in (0.5, other_share)]
    whole = [*copies, replace(neighbour, shrinkage=0.5)]
    expected = stack_directions([replace(part, shrinkage=other_share) for part in (one, neighbour)], [1.0, 1.0])
    for order in itertools.permutations(whole):
        edit = stack_directions(order, [1.0] * 3)
        assert torch.equal(edit.read, expected.read) and torch.equal(edit.mix, expected.mix)
    weaker = stack_directions(whole, [1.0, 0.5, 1.0])
    assert torch.equal(weaker.mix, expected.mix)


def test_additive_directions_do_not_decide_about_a_shrinkage():
    parts = [replace(part, shrinkage=0.5) for part in overlapping(2, 48, 0.4, 3)]
    added = Direction(0.1 * parts[0].read, parts[1].write, additive=True)
    edits = [stack_directions([*parts, one], [1.0] * 3) for one in (added, replace(added, shrinkage=0.5))]
    assert torch.equal(edits[0].mix, edits[1].mix)
    assert torch.equal(edits[0].mix[:, :2], stack_directions(parts, [1.0, 1.0]).mix)


def test_orthogonal_concepts_are_removed_whole_at_any_shrinkage():
    one, other = torch.eye(6)[:2].split(1)
    edit = stack_directions([Direction(row, row, shrinkage=0.5) for row in (one, other)], [1.0, 1.0])
    assert torch.allclose(edit.mix @ edit.read, torch.diag(torch.tensor([1.0, 1, 0, 0, 0, 0])), atol=1e-6)
