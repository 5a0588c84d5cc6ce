"""A comparison of methods for people: a table in Markdown, and a plot of erasure against preservation."""

from collections.abc import Mapping
from typing import Any

from unlearning_adapters.evaluation.reports.plots import Point, scatter
from unlearning_adapters.evaluation.reports.rendering import render

COLUMNS = (
    ("concept shown, held-out", "concept"),
    ("erased, held-out", "erased"),
    ("erased, paraphrases", "paraphrases"),
    ("valid", "valid"),
    ("rest of the scene", "context"),
    ("neighbours", "preservation"),
    ("worst neighbour", "worst"),
)


def to_table(data: Mapping[str, Any]) -> str:
    """Return a comparison as Markdown, one row per arm.

    Args:
        data: What `compare_methods` returns.
    """
    roles = dict.fromkeys(row["drift"]["role"] for row in data["rows"].values() if row["drift"])
    left_out = data.get("left_out", {})  # older comparisons have none
    return render("compare.md", data=data, columns=COLUMNS, roles=roles, left_out=left_out)


def to_plot(data: Mapping[str, Any]) -> str:
    """Return erasure against preservation as an SVG file, each arm with its two intervals."""
    points = []
    for name, row in data["rows"].items():
        x, y = row["erased"], row["preservation"]
        if x["value"] is not None and y["value"] is not None:
            points.append(Point(name, (x["value"], *x["interval"]), (y["value"], *y["interval"]), row["part"]))
    title = f"{data['concept']}: erased on held-out prompts against neighbours that are right"
    return scatter(points, title, "erased (held-out prompts)", "neighbours right", to_file=True)
