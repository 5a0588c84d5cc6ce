"""Rates with intervals, and tests of paired results; the one place where such numbers are computed."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from math import log

import numpy as np
from scipy import special, stats

from unlearning_adapters.errors import ConfigError

DRAWS = 2000  # of a bootstrap
CONFIDENCE = float(2 * special.ndtr(1.96) - 1)  # 95 %, with z rounded as in the published formula
ROUNDING = 1e-9  # share of the largest value below which differences are none, and two of them alike
ALL_SIGNS = 13  # most pairs of which scipy tries all signs, 2^13, by default


def wilson(hits: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a rate, by scipy; (0, 1) if nothing was counted.

    (p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n) with z = 1.96, E. B. Wilson 1927.
    """
    if count == 0:
        return 0.0, 1.0
    interval, share = stats.binomtest(hits, count).proportion_ci(CONFIDENCE, method="wilson"), hits / count
    return min(float(interval.low), share), max(float(interval.high), share)  # rounding must not put it outside


@dataclass(frozen=True)
class Rate:
    """A share with its counts."""

    hits: int
    count: int

    def __post_init__(self) -> None:
        if not 0 <= self.hits <= self.count:
            raise ConfigError(f"Expected from 0 to {self.count} hits of {self.count}, but got {self.hits}.")

    @classmethod
    def of(cls, flags: Iterable[bool]) -> "Rate":
        """Count how many of some flags are set."""
        values = [bool(flag) for flag in flags]
        return cls(sum(values), len(values))

    @property
    def value(self) -> float | None:
        """The share; None if nothing was counted, which is not zero."""
        return self.hits / self.count if self.count else None

    @property
    def interval(self) -> tuple[float, float]:
        """95 % Wilson interval."""
        return wilson(self.hits, self.count)


@dataclass(frozen=True)
class Paired:
    """How a yes-or-no result differs between two arms on the same prompts and seeds.

    Args:
        count: Number of pairs.
        lost: Pairs with a yes in the first arm only.
        gained: Pairs with a yes in the second arm only.
    """

    count: int
    lost: int
    gained: int

    @classmethod
    def of(cls, first: Sequence[bool], second: Sequence[bool]) -> "Paired":
        """Compare two arms, pair by pair."""
        pairs = list(zip(first, second, strict=True))
        return cls(len(pairs), sum(a and not b for a, b in pairs), sum(b and not a for a, b in pairs))

    @property
    def difference(self) -> float | None:
        """Share in the second arm minus share in the first; None without pairs."""
        return (self.gained - self.lost) / self.count if self.count else None

    @property
    def p_value(self) -> float | None:
        """Two-sided p-value of McNemar's exact test; None without pairs."""
        return mcnemar(self.lost, self.gained) if self.count else None


def mcnemar(lost: int, gained: int) -> float:
    """Return the two-sided p-value of McNemar's exact test: are pairs that changed as likely to change either way?

    min(1, 2 sum_{i <= min(b, c)} C(b + c, i) / 2^(b + c)), Q. McNemar 1947, in its exact (binomial) form.
    """
    return float(stats.binomtest(lost, lost + gained).pvalue) if lost + gained else 1.0


def wilcoxon(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return the two-sided p-value of the signed-rank test: are numbers that changed as likely to change either way?

    F. Wilcoxon 1945, by scipy: pairs without a difference are left out; if none is left, nothing changed and p is 1.
    Exact for up to 50 pairs (13, where differences are alike), so that with 5 or fewer no p is below 0.05.

    Args:
        first: A number per pair in the first arm.
        second: The same in the second arm.

    Returns:
        None without pairs.
    """
    one, other = (np.asarray(side, dtype=np.float64) for side in (first, second))
    if not one.size:
        return None
    step = ROUNDING * max(np.abs(one).max(), np.abs(other).max())
    change = np.rint((other - one) / step) if step > 0 else np.zeros_like(one)  # rounding must not break ties
    change = change[change != 0]
    if not change.size:
        return 1.0
    tied = len(np.unique(np.abs(change))) < len(change)
    method = stats.PermutationMethod() if tied and len(change) <= ALL_SIGNS else "auto"  # older scipy would estimate
    return float(stats.wilcoxon(change, method=method).pvalue)


def bootstrap_difference(
    first: Sequence[float], second: Sequence[float], seed: int = 0, draws: int = DRAWS
) -> tuple[float, float, float] | None:
    """Return the mean of `second - first` over pairs, and its 95 % percentile interval; None without pairs.

    Pairs are drawn again with replacement, B. Efron 1979.
    """
    change = np.asarray(second, dtype=np.float64) - np.asarray(first, dtype=np.float64)
    return bootstrap_mean(change.tolist(), seed, draws)


def bootstrap_mean(values: Sequence[float], seed: int = 0, draws: int = DRAWS) -> tuple[float, float, float] | None:
    """Return the mean of some values and its 95 % percentile interval; None if there are none."""
    array = np.asarray(values, dtype=np.float64)
    if not array.size:
        return None
    index = np.random.default_rng(seed).integers(array.size, size=(draws, array.size))
    low, high = np.percentile(array[index].mean(axis=1), (2.5, 97.5))
    return float(array.mean()), float(low), float(high)


def correct_rate(rate: Rate, sensitivity: float, specificity: float) -> float | None:
    """Return the rate that a detector of known error stands for, cut to 0 to 1.

    (p + specificity - 1) / (sensitivity + specificity - 1), W. J. Rogan and B. Gladen 1978.

    Args:
        rate: What the detector counted.
        sensitivity: Share of what is there that it sees.
        specificity: Share of what is not there that it does not see; 1 minus its false-positive floor.

    Returns:
        None if nothing was counted, or if the detector is no better than chance.
    """
    better = sensitivity + specificity - 1
    if rate.value is None or better <= 0:
        return None
    return min(1.0, max(0.0, (rate.value + specificity - 1) / better))


def harmonic_mean(values: Sequence[float | None]) -> float | None:
    """Return the harmonic mean; 0 if one value is 0, None if one is None or there are none."""
    numbers = [value for value in values if value is not None]
    if not values or len(numbers) < len(values):
        return None
    return 0.0 if min(numbers) <= 0 else len(numbers) / sum(1 / value for value in numbers)


def entropy(counts: Mapping[str, int]) -> float | None:
    """Return the entropy of a histogram in bits, 0 if all is one value; None if it is empty."""
    total = sum(counts.values())
    if not total:
        return None
    shares = [count / total for count in counts.values() if count]
    return max(0.0, -sum(share * log(share, 2) for share in shares))
