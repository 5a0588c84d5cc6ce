"""What a benchmark reports: rows with a ratio and a target, as JSON and as a table."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from statistics import median
from typing import Any, Literal

import torch

LIBRARIES = ("torch", "diffusers", "peft", "transformers", "numpy")
# Ratios are judged as they are shown: the third digit of a time is noise.
DIGITS = 2


@dataclass(frozen=True)
class Spread:
    """Several measurements of one quantity.

    Args:
        median: Their median.
        min: The smallest.
        max: The largest.
    """

    median: float
    min: float
    max: float

    @classmethod
    def of(cls, values: Sequence[float]) -> "Spread":
        """Return the spread of one or more values."""
        return cls(median(values), min(values), max(values))


@dataclass(frozen=True)
class Row:
    """One comparison.

    Args:
        name: Short name, "<benchmark>/<case>/<against>".
        what: What was measured, and against what.
        unit: Unit of both sides, "s" or "bytes".
        ours: This package's side.
        other: The other side.
        formula: What the ratio is, "ours / other" or "other / ours".
        ratio: Ratio of both, taken round by round; its median is what counts.
        target: The promise, such as "<= 4", or None for a row that informs only.
        met: Whether the ratio keeps it; None without a target.
        reason: Why a promise is missed.
    """

    name: str
    what: str
    unit: Literal["s", "bytes"]
    ours: Spread
    other: Spread
    formula: Literal["ours / other", "other / ours"]
    ratio: Spread
    target: str | None
    met: bool | None
    reason: str


def compare(
    name: str,
    what: str,
    ours: Sequence[float],
    other: Sequence[float],
    *,
    at_most: float | None = None,
    at_least: float | None = None,
    if_missed: str = "",
    unit: Literal["s", "bytes"] = "s",
) -> Row:
    """Return the row of two sides that were measured in turn.

    Args:
        name: Short name.
        what: What was measured, and against what.
        ours: Measurements of this package's side.
        other: Those of the other side, as many, or a single one that stands for all.
        at_most: Promise on `ours / other`.
        at_least: Promise on `other / ours`; it makes the row a speed-up.
        if_missed: Reason to give if the promise is missed.
        unit: Unit of both sides.
    """
    others = list(other) * len(ours) if len(other) == 1 else list(other)
    faster = at_least is not None
    ratio = Spread.of([b / a if faster else a / b for a, b in zip(ours, others, strict=True)])
    bound = at_least if faster else at_most
    met = None
    if bound is not None:
        met = round(ratio.median, DIGITS) >= bound if faster else round(ratio.median, DIGITS) <= bound
    return Row(
        name=name,
        what=what,
        unit=unit,
        ours=Spread.of(ours),
        other=Spread.of(other),
        formula="other / ours" if faster else "ours / other",
        ratio=ratio,
        target=None if bound is None else f"{'>=' if faster else '<='} {bound:g}",
        met=met,
        reason=if_missed if met is False else "",
    )


def environment() -> dict[str, Any]:
    """Return what the numbers depend on: processor, threads, load, versions."""
    return {
        "cpu": _cpu_name(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "load_average": round(os.getloadavg()[0], 2) if hasattr(os, "getloadavg") else None,
        "system": platform.system(),
        "python": platform.python_version(),
        **{name: version(name) for name in LIBRARIES},
    }


def to_json(rows: Sequence[Row], conditions: dict[str, Any]) -> dict[str, Any]:
    """Return all rows as plain JSON types."""
    return {"environment": conditions, "rows": [asdict(row) for row in rows]}


def from_json(report: Mapping[str, Any]) -> list[Row]:
    """Return the rows of a report."""
    spreads = ("ours", "other", "ratio")
    return [Row(**{**row, **{name: Spread(**row[name]) for name in spreads}}) for row in report["rows"]]


def to_table(rows: Sequence[Row], conditions: dict[str, Any]) -> str:
    """Return all rows as a Markdown table, with what was measured and the reasons of what was missed below it."""
    lines = [
        grid(rows),
        *(f"- {row.name}: {row.what}." + (f" Missed: {row.reason}" if row.reason else "") for row in rows),
    ]
    return "\n".join([*lines, "", ", ".join(f"{key} {value}" for key, value in conditions.items())])


def grid(rows: Sequence[Row]) -> str:
    """Return rows as a Markdown table."""
    lines = ["| row | ours | other | ratio (min to max) | target | met |", "|---|---|---|---|---|---|"]
    for row in rows:
        met = {True: "yes", False: "**no**", None: ""}[row.met]
        ratio = f"{row.formula} = {row.ratio.median:.3g} ({row.ratio.min:.3g} to {row.ratio.max:.3g})"
        sides = [amount(side.median, row.unit) for side in (row.ours, row.other)]
        lines.append(f"| {row.name} | {sides[0]} | {sides[1]} | {ratio} | {row.target or ''} | {met} |")
    return "\n".join([*lines, ""])


def amount(value: float, unit: str) -> str:
    """Return a time or a size for people."""
    if unit == "bytes":
        return f"{value / 1e9:.3g} GB" if value >= 1e9 else f"{value / 1e6:.3g} MB"
    return f"{value:.3g} s" if value >= 1 else f"{value * 1e3:.3g} ms"


def _cpu_name() -> str:
    listing = Path("/proc/cpuinfo")
    if listing.is_file():
        for line in listing.read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()
