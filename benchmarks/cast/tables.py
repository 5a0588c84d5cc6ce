"""The Markdown page of the results: rates with 95 % Wilson intervals over all clips, means of numbers."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from benchmarks.worlds import markdown_table
from unlearning_adapters.evaluation.rates import Rate

from . import counting
from .arms import ARMS
from .implied import ARMS as IMPLIED_ARMS
from .standins import VARIANTS
from .store import Cell

NONE = "-"  # nothing was counted


def text_of(rate: Rate) -> str:
    """Return a rate with its interval and its number of clips."""
    if rate.value is None:
        return NONE
    low, high = rate.interval
    return f"{rate.value:.3f} ({low:.3f} to {high:.3f}), {rate.count}"


def rate_of(cells: Iterable[Mapping[str, Any]], key: str) -> Rate:
    """Return the rate of several cells together; cells without that count are left out."""
    return counting.pooled(cell[key] for cell in cells if key in cell)


def mean_of(cells: Iterable[Mapping[str, Any]], key: str, form: str = "{:.4f}") -> str:
    """Return the mean of a number over the cells that have it."""
    values = [cell[key] for cell in cells if cell.get(key) is not None]
    return form.format(float(np.mean(values))) if values else NONE


def ratio(one: Rate, base: Rate) -> str:
    """Return a rate as a part of the base's."""
    return f"{one.value / base.value:.3f}" if one.value is not None and base.value else NONE


def worst_text(cells: Sequence[Mapping[str, Any]]) -> str:
    """Return the kept value that survived least."""
    found = counting.worst(cell["by kept"] for cell in cells if "by kept" in cell)
    return NONE if found is None else f"{found[1].hits}/{found[1].count} {found[0]}"


MASS_RATES = (
    "by name",
    "another",
    "by description",
    "kept",
    "kept, named",
    "kept, never named",
    "look-alikes",
    "rest",
    "valid",
)
COSTS = (("drift", "{:.4f}"), ("build seconds", "{:.1f}"), ("bytes", "{:,.0f}"), ("rank", "{:.0f}"))


def mass_table(cells: Mapping[str, Cell]) -> str:
    """Return the table of mass erasure: a row for each size and arm, all draws together."""
    head = ["erased", "arm", *MASS_RATES, "kept, of base", "erased x kept", "worst kept"]
    head += [name for name, _ in COSTS] + ["call, attached", "call, fused"]
    rows = []
    for size in sorted({int(name.split("/")[0]) for name in cells}):
        base = group(cells, size, "base")
        for arm in ("base", *ARMS):
            items = group(cells, size, arm)
            if not items:
                continue
            errors = [cell["error"] for cell in items if "error" in cell]
            if errors:
                rows.append([str(size), arm, errors[0], *[""] * (len(head) - 3)])
                continue
            kept = rate_of(items, "kept")
            calls = [cell["call"] for cell in items if "call" in cell]
            rows.append(
                [
                    str(size),
                    arm,
                    *(text_of(rate_of(items, key)) for key in MASS_RATES),
                    ratio(kept, rate_of(base, "kept")),
                    score(rate_of(items, "by name"), kept),
                    worst_text(items),
                    *(mean_of(items, key, form) for key, form in COSTS),
                    *(mean_of(calls, key, "{:.2f}") for key in ("attached", "fused")),
                ]
            )
    return markdown_table(head, rows)


def group(cells: Mapping[str, Cell], size: int, arm: str) -> list[Cell]:
    """Return the cells of a size and an arm, of all draws."""
    return [cell for name, cell in cells.items() if (name.split("/")[0], name.split("/", 2)[2]) == (str(size), arm)]


def score(shown: Rate, kept: Rate) -> str:
    """Return the share that is not shown times the share that is kept."""
    return NONE if shown.value is None or kept.value is None else f"{(1 - shown.value) * kept.value:.3f}"


SINGLE_RATES = ("by name", "by description", "kept", "look-alikes", "rest", "valid")


def single_table(cells: Mapping[str, Cell]) -> str:
    """Return the table of single concepts: all of a kind together, then each."""
    head = [
        "kind",
        "concept",
        "arm",
        *SINGLE_RATES,
        "kept, of base",
        "worst kept",
        "drift",
        "strength",
        "build seconds",
    ]
    kinds = dict.fromkeys(name.split("/")[0] for name in cells)
    groups = {f"{kind}/all": [name for name in cells if name.split("/")[0] == kind] for kind in kinds}
    groups |= {name: [name] for name in cells}
    rows = []
    for label, names in groups.items():
        kind, concept = label.split("/")
        base = [cells[name]["base"] for name in names]
        for arm in cells[names[0]]:
            items = [cells[name][arm] for name in names]
            row = [kind, f"all {len(names)}" if concept == "all" else concept, arm]
            row += [text_of(rate_of(items, key)) for key in SINGLE_RATES]
            row += [ratio(rate_of(items, "kept"), rate_of(base, "kept")), worst_text(items)]
            rows.append(row + [mean_of(items, key) for key in ("drift", "strength", "build seconds")])
    return markdown_table(head, rows)


MENTIONS = ("named", "implied", "negated", "elsewhere")


def implied_table(cells: Mapping[str, Cell]) -> str:
    """Return the table of implied things: a row for each thing and arm, and all things together."""
    head = ["thing", "arm", *(f"shown: {name}" for name in MENTIONS)]
    head += ["setting kept", "character kept", "rest", "valid", "drift", "strength", "build seconds"]
    things = dict.fromkeys(name.split("/")[0] for name in cells)
    rows = []
    for label, chosen in [("all", list(things)), *((thing, [thing]) for thing in things)]:
        for arm in IMPLIED_ARMS:
            items = [cells[f"{thing}/{arm}"] for thing in chosen if f"{thing}/{arm}" in cells]
            if len(items) < len(chosen):  # an arm of some things is no row of all
                continue
            row = [label, arm, *(text_of(rate_of([one["shown"] for one in items], name)) for name in MENTIONS)]
            row += [text_of(rate_of(items, key)) for key in ("setting kept", "character kept", "rest", "valid")]
            rows.append(row + [mean_of(items, key) for key in ("drift", "strength", "build seconds")])
    return markdown_table(head, rows)


def standins_table(cells: Mapping[str, Cell]) -> str:
    """Return the table of the packs' stand-ins: a row for each way to build one, the base's first."""
    head = ["pack", "built", "shown", "kept", "rest", "valid", "drift", "strength"]
    rows = []
    for pack in dict.fromkeys(name.split("/")[0] for name in cells):
        first = next(cell["base"] for name, cell in cells.items() if name.startswith(f"{pack}/"))
        rows.append([pack, "base", *standin_cells(first), NONE])
        for variant in VARIANTS:
            if cell := cells.get(f"{pack}/{variant}"):
                rows.append([pack, variant, *standin_cells(cell["edit"]), f"{cell['strength']:.2f}"])
    return markdown_table(head, rows)


def standin_cells(counts: Mapping[str, Any]) -> list[str]:
    """Return the cells of one arm of a stand-in."""
    kinds = "; ".join(f"{name} {text_of(counting.pooled([one]))}" for name, one in counts["shown"].items())
    return [
        kinds,
        *(text_of(counting.pooled([counts[key]])) for key in ("kept", "rest", "valid")),
        mean_of([counts], "drift"),
    ]


def reads_table(cells: Mapping[str, Cell]) -> str:
    """Return the table of reads: the median of each kind of prompt, with the lowest and the highest tenth."""
    kinds = list(next(iter(cells.values()))["taken"])
    rows = []
    for name, cell in cells.items():
        parts = [
            f"{middle:.2f} ({low:.2f} to {high:.2f})" for low, middle, high in (cell["taken"][kind] for kind in kinds)
        ]
        rows.append([name, f"{cell['strength']:.2f}", *parts])
    return markdown_table(["pairs", "strength", *kinds], rows)


TABLES = {
    "reads": ("What reads take from prompts, without a clip (tuning seed)", reads_table),
    "mass": ("1 to 100 of the cast erased", mass_table),
    "single": ("One concept erased", single_table),
    "implied": ("Things that are implied and not named", implied_table),
    "standins": ("Stand-ins for the shipped packs", standins_table),
}


def page(data: Mapping[str, Any]) -> str:
    """Return the whole page."""
    settings, parts = data["settings"], data["parts"]
    base = parts.get("base", {})
    able = sum(2 * cell["hits"] >= cell["count"] for cell in base.values())
    judged = (
        f"The base shows {able} of {len(base)} characters in at least half of their tuning prompts, and "
        f"{text_of(counting.pooled(base.values()))} clips of them all show who is asked for. "
        "Only those are asked for below."
    )
    lines = [
        "# CastWorld: what is forgotten and what is kept",
        "",
        f"Model {settings['model']}{': ' + settings['label'] if settings['label'] else ''}. Written by "
        "`python -m benchmarks.cast`; cells are rates with their 95 % interval and the number of clips. Seeds: "
        + ", ".join(f"{name} {value}" for name, value in settings["seeds"].items())
        + ".",
        "",
        *([judged, ""] if base else []),
    ]
    for name, (title, table) in TABLES.items():
        if cells := parts.get(name):
            lines += [f"## {title}", "", table(cells)]
    return "\n".join(lines).rstrip() + "\n"
