"""What a search varies, and how settings compare: plain data and pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot
from typing import Any

from scipy.stats import spearmanr

from unlearning_adapters.config import DEFAULT_EPSILON, BuildConfig
from unlearning_adapters.errors import ConfigError
from unlearning_adapters.methods.method import Range
from unlearning_adapters.methods.registry import METHODS

STRENGTH = (0.25, 2.0)
FACTOR = (0.0, 2.0)  # of a block; with the largest strength it reaches the limit of 4
MAX_KNOTS = 8  # factors that a trial chooses; blocks between knots are interpolated
ERASED = 0.15  # leftover below which the concept counts as gone


@dataclass(frozen=True)
class Trial:
    """One setting that was tried.

    Args:
        number: Its number in the study.
        settings: The `BuildConfig` as a dictionary.
        leftover: The 0.9 quantile of what is left of the concept, on the validation prompts: one of the two aims.
        mean_leftover: The mean.
        drift: Mean relative change of what must not change, on the validation prompts: the other aim.
    """

    number: int
    settings: Mapping[str, Any]
    leftover: float
    mean_leftover: float
    drift: float

    @property
    def config(self) -> BuildConfig:
        """The settings."""
        return BuildConfig.from_dict(self.settings)

    @property
    def place(self) -> tuple[float, float]:
        """Leftover and drift."""
        return self.leftover, self.drift

    def to_dict(self) -> dict[str, Any]:
        """Return the trial as plain JSON types."""
        return {**asdict(self), "settings": dict(self.settings)}


def suggest(trial: Any, blocks: Sequence[int], pairs: int, seed: int, one_strength: bool = False) -> BuildConfig:
    """Let an Optuna trial choose settings.

    Args:
        trial: An `optuna.Trial`.
        blocks: Indices of the blocks that have sites, in order; with fewer than two nothing is chosen among them.
        pairs: Number of pairs that are used.
        seed: Seed of the build.
        one_strength: Whether all blocks have the same strength.
    """
    ranges = {name: method.searched for name, method in METHODS.items() if method.searched is not None}
    method = trial.suggest_categorical("method", tuple(ranges))
    settings: dict[str, Any] = {"method": method, "strength": trial.suggest_float("strength", *STRENGTH)}
    settings |= {name: _value(trial, name, values) for name, values in ranges[method].items()}
    # Without a choice of its own nearly no trial would take all blocks, which is the default.
    if len(blocks) > 1 and not trial.suggest_categorical("every_block", (True, False)):
        ends = [trial.suggest_int(name, 0, len(blocks) - 1) for name in ("one_end", "other_end")]
        settings["blocks"] = tuple(blocks[min(ends) : max(ends) + 1])
    if len(blocks) > 1 and not one_strength and not trial.suggest_categorical("one_strength", (True, False)):
        at_knots = [trial.suggest_float(f"factor_{knot}", *FACTOR) for knot in range(min(len(blocks), MAX_KNOTS))]
        factors = dict(zip(blocks, interpolated(at_knots, len(blocks)), strict=True))
        settings["block_strengths"] = {block: factors[block] for block in settings.get("blocks", blocks)}
    return BuildConfig(pairs=pairs, seed=seed, **settings)


def _value(trial: Any, name: str, values: Range) -> float:
    suggest_number = trial.suggest_int if isinstance(values.low, int) else trial.suggest_float
    number: float = suggest_number(name, values.low, values.high, log=values.log)
    return number


def interpolated(knots: Sequence[float], count: int) -> tuple[float, ...]:
    """Return values at `count` evenly spaced places, linear between evenly spaced knots, the outer ones at the ends.

    Args:
        knots: Values at the knots, one or more.
        count: Number of places, at least that of the knots; equally many take the knots as they are.

    Example:
        >>> interpolated([0.0, 1.0, 0.0], 5)
        (0.0, 0.5, 1.0, 0.5, 0.0)
    """
    if not 1 <= len(knots) <= count:
        raise ConfigError(f"Expected 1 to {count} knots for {count} blocks, but got {len(knots)}. Give fewer knots.")
    values = []
    for place in range(count):
        # Whole numbers, so that a place on a knot takes its value exactly.
        left, rest = divmod(place * (len(knots) - 1), max(1, count - 1))
        right = min(left + 1, len(knots) - 1)
        share = rest / max(1, count - 1)
        values.append((1 - share) * knots[left] + share * knots[right])
    return tuple(values)


def first_guesses(calibrated: float) -> list[dict[str, Any]]:
    """Return what is tried first: the default build, the paper's methods, and the default stronger.

    All blocks take part, at one strength.

    Args:
        calibrated: Strength that the default build calibrates.
    """
    alike = {"every_block": True, "one_strength": True}
    ridge = {"method": "ridge", "rank": 1, "epsilon": DEFAULT_EPSILON, **alike}
    stronger = [min(factor * calibrated, STRENGTH[1]) for factor in (1.25, 1.5)]
    return [
        {**ridge, "strength": calibrated},
        {"method": "cpca", "strength": 1.0, "contrast": 1.0, **alike},
        {"method": "mean", "strength": 1.0, **alike},
        *({**ridge, "strength": strength} for strength in stronger),
    ]


def trials_of(records: Sequence[Any]) -> tuple[Trial, ...]:
    """Return Optuna's records of complete trials as plain data."""
    return tuple(
        Trial(
            item.number, item.user_attrs["settings"], item.values[0], item.user_attrs["mean_leftover"], item.values[1]
        )
        for item in records
    )


def pareto_front(study: Any) -> tuple[Trial, ...]:
    """Return the trials that no other trial beats in both aims, sorted by leftover; of equal trials, the first.

    Args:
        study: An `optuna.Study` that minimises leftover and drift.
    """
    best = sorted(trials_of(study.best_trials), key=lambda trial: (*trial.place, trial.number))
    return tuple({trial.place: trial for trial in reversed(best)}.values())[::-1]


def choose(front: Sequence[Trial], erased: float = ERASED) -> Trial:
    """Return the trial that changes least of those that leave at most `erased`; if none does, the one nearest to 0, 0.

    Both aims are shares, of the concept and of what a prompt does, so that their plain distance is meaningful.
    """
    candidates = [trial for trial in front if trial.leftover <= erased]
    return (
        min(candidates, key=lambda trial: trial.drift)
        if candidates
        else min(front, key=lambda trial: hypot(*trial.place))
    )


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation by scipy, ties sharing their mean rank; None if one side does not vary."""
    if len(set(one)) < 2 or len(set(other)) < 2:
        return None
    return float(spearmanr(one, other).statistic)
