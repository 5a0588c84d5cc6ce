"""What was measured of an adapter, as cards and the Hub show it; `Measured.from_result` reads it."""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import yaml

from unlearning_adapters.adapter.direction import AdapterInfo
from unlearning_adapters.errors import ConfigError

RATES = {
    "concept_rate": "concept shown (lower is better)",
    "context_kept": "rest of the scene right",
    "preservation": "neighbours right",
    "worst_neighbour": "worst neighbour right",
    "valid_rate": "clips that are valid",
}
ARMS = ("base", "with this adapter", "control: random direction")
DATASET = "unlearning-adapters"  # type of the data set of our entries in `model-index`
BENCHMARK = (
    "unlearning-adapters/held-out-prompts"  # the same in `.eval_results`; no data set of this name is on the Hub
)


@dataclass(frozen=True)
class Cell:
    """One rate of one arm: its value, its 95 % interval, and its counts."""

    value: float
    low: float
    high: float
    hits: int
    count: int

    def __str__(self) -> str:
        return f"{self.value:.2f} [{self.low:.2f}, {self.high:.2f}] ({self.hits}/{self.count})"


@dataclass(frozen=True)
class Measured:
    """What a card tells of a measurement.

    Args:
        count: Number of prompts that name the concept.
        arms: For each arm by its title, the base first, a cell per rate; None where nothing was counted.
        strength: Strength of the adapter that was measured; None if the result does not tell.
        neighbours: Number of prompts that name the concept's neighbours; None if it is `count` as well.
    """

    count: int
    arms: Mapping[str, Mapping[str, Cell | None]]
    strength: float | None = None
    neighbours: int | None = None

    @classmethod
    def from_result(cls, result: Mapping[str, Any], method: str = "ridge") -> "Measured":
        """Read the result of `run_demo`, the report of an evaluation, or one concept of `benchmarks/erasure.json`.

        Args:
            result: The dictionary, with a value, an interval and counts per rate and arm.
            method: Method of the adapter, which names its arm in a benchmark.

        Raises:
            ConfigError: If the base, the adapter, the control, or one of their rates is missing or not a number, or the
                report says of itself that it is void.
        """
        if isinstance(result, Mapping) and result.get("status") == "void":
            reasons = " ".join(map(str, result.get("reasons", ())))
            raise ConfigError(f"The measured result is void and cannot go on a card: {reasons[:300]}")
        try:
            benchmark = "arms" in result
            edited = "edited" if "schema" in result else method
            names = ("base", edited, "random") if benchmark else ("base", "attached", "random_direction")
            arms = result["arms"] if benchmark else result
            table = {
                title: {rate: _read_cell(arms[name], rate) for rate in RATES}
                for name, title in zip(names, ARMS, strict=True)
            }
            strength = arms[names[1]].get("strength")
            count = int(result["clips" if benchmark else "n"])
            near = result.get("neighbours")
            return cls(count, table, None if strength is None else float(strength), near if near is None else int(near))
        except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:  # arrays raise the last
            raise ConfigError(
                f"The measured result cannot go on a card: {type(error).__name__} {error}. Give what run_demo "
                f"returned, or one concept of benchmarks/erasure.json with the arms base, {method} and random."
            ) from error

    def cells(self) -> Iterator[tuple[str, Cell, Cell | None]]:
        """Yield each rate that was counted: its name, its cell with the adapter, and that of the base."""
        base, edited, _ = self.arms.values()
        for rate in RATES:
            if (cell := edited[rate]) is not None:
                yield rate, cell, base[rate]


def card_results(info: AdapterInfo, measured: Measured, task: str) -> list[Any]:
    """Return the results of a card's `model-index`.

    Args:
        info: The record of the adapter.
        measured: What was measured.
        task: The task under which the Hub lists the adapter.
    """
    from huggingface_hub import EvalResult

    return [
        EvalResult(
            task_type=task,
            dataset_type=DATASET,
            dataset_name=f"held-out prompts of {' '.join(info.concept.split())} and its neighbours",
            metric_type=rate,
            metric_name=RATES[rate],
            metric_value=round(cell.value, 4),
            metric_args={
                "interval_95": [cell.low, cell.high],
                "count": cell.count,
                "base": None if base is None else round(base.value, 4),
            },
        )
        for rate, cell, base in measured.cells()
    ]


def result_file(info: AdapterInfo, measured: Measured) -> str:
    """Return the same results as YAML for the Hub's folder `.eval_results`, which it reads instead of the card's.

    Args:
        info: The record of the adapter.
        measured: What was measured.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    strength = info.strength if measured.strength is None else measured.strength
    entries = [
        EvalResultEntry(
            dataset_id=BENCHMARK,
            task_id=rate,
            value=round(cell.value, 4),
            notes=f"{RATES[rate]}; {cell}; base {'not counted' if base is None else base}; "
            f"concept {' '.join(info.concept.split())}, method {info.method}, strength {strength:.3g}",
        )
        for rate, cell, base in measured.cells()
    ]
    return yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True, width=10_000)


def _read_cell(arm: Mapping[str, Any], rate: str) -> Cell | None:
    if arm[rate] is None:
        return None
    (low, high), (hits, count) = arm["intervals"][rate], arm["counts"][rate]
    return Cell(float(arm[rate]), float(low), float(high), int(hits), int(count))
