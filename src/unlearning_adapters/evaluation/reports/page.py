"""The report as one HTML page: no script, no external resource, light and dark, frames blurred by default."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from markupsafe import Markup

from .gallery import gallery
from .numbers import rate_of
from .plots import Mark, curves, intervals, matrix
from .rendering import render
from .report import Report

PAGE = "index.html"
CARDS = (
    ("erased", "Erased", "valid, known, and without the concept"),
    ("preservation", "Neighbours right", "near things that must survive"),
    ("worst_neighbour", "Worst neighbour", "the one that suffered most"),
    ("context_kept", "Rest of the scene", "what else the prompt asked for"),
    ("valid_rate", "Valid clips", "neither noise nor blank"),
)
RATES = (
    ("concept shown", "concept_rate"),
    ("erased", "erased"),
    ("paraphrases", "paraphrase_erased"),
    ("neighbours", "preservation"),
    ("worst", "worst_neighbour"),
    ("scene", "context_kept"),
    ("valid", "valid_rate"),
    ("errors", "error_rate"),
)
TESTS = (("erased", "erased"), ("neighbours right", "neighbour_right"), ("scene right", "context_right"))
ARM_PLOTS = (("erased", "Erased, of clips that ask for the concept"), ("preservation", "Neighbours right"))
CURVES = (("erased", "erased"), ("neighbours", "preservation"), ("context", "context_kept"))


def write_page(report: Report, folder: str | Path, clips: str | Path | None = None) -> Path:
    """Write the page of a report and return its path.

    Args:
        report: The report.
        folder: Folder to write to.
        clips: Folder of the run, whose clips are shown; None takes `folder`. Clips that are not there are left out.
    """
    data, path = report.data, Path(folder) / PAGE
    page = render(
        "page.html",
        data=data,
        arms=list(data["arms"].values()),
        edited=data["arms"][report.edited],
        cards=CARDS,
        rates=RATES,
        tests=TESTS,
        arm_plots=[(title, _arm_plot(data, key, title)) for key, title in ARM_PLOTS],
        sections=gallery(report, Path(folder if clips is None else clips)),
        strength_plot=_strength_plot(data),
        leakage_plots=_leakage_plots(data, report.edited),
        frame_plot=_frame_plot(data, report.edited),
        facts=_facts(data),
    )
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(page, encoding="utf-8")
    return path


def _arm_plot(data: Mapping[str, Any], key: str, title: str) -> Markup:
    marks = []
    for arm in data["arms"].values():
        rate = rate_of(arm, key)
        low, high = rate["interval"] if rate["value"] is not None else (0.0, 0.0)
        marks.append(Mark(arm["title"], rate["value"], low, high, arm["part"]))
    return intervals(marks, title)


def _strength_plot(data: Mapping[str, Any]) -> Markup | None:
    """Return the rates by strength; None if fewer than two strengths were run."""
    arms = [arm for arm in data["arms"].values() if arm["part"] in ("edited", "sweep") and arm["strength"] is not None]
    at = {arm["strength"]: arm for arm in (data["arms"]["base"] | {"strength": 0.0}, *arms)}
    if len(at) < 3:
        return None
    series = {}
    for name, key in CURVES:
        rates = [(strength, rate_of(at[strength], key)) for strength in sorted(at)]
        series[name] = [(x, rate["value"], *rate["interval"]) for x, rate in rates if rate["value"] is not None]
    return curves(series, "Strength against erasure and preservation", "strength of the adapter (0 is the base)")


def _leakage_plots(data: Mapping[str, Any], edited: str) -> list[tuple[str, Markup]]:
    """Return what is seen by what is asked for, with the adapter and as a change; nothing if no factor is judged."""
    counts = [data["arms"][name]["details"]["leakage"] for name in ("base", edited)]
    if not counts[0]:
        return []
    rows = list(counts[0])
    columns = list(dict.fromkeys([*rows, *(seen for arm in counts for row in arm.values() for seen in row)]))
    before, after = (
        {(row, column): share for row in rows for column, share in _shares(arm.get(row, {}))} for arm in counts
    )
    change = {key: after.get(key, 0.0) - before.get(key, 0.0) for key in {*before, *after}}
    return [
        ("Edited", matrix(rows, columns, after, "Seen by asked, edited")),
        ("Edited minus base", matrix(rows, columns, change, "Seen by asked, edited minus base", signed=True)),
    ]


def _shares(row: Mapping[str, int]) -> list[tuple[str, float]]:
    total = sum(row.values())
    return [(column, count / total) for column, count in row.items()]


def _frame_plot(data: Mapping[str, Any], edited: str) -> Markup | None:
    """Return how often the concept is seen in each frame; None if no detector reads frames."""
    series = {}
    for label, arm in (("base", "base"), ("edited", edited)):
        rates = data["arms"][arm]["detectors"][data["main_detector"]]["per_frame"]
        series[label] = [(float(index), rate, rate, rate) for index, rate in enumerate(rates)]
    return curves(series, "Concept by frame", "frame") if any(series.values()) else None


def _facts(data: Mapping[str, Any]) -> str:
    facts = {
        "conditions": data["conditions"],
        "nearest to the pairs": data.get("nearest", {}),
        "arms": {name: arm["about"] for name, arm in data["arms"].items() if arm["about"]},
    }
    return json.dumps(facts, indent=1)
