"""A comparison of methods for people: a table in Markdown, and a plot of erasure against preservation."""

from collections.abc import Mapping
from typing import Any

from unlearning_adapters.evaluation.reports.markdown import (
    NOT_APPLICABLE,
    cell,
    number,
    p_text,
    table_row,
    verdict_lines,
)
from unlearning_adapters.evaluation.reports.plots import Point, scatter

COLUMNS = (
    ("concept shown, held-out", "concept"),
    ("erased, held-out", "erased"),
    ("erased, paraphrases", "paraphrases"),
    ("valid", "valid"),
    ("rest of the scene", "context"),
    ("neighbours", "preservation"),
    ("worst neighbour", "worst"),
)
STYLE = (
    "text{font-family:sans-serif;fill:#222}.muted{fill:#666}.grid{stroke:#ddd}.bar{stroke-width:1.5;opacity:.5}"
    ".edited{fill:#1f6feb;stroke:#1f6feb}.base{fill:#222;stroke:#222}.reference{fill:#2da44e;stroke:#2da44e}"
    ".control{fill:#cf222e;stroke:#cf222e}text{stroke:none}"
)


def to_table(data: Mapping[str, Any]) -> str:
    """Return a comparison as Markdown, one row per arm.

    Args:
        data: What `compare_methods` returns.
    """
    heads = ["arm", *(title for title, _ in COLUMNS), "drift", "motion / base", "rank", "build s"]
    lines = [f"# Methods side by side: {data['concept']}", "", *verdict_lines(data), ""]
    lines += [table_row(heads), table_row(["---"] * len(heads))]
    lines += [table_row(_cells(row)) for row in data["rows"].values()]
    left_out = data.get("left_out", {})  # comparisons of before it was said have none
    lines += ["", "Left out, since they cannot be built:", ""] if left_out else []
    lines += [f"- {method}: {reason}" for method, reason in left_out.items()]
    roles = dict.fromkeys(row["drift"]["role"] for row in data["rows"].values() if row["drift"])
    lines += [
        "",
        "Rates: value [95 % Wilson interval] (counts). Drift: mean absolute difference from the base's clips, 0 to 1, "
        f"[95 % bootstrap interval], of the prompts of the role {', '.join(roles) or NOT_APPLICABLE}. Motion: ratio to "
        "the base, and the mean difference in pixels with its 95 % bootstrap interval and Wilcoxon's signed-rank test.",
    ]
    return "\n".join(lines) + "\n"


def to_plot(data: Mapping[str, Any]) -> str:
    """Return erasure against preservation as an SVG file, each arm with its two intervals."""
    points = []
    for name, row in data["rows"].items():
        x, y = row["erased"], row["preservation"]
        if x["value"] is not None and y["value"] is not None:
            points.append(Point(name, (x["value"], *x["interval"]), (y["value"], *y["interval"]), row["part"]))
    title = f"{data['concept']}: erased on held-out prompts against neighbours that are right"
    drawn = scatter(points, title, "erased (held-out prompts)", "neighbours right")
    return drawn.replace("<svg ", '<svg xmlns="http://www.w3.org/2000/svg" ', 1).replace(
        "</title>", f"</title><style>{STYLE}</style>", 1
    )


def _cells(row: Mapping[str, Any]) -> list[str]:
    rates = [cell(row[key]) for _, key in COLUMNS]
    rank = NOT_APPLICABLE if row["rank"] is None else str(row["rank"])
    seconds = number(row["build_seconds"], 2)
    return [row["title"], *rates, _mean(row["drift"]), _motion(row), rank, seconds]


def _mean(found: Mapping[str, Any] | None) -> str:
    if found is None or found["value"] is None:
        return NOT_APPLICABLE
    low, high = found["interval"]
    return f"{found['value']:.3f} [{low:.3f}, {high:.3f}]"


def _motion(row: Mapping[str, Any]) -> str:
    ratio = number(row["motion_ratio"], 2)
    if not row["motion"] or row["motion"]["value"] is None:
        return ratio
    low, high = row["motion"]["interval"]
    test = row["motion"].get("p_value")  # none without scipy, and in comparisons of before it was taken
    chance = "" if test is None else f", p {p_text(test)}"
    return f"{ratio} ({row['motion']['value']:+.2f} [{low:+.2f}, {high:+.2f}]{chance})"
