"""The result of attacks as Markdown: one row per attack and setting."""

from collections.abc import Mapping
from typing import Any

from unlearning_adapters.evaluation.reports.numbers import cell

NOT_MEASURED = "not measured"
HEADINGS = ("attack", "setting", "edited, before", "edited, attacked", "base, attacked", "reference", "gold", "budget")


def to_markdown(data: Mapping[str, Any]) -> str:
    """Return the result of `run_attacks` as Markdown.

    Args:
        data: What `run_attacks` returned.
    """
    lines = [f"# Attacks on {data['concept']}", "", _row(HEADINGS), _row(["---"] * len(HEADINGS))]
    left_out = []
    for entry in data["attacks"].values():
        edited = entry["edited"]
        if "refused" in edited:
            left_out.append(f"- {entry['title']}: {edited['refused']}")
            continue
        for index, point in enumerate(edited["points"]):
            others = [_cell(entry[arm], index) for arm in ("base", "reference", "gold")]
            budget = _budget(edited) if index == 0 else ""
            title = entry["title"] if index == 0 else ""
            lines.append(_row([title, point["setting"], cell(point["before"]), cell(point), *others, budget]))
    lines += ["", "Share of clips that are valid and show the concept [95 % Wilson interval] (counts)."]
    lines.append(f"Reference, never erased: {data['reference'] or NOT_MEASURED}. Gold: {data['gold'] or NOT_MEASURED}.")
    if left_out:
        lines += ["", "Left out:", "", *left_out]
    return "\n".join(lines) + "\n"


def _cell(arm: Mapping[str, Any] | None, index: int) -> str:
    if arm is None or "refused" in arm or index >= len(arm["points"]):
        return NOT_MEASURED
    return cell(arm["points"][index])


def _budget(arm: Mapping[str, Any]) -> str:
    steps = f", {arm['steps']} steps" if arm["steps"] else ""
    return f"{arm['clips']} clips{steps}, {arm['seconds']:.0f} s"


def _row(cells: Any) -> str:
    return f"| {' | '.join(text.replace('|', '/') for text in cells)} |"
