"""Ridge solves beside a shared moment are those of all rows together, computed densely."""

import numpy as np
import pytest
import torch
from torch import Tensor

from unlearning_adapters.config import BuildConfig
from unlearning_adapters.errors import ConceptError
from unlearning_adapters.methods.registry import find_direction
from unlearning_adapters.methods.ridge import protected_rows, ridge_direction
from unlearning_adapters.methods.rows import GroupRows, NeutralRows
from unlearning_adapters.methods.shared_moment import SharedMoment

FEATURES = 24


def rows_of(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, FEATURES, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def dense(rows: Tensor, weights: Tensor, own: Tensor, targets: Tensor, ridge: float) -> np.ndarray:
    moment = ridge * np.eye(FEATURES)
    for weight, row in zip(weights.tolist(), rows.numpy(), strict=True):
        moment += weight * np.outer(row, row)
    for row in own.numpy():
        moment += np.outer(row, row)
    return targets.numpy() @ np.linalg.inv(moment)


@pytest.mark.parametrize("count", [1, 9, FEATURES - 1, FEATURES, 70])
@pytest.mark.parametrize("own", [0, 1, 5, 40])
@pytest.mark.parametrize("ridge", [1e-3, 10.0])
def test_each_solve_is_the_dense_one_with_its_own_rows_and_ridge(count: int, own: int, ridge: float) -> None:
    rows, targets = rows_of(count, count), rows_of(2, 3)
    weights = torch.arange(1.0, count + 1, dtype=torch.float64)
    moment = SharedMoment(rows.float(), weights)
    assert moment.count == count and moment.weight == weights.sum()
    exact = rows.float().double()
    assert moment.trace == pytest.approx(float((weights @ exact.square()).sum()))
    for seed in (3, 4):
        further = rows_of(seed, own)
        expected = dense(exact, weights, further, targets, ridge * seed)
        given = targets.clone(), further.clone()
        found = moment.solve(*given, ridge * seed).numpy()
        np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())
        assert torch.equal(given[0], targets) and torch.equal(given[1], further)
        assert np.abs(found - targets.numpy() / (ridge * seed)).max() > 0.1 * np.abs(expected).max()


@pytest.mark.parametrize("count", [10, 60])
def test_rows_that_repeat_or_are_zero_are_no_trouble(count: int) -> None:
    rows = torch.cat([rows_of(1, 1).expand(count - 2, -1), torch.zeros(2, FEATURES, dtype=torch.float64)])
    weights, targets = torch.ones(count, dtype=torch.float64), rows_of(2, 2)
    expected = dense(rows, weights, rows[:2], targets, 0.1)
    found = SharedMoment(rows, weights).solve(targets, rows[:2], 0.1).numpy()
    np.testing.assert_allclose(found, expected, atol=1e-9 * np.abs(expected).max())


@pytest.mark.parametrize("prompts", [2, 30])
def test_a_direction_beside_a_shared_moment_is_that_of_all_rows(prompts: int) -> None:
    neutral = tuple(rows_of(10 + index, 5).float() for index in range(prompts))
    safe = [rows_of(60 + index, 4).float() for index in range(5)]
    unsafe = [rows.clone() for rows in safe]
    for rows in unsafe:
        rows[0] += 6 * rows_of(99, 1)[0].float()
    group = GroupRows.of_sides(unsafe, safe, NeutralRows(neutral, (rows_of(90, 2).float(),)))
    found = find_direction(group, BuildConfig(landing="mean"), torch.Generator())
    r = torch.stack([sides.concept.concept - sides.concept.counterpart for sides in group.sides]).mean(dim=0)
    rows, weights = protected_rows(group)
    together = ridge_direction(r, rows, weights=weights)
    assert float((together.read - ridge_direction(r, torch.cat(safe)).read).norm()) > 0.1 * float(together.read.norm())
    torch.testing.assert_close(found.read, together.read, rtol=0, atol=1e-6 * float(together.read.abs().max()))
    torch.testing.assert_close(found.write, together.write)


def test_the_moment_is_decomposed_once_for_all_folds(monkeypatch: pytest.MonkeyPatch) -> None:
    decomposed, eigh = [], torch.linalg.eigh
    monkeypatch.setattr(torch.linalg, "eigh", lambda matrix: (decomposed.append(len(matrix)), eigh(matrix))[1])
    neutral = NeutralRows(tuple(rows_of(index, 5).float() for index in range(3)))
    safe = [rows_of(60 + index, 4).float() for index in range(5)]
    group = GroupRows.of_sides([rows + 3 * rows_of(99, 1).float() for rows in safe], safe, neutral)
    for left_out in range(5):
        find_direction(group.only([pair for pair in range(5) if pair != left_out]), BuildConfig(), torch.Generator())
    assert decomposed == [15]


def test_rows_that_are_all_zero_are_refused_beside_a_shared_moment_as_well() -> None:
    zero = torch.zeros(3, FEATURES)
    shared = SharedMoment(zero, torch.ones(3, dtype=torch.float64))
    with pytest.raises(ConceptError, match="not all zero, but got 5 distinct rows: .*neutral prompts"):
        ridge_direction(rows_of(1), zero[:2], weights=torch.ones(2, dtype=torch.float64), shared=shared)
    assert NeutralRows((zero[:0],)).moment is None
