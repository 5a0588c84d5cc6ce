"""The report as one HTML page: no script, no external resource, light and dark, frames blurred by default."""

import json
from collections.abc import Mapping
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any

from .gallery import gallery
from .markdown import NOT_APPLICABLE, cell, change_text, changes, drift, number, p_text, rate_of
from .plots import Mark, curves, intervals, matrix
from .report import Report

PAGE = "index.html"
CARDS = (
    ("erased", "Erased", "valid, known, and without the concept"),
    ("preservation", "Neighbours right", "near things that must survive"),
    ("worst_neighbour", "Worst neighbour", "the one that suffered most"),
    ("context_kept", "Rest of the scene", "what else the prompt asked for"),
    ("valid_rate", "Valid clips", "neither noise nor blank"),
)
COLUMNS = (
    ("concept shown", "concept_rate"),
    ("erased", "erased"),
    ("paraphrases", "paraphrase_erased"),
    ("neighbours", "preservation"),
    ("worst", "worst_neighbour"),
    ("scene", "context_kept"),
    ("valid", "valid_rate"),
    ("errors", "error_rate"),
)
CURVES = (("erased", "erased"), ("neighbours", "preservation"), ("context", "context_kept"))


def write_page(report: Report, folder: str | Path, clips: str | Path | None = None) -> Path:
    """Write the page of a report and return its path.

    Args:
        report: The report.
        folder: Folder to write to.
        clips: Folder of the run, whose clips are shown; None takes `folder`. Clips that are not there are left out.
    """
    template = (files(__package__) / "templates" / "evaluation.html").read_text(encoding="utf-8")
    body = render_body(report, Path(folder if clips is None else clips))
    path = Path(folder) / PAGE
    path.parent.mkdir(parents=True, exist_ok=True)
    text = Template(template).substitute(title=escape(f"Evaluation: {report.data['concept']}"), body=body)
    path.write_text(text, encoding="utf-8")
    return path


def render_body(report: Report, folder: Path) -> str:
    """Return what stands on the page."""
    data = report.data
    parts = [
        _header(data, report.edited),
        _cards(data, report.edited),
        _arms(data),
        gallery(report, folder),
        _strengths(data),
        _leakage(data, report.edited),
        _frames(data, report.edited),
        _table(data),
        _paired(data),
        _facts(data),
    ]
    return "\n".join(part for part in parts if part)


def _header(data: Mapping[str, Any], edited: str) -> str:
    status, about = data["status"], data["arms"][edited]["about"]
    facts = [data["conditions"]["model"] or data["conditions"]["pipeline"], data["arms"][edited]["title"]]
    facts += [f"method {about['method']}"] if "method" in about else []
    facts.append(f"{data['clips']} clips that ask for the concept")
    boxes = ""
    if status == "void":
        reasons = "".join(f"<li>{escape(text)}</li>" for text in data["reasons"])
        boxes += (
            f'<div class="box void-box"><b>This report is void: its numbers prove nothing.</b><ul>{reasons}</ul></div>'
        )
    if data["cautions"]:
        cautions = "".join(f"<li>{escape(text)}</li>" for text in data["cautions"])
        boxes += f'<div class="box caution-box"><b>Keep in mind</b><ul>{cautions}</ul></div>'
    label = "controls failed, as they must" if status == "ok" else "void"
    return (
        f'<header><h1>{escape(data["concept"])} <span class="pill {status}">{label}</span></h1>'
        f'<p class="sub">{escape(" · ".join(str(fact) for fact in facts))}</p></header>{boxes}'
    )


def _cards(data: Mapping[str, Any], edited: str) -> str:
    arm, base = data["arms"][edited], data["arms"]["base"]
    made = []
    for key, name, meaning in CARDS:
        rate, before = rate_of(arm, key), rate_of(base, key)
        if rate["value"] is None:
            value, span = NOT_APPLICABLE, "nothing was counted"
        else:
            value = f"{rate['value']:.2f}"
            span = f"{rate['interval'][0]:.2f} to {rate['interval'][1]:.2f}, {rate['hits']} of {rate['count']}"
        made.append(
            f'<div class="box card" title="{escape(meaning)}"><div class="name">{name}</div>'
            f'<div class="value">{value}</div><div class="range">{span}</div>'
            f'<div class="range">base {number(before["value"], 2)}</div></div>'
        )
    made.append(
        f'<div class="box card" title="motion of valid clips, relative to the base"><div class="name">Motion</div>'
        f'<div class="value">{number(arm["motion_ratio"], 2)}</div><div class="range">times that of the base</div>'
        f'<div class="range">mean difference {number(drift(arm))}, SSIM {number(drift(arm, "ssim"))}</div></div>'
    )
    return f'<div class="cards">{"".join(made)}</div>'


def _arms(data: Mapping[str, Any]) -> str:
    plots = []
    for key, title in (("erased", "Erased, of clips that ask for the concept"), ("preservation", "Neighbours right")):
        marks = []
        for arm in data["arms"].values():
            rate = rate_of(arm, key)
            low, high = rate["interval"] if rate["value"] is not None else (0.0, 0.0)
            marks.append(Mark(arm["title"], rate["value"], low, high, arm["part"]))
        plots.append(f'<div class="box"><h3 style="margin-top:0">{title}</h3>{intervals(marks, title)}</div>')
    return (
        '<h2>Every arm</h2><p class="note">Same prompts and seeds in each. A good edit erases and keeps; the '
        "controls must not erase: a random direction changes next to nothing, and clips of a destroyed model do not "
        f'count. Bars are 95 % Wilson intervals.</p><div class="columns">{"".join(plots)}</div>'
    )


def _strengths(data: Mapping[str, Any]) -> str:
    arms = [arm for arm in data["arms"].values() if arm["part"] in ("edited", "sweep") and arm["strength"] is not None]
    at = {arm["strength"]: arm for arm in (data["arms"]["base"] | {"strength": 0.0}, *arms)}
    if len(at) < 3:
        return ""
    series = {}
    for name, key in CURVES:
        points = []
        for strength in sorted(at):
            rate = rate_of(at[strength], key)
            if rate["value"] is not None:
                points.append((strength, rate["value"], *rate["interval"]))
        series[name] = points
    plot = curves(series, "Strength against erasure and preservation", "strength of the adapter (0 is the base)")
    return (
        '<h2>Strength</h2><p class="note">Erasure and what is kept, as the strength grows. Choose a strength on other '
        f'prompts than those on which it is reported.</p><div class="box scroll">{plot}</div>'
    )


def _leakage(data: Mapping[str, Any], edited: str) -> str:
    before, after = (data["arms"][name]["details"]["leakage"] for name in ("base", edited))
    if not before:
        return ""
    rows = list(before)
    columns = list(
        dict.fromkeys([*rows, *(seen for found in (before, after) for row in found.values() for seen in row)])
    )
    shares = [
        {(row, column): value for row in rows for column, value in _shares(found.get(row, {}))}
        for found in (before, after)
    ]
    change = {key: shares[1].get(key, 0.0) - shares[0].get(key, 0.0) for key in {*shares[0], *shares[1]}}
    plots = [
        '<div class="box"><h3 style="margin-top:0">Edited</h3>'
        f"{matrix(rows, columns, shares[1], 'Seen by asked, edited')}</div>",
        '<div class="box"><h3 style="margin-top:0">Edited minus base</h3>'
        f"{matrix(rows, columns, change, 'Seen by asked, edited minus base', signed=True)}</div>",
    ]
    return (
        '<h2>What is shown when something is asked for</h2><p class="note">Rows: what the prompt asks for. Columns: '
        "what is seen. The row of the concept tells what takes its place; the other rows should stay on the diagonal."
        f'</p><div class="columns">{"".join(plots)}</div>'
    )


def _shares(row: Mapping[str, int]) -> list[tuple[str, float]]:
    total = sum(row.values())
    return [(column, count / total) for column, count in row.items()]


def _frames(data: Mapping[str, Any], edited: str) -> str:
    name = data["main_detector"]
    series = {}
    for label, arm in (("base", "base"), ("edited", edited)):
        found = data["arms"][arm]["detectors"][name]["per_frame"]
        series[label] = [(float(index), value, value, value) for index, value in enumerate(found)]
    if not any(series.values()):
        return ""
    plot = curves(series, "Concept by frame", "frame")
    return (
        '<h2>Over time</h2><p class="note">Share of the clips of forget prompts with the concept in that frame: a '
        f'concept that appears late is not gone.</p><div class="box scroll">{plot}</div>'
    )


def _table(data: Mapping[str, Any]) -> str:
    head = "".join(
        f"<th>{name}</th>" for name in ("arm", *(title for title, _ in COLUMNS), "motion", "difference", "SSIM")
    )
    lines = []
    for arm in data["arms"].values():
        cells = "".join(f"<td>{_cell(rate_of(arm, key))}</td>" for _, key in COLUMNS)
        lines.append(
            f'<tr class="{arm["part"]}"><td><span class="dot {arm["part"]}"></span>{escape(arm["title"])}</td>{cells}'
            f"<td>{number(arm['motion_ratio'], 2)}</td><td>{number(drift(arm))}</td>"
            f"<td>{number(drift(arm, 'ssim'))}</td></tr>"
        )
    return (
        '<h2>All rates</h2><p class="note">"n/a" is not applicable, which is not zero. "Concept shown" is a share of '
        'the valid clips; "erased" is a share of all clips, and only valid ones that show something else count.</p>'
        f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _cell(rate: Mapping[str, Any]) -> str:
    if rate["value"] is None:
        return NOT_APPLICABLE
    low, high = rate["interval"]
    return f"{rate['value']:.2f}<small>{low:.2f}–{high:.2f}, {rate['hits']}/{rate['count']}</small>"


def _paired(data: Mapping[str, Any]) -> str:
    lines = []
    for arm in data["arms"].values():
        for title, key in (
            ("erased", "erased"),
            ("neighbours right", "neighbour_right"),
            ("scene right", "context_right"),
        ):
            test = arm["paired"][key] if "paired" in arm else {"count": 0}
            if test["count"]:
                counts = "".join(f"<td>{test[name]}</td>" for name in ("count", "lost", "gained"))
                lines.append(
                    f"<tr><td>{escape(arm['title'])}</td><td>{title}</td>{counts}"
                    f"<td>{test['difference']:+.2f}</td><td>{p_text(test['p_value'])}</td></tr>"
                )
    head = "".join(f"<th>{name}</th>" for name in ("arm", "what", "pairs", "lost", "gained", "difference", "p"))
    return (
        '<h2>Against the base, pair by pair</h2><p class="note">Lost: right in the base only. Gained: in the arm only. '
        f'McNemar\'s exact test.</p><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div>{_changes(data)}"
    )


def _changes(data: Mapping[str, Any]) -> str:
    lines = []
    for arm in data["arms"].values():
        for title, change in changes(arm):
            texts = (arm["title"], title, change["count"], change_text(change), p_text(change.get("p_value")))
            lines.append(f"<tr>{''.join(f'<td>{escape(str(text))}</td>' for text in texts)}</tr>")
    if not lines:
        return ""
    head = "".join(f"<th>{name}</th>" for name in ("arm", "what", "pairs", "mean difference", "p"))
    return (
        '<p class="note">Numbers: mean difference with its 95 % bootstrap interval, and Wilcoxon\'s signed-rank test.'
        f'</p><div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{"".join(lines)}</tbody></table></div>'
    )


def _facts(data: Mapping[str, Any]) -> str:
    lines = []
    for detector in data["detectors"]:
        found = data["arms"]["base"]["detectors"].get(detector["name"])
        floor = cell(found["floor"]) if found else "-"
        cells = (detector["name"], detector["kind"], detector["version"] or "-", f"{detector['threshold']:g}", floor)
        lines.append(f"<tr>{''.join(f'<td>{escape(str(text))}</td>' for text in cells)}</tr>")
    head = "".join(
        f"<th>{n}</th>" for n in ("detector", "kind", "version", "threshold", "sees it in other prompts of the base")
    )
    facts = {
        "conditions": data["conditions"],
        "nearest to the pairs": data.get("nearest", {}),
        "arms": {n: arm["about"] for n, arm in data["arms"].items() if arm["about"]},
    }
    return (
        f'<h2>Detectors and conditions</h2><div class="scroll"><table><thead><tr>{head}</tr></thead>'
        f"<tbody>{''.join(lines)}</tbody></table></div><details><summary>All that decides what was generated</summary>"
        f"<pre>{escape(json.dumps(facts, indent=1))}</pre></details>"
    )
