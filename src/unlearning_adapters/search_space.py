"""What a search varies, and how settings compare: plain data and pure functions."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from math import hypot
from typing import Any

from .config import BuildConfig

SEARCHED_METHODS = ("ridge", "cpca", "mean", "pca", "leace")
MAX_RANK = 4
EPSILON = (1e-4, 1.0)
CONTRAST = (0.1, 10.0)
STRENGTH = (0.25, 2.0)
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


def suggest(trial: Any, blocks: Sequence[int], pairs: int, seed: int) -> BuildConfig:
    """Let an Optuna trial choose settings.

    Args:
        trial: An `optuna.Trial`.
        blocks: Indices of the blocks that have sites, in order; with fewer than two nothing is chosen among them.
        pairs: Number of pairs that are used.
        seed: Seed of the build.
    """
    method = trial.suggest_categorical("method", SEARCHED_METHODS)
    chosen: dict[str, Any] = {"method": method, "strength": trial.suggest_float("strength", *STRENGTH)}
    if method in ("ridge", "pca"):
        chosen["rank"] = trial.suggest_int("rank", 1, MAX_RANK)
    if method == "ridge":
        chosen["epsilon"] = trial.suggest_float("epsilon", *EPSILON, log=True)
    if method == "cpca":
        chosen["contrast"] = trial.suggest_float("contrast", *CONTRAST, log=True)
    # Without a choice of its own nearly no trial would take all blocks, which is the default.
    if len(blocks) > 1 and not trial.suggest_categorical("every_block", (True, False)):
        ends = [trial.suggest_int(name, 0, len(blocks) - 1) for name in ("one_end", "other_end")]
        chosen["blocks"] = tuple(blocks[min(ends) : max(ends) + 1])
    return BuildConfig(pairs=pairs, seed=seed, **chosen)


def first_guesses(calibrated: float) -> list[dict[str, Any]]:
    """Return what is tried first, with all blocks: the default build, the paper's methods, and the default stronger.

    Args:
        calibrated: Strength that the default build calibrates.
    """
    ridge = {"method": "ridge", "rank": 1, "epsilon": 0.01, "every_block": True}
    stronger = [min(factor * calibrated, STRENGTH[1]) for factor in (1.25, 1.5)]
    return [
        {**ridge, "strength": calibrated},
        {"method": "cpca", "strength": 1.0, "contrast": 1.0, "every_block": True},
        {"method": "mean", "strength": 1.0, "every_block": True},
        *({**ridge, "strength": strength} for strength in stronger),
    ]


def pareto_front(trials: Sequence[Trial]) -> tuple[Trial, ...]:
    """Return the trials that no other beats in both aims, the one that leaves least first; of equal ones the first."""
    front: list[Trial] = []
    for trial in sorted(trials, key=lambda item: (*item.place, item.number)):
        if not front or trial.drift < front[-1].drift:
            front.append(trial)
    return tuple(front)


def choose(front: Sequence[Trial], erased: float = ERASED) -> Trial:
    """Return the trial that changes least of those that leave at most `erased`; if none does, the one nearest to 0, 0.

    Both aims are shares, of the concept and of what a prompt does, so that their plain distance is meaningful.
    """
    gone = [trial for trial in front if trial.leftover <= erased]
    return min(gone, key=lambda trial: trial.drift) if gone else min(front, key=lambda trial: hypot(*trial.place))


def rank_correlation(one: Sequence[float], other: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation, equal values sharing their mean rank; None if one side does not vary."""
    first, second = _ranks(one), _ranks(other)
    spread = [sum((rank - (len(ranks) - 1) / 2) ** 2 for rank in ranks) for ranks in (first, second)]
    if not spread[0] or not spread[1]:
        return None
    middle = (len(first) - 1) / 2
    shared = sum((a - middle) * (b - middle) for a, b in zip(first, second, strict=True))
    return float(shared / (spread[0] * spread[1]) ** 0.5)


def _ranks(values: Sequence[float]) -> list[float]:
    """Return the rank of each value from 0 on; equal ones share the mean of their ranks."""
    return [
        sum(other < value for other in values) + (sum(other == value for other in values) - 1) / 2 for value in values
    ]
