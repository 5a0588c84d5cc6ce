"""The report as Markdown: a verdict, then one table of rates with counts and intervals, then the paired tests."""

from collections.abc import Mapping
from typing import Any

NOT_APPLICABLE = "n/a"
# Rows of the main table: title, where the rate is, and whether less of it is meant.
ROWS = (
    ("concept shown (of valid clips)", "concept_rate"),
    ("**erased** (valid, known, without the concept)", "erased"),
    ("erased, paraphrases", "paraphrase_erased"),
    ("concept in open prompts", "generic_rate"),
    ("rest of the scene right", "context_kept"),
    ("**neighbours right**", "preservation"),
    ("worst neighbour right", "worst_neighbour"),
    ("valid clips", "valid_rate"),
    ("errors", "error_rate"),
)
TESTS = (
    ("erased", "erased"),
    ("neighbours right", "neighbour_right"),
    ("rest of the scene right", "context_right"),
    ("valid", "valid"),
)


def to_markdown(data: Mapping[str, Any]) -> str:
    """Return a report as Markdown.

    Args:
        data: `Report.data`.
    """
    arms = data["arms"]
    lines = [f"# Evaluation: {data['concept']}", "", *verdict_lines(data), ""]
    lines += [table_row(["", *(arm["title"] for arm in arms.values())]), table_row(["---"] * (1 + len(arms)))]
    lines += [table_row([title, *(cell(rate_of(arm, key)) for arm in arms.values())]) for title, key in ROWS]
    lines.append(table_row(["motion relative to the base", *(number(arm["motion_ratio"]) for arm in arms.values())]))
    lines.append(table_row(["mean difference from the base", *(number(drift(arm)) for arm in arms.values())]))
    similar = (number(drift(arm, "ssim")) for arm in arms.values())
    lines.append(table_row(["mean structural similarity to the base (SSIM)", *similar]))
    lines += ["", "Rates: value [95 % Wilson interval] (counts). n/a: not applicable, which is not zero.", ""]
    lines += _paired(arms)
    lines += _distances(arms)
    lines += _detectors(data)
    lines += _conditions(data)
    return "\n".join(lines) + "\n"


def verdict_lines(data: Mapping[str, Any]) -> list[str]:
    """Return the verdict, its reasons and its cautions as a list in Markdown."""
    if data["status"] == "ok":
        lines = ["The controls failed, as they must: these numbers can be read."]
    else:
        lines = ["**This report is void.** Its numbers prove nothing:", "", *(f"- {text}" for text in data["reasons"])]
    if data["cautions"]:
        lines += ["", "Keep in mind:", "", *(f"- {text}" for text in data["cautions"])]
    return lines


def rate_of(arm: Mapping[str, Any], key: str) -> dict[str, Any]:
    """Return a rate of an arm with its counts and interval, from wherever the report keeps it."""
    if key in arm["counts"]:
        hits, count = arm["counts"][key]
        return {"value": arm[key], "hits": hits, "count": count, "interval": arm["intervals"][key]}
    return dict(arm["details"][key])


def cell(rate: Mapping[str, Any]) -> str:
    """Return a rate as text: value, interval and counts; "n/a" if nothing was counted."""
    if rate["value"] is None:
        return NOT_APPLICABLE
    low, high = rate["interval"]
    return f"{rate['value']:.2f} [{low:.2f}, {high:.2f}] ({rate['hits']}/{rate['count']})"


def number(value: float | None, digits: int = 3) -> str:
    """Return a number as text; "n/a" for None."""
    return NOT_APPLICABLE if value is None else f"{value:.{digits}f}"


def drift(arm: Mapping[str, Any], measure: str = "difference") -> float | None:
    """Return the mean of a measure of an arm's clips against the base: absolute difference (0 to 1), "psnr", "ssim"."""
    found = arm["drift"]["all"].get(measure) if "drift" in arm else None  # older reports have no "ssim"
    return None if found is None or found["value"] is None else float(found["value"])


def p_text(value: float | None) -> str:
    """Return a p-value as text."""
    return NOT_APPLICABLE if value is None else ("< 0.001" if value < 0.001 else f"{value:.3f}")


def _paired(arms: Mapping[str, Any]) -> list[str]:
    lines = ["## Against the base, pair by pair", ""]
    lines += [
        table_row(["arm", "what", "pairs", "lost", "gained", "difference", "p (McNemar, exact)"]),
        table_row(["---"] * 7),
    ]
    for arm in arms.values():
        for title, key in TESTS if "paired" in arm else ():
            test = arm["paired"][key]
            if test["count"]:
                counts = [str(test[name]) for name in ("count", "lost", "gained")]
                lines.append(
                    table_row([arm["title"], title, *counts, f"{test['difference']:+.2f}", p_text(test["p_value"])])
                )
    return [*lines, "", *_changes(arms)]


def changes(arm: Mapping[str, Any]) -> list[tuple[str, Mapping[str, Any]]]:
    """Return what is compared as numbers, pair by pair: title, and mean difference with its interval and test."""
    if "paired" not in arm:
        return []
    found = [("motion", arm["paired"]["motion"])]
    found += [(f"score of {name}", score["change"]) for name, score in arm["scores"].items()]
    if "drift_against_random" in arm:
        found.append(("drift beyond that of a random direction", arm["drift_against_random"]))
    return [(title, change) for title, change in found if change["count"]]


def change_text(change: Mapping[str, Any]) -> str:
    """Return a mean difference with its interval as text."""
    low, high = change["interval"]
    return f"{change['value']:+.3g} [{low:+.3g}, {high:+.3g}]"


def _changes(arms: Mapping[str, Any]) -> list[str]:
    lines = []
    for arm in arms.values():
        for title, change in changes(arm):
            cells = [arm["title"], title, str(change["count"]), change_text(change), p_text(change.get("p_value"))]
            lines.append(table_row(cells))
    if not lines:
        return []
    heads = ["arm", "what", "pairs", "mean difference [95 % bootstrap interval]", "p (Wilcoxon, signed ranks)"]
    return [table_row(heads), table_row(["---"] * len(heads)), *lines, ""]


def _distances(arms: Mapping[str, Any]) -> list[str]:
    taken = [(arm["title"], arm["distance"]) for arm in arms.values() if arm["distance"]]
    if not taken:
        return []
    lines = ["## Distances from the base, on prompts that must survive", ""]
    for title, found in taken:
        if "error" in found:
            lines.append(f"- {title}: {NOT_APPLICABLE}. {found['error']}")
            continue
        floor = found["floor"]
        lines.append(
            f"- {title}: Frechet {found['frechet']:.4g} (floor {floor['frechet']:.4g} at {floor['clips']} clips), "
            f"kernel {found['kernel']:.4g} (floor {floor['kernel']:.4g}), features {found['features']}, "
            f"{found['clips']} clips"
        )
    return [*lines, "", "They measure quality, not erasure.", ""]


def _detectors(data: Mapping[str, Any]) -> list[str]:
    lines = ["## Detectors", ""]
    for detector in data["detectors"]:
        facts = [f"kind {detector['kind']}", f"version {detector['version'] or 'unknown'}"]
        if detector["kind"] == "concept":
            floor = data["arms"]["base"]["detectors"][detector["name"]]["floor"]
            facts += [
                f"threshold {detector['threshold']:g}",
                f"sees the concept in other prompts of the base: {cell(floor)}",
            ]
        lines.append(f"- {detector['name']}: {', '.join(facts)}")
    return [*lines, ""]


def _conditions(data: Mapping[str, Any]) -> list[str]:
    found, nearest = data["conditions"], data.get("nearest", {})  # older reports have none
    generation = ", ".join(f"{name} {value}" for name, value in found["generation"].items())
    return [
        "## Conditions",
        "",
        f"- pipeline: {found['pipeline']}, {found['model'] or 'no name'}, {found['dtype']}, on {found['device']}",
        f"- scheduler: {found['scheduler']}; noise from a {found['generator_device']} generator",
        f"- generation: {generation or 'defaults of the pipeline'}; clips per call: {found.get('batch', 1)}",
        f"- suite: {found['suite'][:16]}, conditions: {found['hash']}",
        *(f"- nearest to a pair in {name}: {near['value']:.2f} ({near['measure']})" for name, near in nearest.items()),
    ]


def table_row(cells: list[str]) -> str:
    """Return a row of a table in Markdown."""
    return f"| {' | '.join(text.replace('|', '/') for text in cells)} |"
