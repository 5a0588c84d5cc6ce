"""Rates, paired tests and corrections against values that were worked out by hand or by brute force."""

from itertools import product
from math import comb, sqrt

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from unlearning_adapters.errors import ConfigError
from unlearning_adapters.evaluation.metrics import FORGET, GENERIC, NEIGHBOUR, PARAPHRASE, Sample, measure_samples
from unlearning_adapters.evaluation.rates import (
    Paired,
    Rate,
    bootstrap_difference,
    bootstrap_mean,
    correct_rate,
    entropy,
    harmonic_mean,
    mcnemar,
    wilcoxon,
    wilson,
)
from unlearning_adapters.evaluation.reports.paired import compare_arms


def test_wilson_equals_published_values() -> None:
    published = ((81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718))
    for hits, count, low, high in published:  # R. G. Newcombe 1998, table I
        assert wilson(hits, count) == pytest.approx((low, high), abs=1e-4)


@given(st.integers(0, 2000), st.integers(1, 2000))
def test_wilson_equals_its_formula(hits: int, count: int) -> None:
    hits, z = min(hits, count), 1.96
    share, extra = hits / count, z * z / count
    half = z * sqrt(share * (1 - share) / count + extra / (4 * count))
    expected = ((share + extra / 2 - half) / (1 + extra), (share + extra / 2 + half) / (1 + extra))
    assert wilson(hits, count) == pytest.approx(expected, abs=1e-12)


@given(st.integers(0, 300), st.integers(1, 300))
def test_wilson_holds_the_share_and_narrows(hits: int, count: int) -> None:
    hits = min(hits, count)
    low, high = wilson(hits, count)
    assert 0 <= low <= hits / count <= high <= 1
    wider = wilson(hits * 10, count * 10)
    assert wider[1] - wider[0] < high - low


def test_a_rate_of_nothing_is_none() -> None:
    assert Rate.of([]).value is None and Rate.of([]).interval == (0.0, 1.0)
    assert Rate.of([True, False]).value == 0.5
    with pytest.raises(ConfigError, match="from 0 to 2 hits of 2, but got 3"):
        Rate(3, 2)


@given(st.integers(0, 12), st.integers(0, 12))
def test_mcnemar_counts_all_ways_in_which_pairs_could_have_changed(lost: int, gained: int) -> None:
    changed = lost + gained
    as_extreme = sum(
        comb(changed, index) for index in range(changed + 1) if comb(changed, index) <= comb(changed, lost)
    )
    assert mcnemar(lost, gained) == pytest.approx(as_extreme / 2**changed)


def signed_ranks(change: list[float]) -> float:
    """Wilcoxon's test by trying all signs: how many of them lie at least as far from the middle."""
    sizes = np.abs(change)
    ranks = [(sizes < size).sum() + ((sizes == size).sum() + 1) / 2 for size in sizes]
    middle = sum(ranks) / 2
    far = [abs(sum(r for r, up in zip(ranks, signs, strict=True) if up) - middle)
           for signs in product((False, True), repeat=len(ranks))]  # fmt: skip
    found = abs(sum(r for r, d in zip(ranks, change, strict=True) if d > 0) - middle)
    return float(np.mean([value >= found - 1e-9 for value in far]))


def test_wilcoxon_by_hand() -> None:
    # Ranks 1 to 5 of +1 -2 +3 +4 +5: those below zero sum to 2. Of 32 ways to choose signs three come to 2 or less,
    # {}, {1}, {2}, and as many on the other side: 6 / 32.
    assert wilcoxon([0.0] * 5, [1.0, -2.0, 3.0, 4.0, 5.0]) == 6 / 32
    assert wilcoxon([10, 10, 10], [11, 12, 13]) == 2 / 8  # of three pairs none is rarer
    assert wilcoxon([0.0], [1.0]) == 1.0


@pytest.mark.parametrize("change", [[1, -1, 2, 2, 3], [0.1, 0.1, -0.1, 0.4], [3, 1, -2, 5, 8, -9, 4, 7], [2, 2, 2, 2]])
def test_wilcoxon_tries_all_signs_with_ties_and_without(change: list[float]) -> None:
    base = [0.3 * index for index in range(len(change))]
    found = wilcoxon(base, [a + b for a, b in zip(base, change, strict=True)])  # rounding makes ties differ
    assert found == pytest.approx(signed_ranks(change))
    assert wilcoxon([0.0] * len(change), [-x for x in change]) == pytest.approx(found)


def test_wilcoxon_leaves_out_pairs_without_a_difference() -> None:
    assert wilcoxon([5.0] * 7, [6, 5, 3, 8, 5, 9, 10]) == wilcoxon([5.0] * 5, [6, 3, 8, 9, 10]) == 6 / 32
    assert wilcoxon([1.0, 2.0, 3.0], [1.0, 2.0, 3.0]) == 1.0 == wilcoxon([0.0], [0.0])
    assert wilcoxon([0.1 + 0.2], [0.3]) == 1.0  # rounding is no difference
    assert wilcoxon([], []) is None


def test_wilcoxon_of_many_pairs_agrees_with_chance() -> None:
    draw = np.random.default_rng(0)
    values = draw.normal(size=(2, 200))
    assert (wilcoxon(values[0], values[1]) or 0) > 0.05
    assert (wilcoxon(values[0], values[0] + 0.5 + values[1]) or 1) < 1e-6


def test_paired_counts_what_changed() -> None:
    test = Paired.of([True, True, False, False], [True, False, True, True])
    assert (test.count, test.lost, test.gained, test.difference) == (4, 1, 2, 0.25)
    assert Paired.of([], []).p_value is None and Paired.of([], []).difference is None


def test_the_bootstrap_covers_the_mean() -> None:
    rng = np.random.default_rng(0)
    covered = 0
    for trial in range(60):
        mean = bootstrap_mean(rng.normal(0.3, 1.0, size=40).tolist(), seed=trial, draws=400)
        assert mean is not None
        covered += mean[1] <= 0.3 <= mean[2]
    assert 50 <= covered <= 60
    assert bootstrap_mean([]) is None
    assert bootstrap_difference([1.0, 2.0], [2.0, 3.0]) == (1.0, 1.0, 1.0)


def test_the_correction_inverts_what_a_detector_does() -> None:
    for truth, sensitivity, specificity in product((0.0, 0.2, 1.0), (0.8, 1.0), (0.9, 1.0)):
        seen = truth * sensitivity + (1 - truth) * (1 - specificity)
        assert correct_rate(Rate(round(seen * 1000), 1000), sensitivity, specificity) == pytest.approx(truth, abs=1e-2)
    assert correct_rate(Rate(0, 0), 1, 1) is None and correct_rate(Rate(1, 2), 0.5, 0.5) is None


def test_small_sums() -> None:
    assert harmonic_mean([1.0, 0.5]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.0, 1.0]) == 0.0 and harmonic_mean([None, 1.0]) is None and harmonic_mean([]) is None
    assert entropy({"a": 2, "b": 2}) == 1.0 and entropy({"a": 5}) == 0.0 and entropy({}) is None


def sample(role: str, valid: bool, seen: str | None, asked: str, index: int, **others: object) -> Sample:
    labels = {} if seen is None else {"colour": seen, "shape": "circle"}
    present = None if seen is None else seen == "red"
    truth = {"colour": asked, "shape": "circle"}
    return Sample(role, valid, present, labels, truth, key=(role, str(index), 0), **others)  # type: ignore[arg-type]


SAMPLES = [
    sample(FORGET, True, "red", "red", 1, motion=2.0),
    sample(FORGET, True, "green", "red", 2, motion=4.0),
    sample(FORGET, True, "unknown", "red", 3),
    sample(FORGET, False, None, "red", 4),
    sample(NEIGHBOUR, True, "green", "green", 1),
    sample(NEIGHBOUR, True, "red", "green", 2),
    sample(NEIGHBOUR, False, None, "blue", 3),
    sample(PARAPHRASE, True, "green", "red", 1),
    sample(GENERIC, True, "red", "green", 1),
]


def test_every_rate_is_what_counting_by_hand_gives() -> None:
    found = measure_samples(SAMPLES, "colour")
    counted = {
        "concept_rate": (1, 3), "erased": (1, 4), "valid_rate": (7, 9), "context_kept": (3, 3), "preservation": (1, 3),
        "paraphrase_erased": (1, 1), "generic_rate": (1, 1), "floor": (1, 2), "error_rate": (0, 9),
    }  # fmt: skip
    assert {name: (getattr(found, name).hits, getattr(found, name).count) for name in counted} == counted
    assert found.landing == {"red": 1, "green": 1, "unknown": 1} and found.displacement == 3.0
    assert found.leakage == {
        "green": {"green": 1, "red": 1},
        "blue": {"not valid": 1},
        "red": {"red": 1, "green": 1, "unknown": 1, "not valid": 1},
    }
    assert found.worst_neighbour == Rate(0, 1)
    assert found.score == pytest.approx(3 / (4 + 3 + 1))


def test_arms_are_compared_pair_by_pair() -> None:
    base = [sample(FORGET, True, "red", "red", index, motion=2.0) for index in range(1, 5)]
    edited = [item for item in SAMPLES if item.role == FORGET]
    found = compare_arms(base, edited, "colour")
    assert found["erased"] == {"count": 4, "lost": 0, "gained": 1, "difference": 0.25, "p_value": 1.0}
    assert found["concept_shown"]["lost"] == 3 and found["erased_of_shown"]["hits"] == 1
    p_value = found["motion"].pop("p_value")
    assert p_value == wilcoxon([2.0, 2.0], [2.0, 4.0]) == 1.0
    assert found["motion"] == {"value": 1.0, "interval": [0.0, 2.0], "count": 2}
    assert found["neighbour_right"]["p_value"] is None
