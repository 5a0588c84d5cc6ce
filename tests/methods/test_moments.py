"""Moments of video tokens and the regression that is solved from them, beside dense least squares and planted truth."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from unlearning_adapters.errors import ConfigError
from unlearning_adapters.methods.moments import Moments, counterfactual_direction, protective_weight

FEATURES, EPSILON = 12, 1e-3


def drawn(tokens: int, seed: int, features: int = FEATURES) -> Tensor:
    return torch.randn(tokens, features, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def planted(noise: float = 0.0, seed: int = 0) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Tokens that show a concept, their counterfactuals, tokens that must stay, and what was planted."""
    concept = drawn(1, 90 + seed)[0]
    concept /= concept.norm()
    scenes = drawn(400, seed)
    scenes = 0.3 * (scenes - (scenes @ concept)[:, None] * concept)  # the concept stands out of the scenes
    shown = scenes + concept + noise * drawn(400, seed + 1)
    kept = drawn(300, seed + 2)
    return shown, scenes, 0.3 * (kept - (kept @ concept)[:, None] * concept), concept


def moments_of(shown: Tensor, counterfactual: Tensor, kept: Tensor | None = None) -> Moments:
    sums = Moments(shown.shape[1])
    sums.add_pair(shown, counterfactual, 1 / len(shown))
    if kept is not None:
        sums.add_kept(kept, 1 / len(kept))
    return sums


def least_squares(shown: Tensor, counterfactual: Tensor, kept: Tensor, weight: float, ridge: float) -> np.ndarray:
    """The regression as rows of one tall system: x -> x - t, what must stay -> 0, and the ridge."""
    stays = np.sqrt(weight) * np.concatenate([counterfactual / len(shown) ** 0.5, kept / len(kept) ** 0.5])
    rows = np.concatenate([shown / len(shown) ** 0.5, stays, np.sqrt(ridge) * np.eye(shown.shape[1])])
    targets = np.zeros_like(rows)
    targets[: len(shown)] = (shown - counterfactual) / len(shown) ** 0.5
    return np.linalg.lstsq(rows, targets, rcond=None)[0].T


def test_a_planted_concept_is_led_to_its_counterfactual_and_nothing_else_moves():
    shown, counterfactual, kept, concept = planted()
    edit = counterfactual_direction(moments_of(shown, counterfactual, kept), 1.0, 1e-6, 4)
    matrix = (edit.write.T @ edit.read).double()
    assert (shown - counterfactual).norm() > 10
    assert (shown - shown @ matrix.T - counterfactual).norm() < 0.01 * (shown - counterfactual).norm()
    assert (kept @ matrix.T).norm() < 0.01 * kept.norm()
    assert torch.cosine_similarity(edit.write[0].double(), concept, dim=0).abs() > 0.999
    assert edit.additive


@pytest.mark.parametrize("weight", [0.5, 4.0])
def test_the_edit_is_that_of_dense_least_squares(weight):
    shown, counterfactual, kept = drawn(50, 1), drawn(50, 2), drawn(70, 3)
    sums = moments_of(shown, counterfactual, kept)
    edit = counterfactual_direction(sums, weight, EPSILON, FEATURES)
    ridge = EPSILON * float((sums.shown + weight * sums.kept).trace()) / FEATURES
    expected = least_squares(*(rows.numpy() for rows in (shown, counterfactual, kept)), weight, ridge)
    assert np.allclose((edit.write.T @ edit.read).numpy(), expected, atol=1e-5)
    assert edit.left_out < 1e-6


def test_fewer_rows_are_the_best_of_their_rank():
    shown, counterfactual, kept = drawn(60, 4), drawn(60, 5), drawn(60, 6)
    sums = moments_of(shown, counterfactual, kept)
    root = np.linalg.cholesky(sums.gram(1.0, EPSILON).numpy())
    whole = counterfactual_direction(sums, 1.0, EPSILON, FEATURES)
    target = (whole.write.T @ whole.read).double().numpy() @ root
    left, singular, right = np.linalg.svd(target)
    for rank in (1, 3):
        edit = counterfactual_direction(sums, 1.0, EPSILON, rank)
        assert edit.rank == rank
        best = (left[:, :rank] * singular[:rank]) @ right[:rank]
        assert np.allclose((edit.write.T @ edit.read).double().numpy() @ root, best, atol=1e-5)
        assert edit.left_out == pytest.approx(np.linalg.norm(singular[rank:]) / np.linalg.norm(singular), rel=1e-4)


def test_where_both_sides_read_the_same_nothing_is_edited():
    rows = drawn(40, 7)
    sums = moments_of(rows, rows.clone(), drawn(40, 8))
    assert not sums.differs and counterfactual_direction(sums, 1.0, EPSILON, 4) is None


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), cut=st.integers(1, 39))
def test_moments_do_not_depend_on_how_tokens_are_split(seed, cut):
    shown, counterfactual = drawn(40, seed), drawn(40, seed + 1)
    whole, parts = Moments(FEATURES), Moments(FEATURES)
    whole.add_pair(shown, counterfactual, 0.5)
    parts.add_pair(shown[:cut], counterfactual[:cut], 0.5)
    parts.add_pair(shown[cut:], counterfactual[cut:], 0.5)
    for name in ("shown", "cross", "kept"):
        assert torch.allclose(getattr(whole, name), getattr(parts, name), atol=1e-10)
    assert whole.apart == pytest.approx(parts.apart)


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10**6), share=st.floats(0.05, 0.4))
def test_the_weight_of_what_must_stay_gives_the_share(seed, share):
    shown, counterfactual, kept, _ = planted(noise=0.3, seed=seed)
    sums = moments_of(shown, counterfactual, kept)
    shares = [sums.share(weight, EPSILON) for weight in (0.25, 1.0, 16.0, 256.0)]
    assert shares == sorted(shares, reverse=True) and shares[0] > shares[-1]
    weight = protective_weight([sums], share, 1.0, EPSILON)
    if shares[-1] < share < shares[0]:
        assert sums.share(weight, EPSILON) == pytest.approx(share, abs=0.05)


def test_a_limit_on_what_is_moved_raises_the_weight_where_it_is_met_first():
    shown, counterfactual, kept, concept = planted(noise=0.3)
    sums = moments_of(shown, counterfactual, kept + 0.5 * drawn(300, 9)[:, :1] * concept)  # some of it looks like it
    free = protective_weight([sums], 0.25, 1.0, EPSILON)
    moved = sums.effects(free, EPSILON)[1]
    assert moved > 1e-4 and protective_weight([sums], 0.25, 2 * moved, EPSILON) == free
    bound = protective_weight([sums], 0.25, moved / 3, EPSILON)
    assert bound > free and sums.effects(bound, EPSILON)[1] == pytest.approx(moved / 3, rel=0.2)
    assert sums.effects(bound, EPSILON)[0] < sums.effects(free, EPSILON)[0]


def test_what_is_moved_is_what_the_edit_does_to_the_tokens_that_must_stay():
    shown, counterfactual, kept, _ = planted(noise=0.3)
    sums = moments_of(shown, counterfactual, kept)
    edit = counterfactual_direction(sums, 2.0, EPSILON, FEATURES)
    matrix = (edit.write.T @ edit.read).double()
    parts = [(rows, len(rows)) for rows in (counterfactual, kept)]
    moved = sum((rows @ matrix.T).square().sum() / count for rows, count in parts)
    whole = sum(rows.square().sum() / count for rows, count in parts)
    assert sums.effects(2.0, EPSILON)[1] == pytest.approx(float(moved / whole), rel=1e-4)


def test_the_share_is_what_the_edit_takes_of_the_differences():
    shown, counterfactual, kept, _ = planted(noise=0.3)
    sums = moments_of(shown, counterfactual, kept)
    edit = counterfactual_direction(sums, 2.0, EPSILON, FEATURES)
    apart = shown - counterfactual
    taken = ((shown @ (edit.write.T @ edit.read).double().T) * apart).sum() / apart.square().sum()
    assert sums.share(2.0, EPSILON) == pytest.approx(float(taken), rel=1e-4)


def test_rows_that_do_not_fit_are_refused():
    sums = Moments(FEATURES)
    with pytest.raises(ConfigError, match=r"shape \(tokens, 12\), but got \(3, 5\)"):
        sums.add_kept(torch.zeros(3, 5))
    with pytest.raises(ConfigError, match=r"one shape, but got \(3, 12\) and \(4, 12\)"):
        sums.add_pair(torch.zeros(3, 12), torch.zeros(4, 12))
    assert not sums.kept.any()
