"""Plots of costs as SVG: over the number of adapters, and over the width of the edited layers."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path

from .report import Row

WIDTH, HEIGHT = 640, 360
LEFT, RIGHT, TOP, BOTTOM = 60, 170, 40, 50
COLOURS = ("#1f6feb", "#d1242f", "#8250df", "#1a7f37")
Series = Mapping[str, Sequence[tuple[float, float]]]


def write_curves(rows: Sequence[Row], folder: Path) -> list[str]:
    """Write the plots for which there are rows, and return their names."""
    by_name = {row.name: row.ratio.median for row in rows}
    names = []
    calls = [
        (float(name.rpartition("/")[2]), ratio)
        for name, ratio in by_name.items()
        if name.startswith("stack/call/") and name.rpartition("/")[2].isdecimal()
    ]
    if len(calls) > 1:
        title = "One denoiser call with attached adapters, as a multiple of the base"
        _save(folder / "adapters.svg", title, "adapters", {"attached": sorted(calls)})
        names.append("adapters.svg")
    widths = {"narrow": 1536.0, "wide": 3072.0, "widest": 5120.0}
    threads = max(
        (int(name.split("/")[4].split("-")[0]) for name in by_name if name.startswith("fuse/copy/")), default=1
    )
    series = {
        f"{verb}, {record}": [
            (width, by_name[key])
            for case, width in widths.items()
            if (key := f"{verb}/{record}/{case}/bfloat16/{threads}-threads/bare-copy") in by_name
        ]
        for verb in ("fuse", "unfuse")
        for record in ("copy", "compact")
    }
    series = {name: points for name, points in series.items() if len(points) > 1}
    if series:
        title = f"Fuse and unfuse as a multiple of a bare copy of the weights, bfloat16, {threads} threads"
        _save(folder / "width.svg", title, "width of square layers", series)
        names.append("width.svg")
    return names


def _save(file: Path, title: str, label: str, series: Series) -> None:
    file.write_text(curve(title, label, series), encoding="utf-8")


def curve(title: str, label: str, series: Series) -> str:
    """Return lines over a logarithmic axis as SVG.

    Args:
        title: What is shown.
        label: Label of the horizontal axis.
        series: Points of each line, by its name; the vertical axis begins at 0.
    """
    points = [point for line in series.values() for point in line]
    low, high = (math.log(pick(x for x, _ in points)) for pick in (min, max))
    top = _ceiling(max(y for _, y in points))

    def place(x: float, y: float) -> tuple[float, float]:
        across = (math.log(x) - low) / ((high - low) or 1)
        return LEFT + across * (WIDTH - LEFT - RIGHT), HEIGHT - BOTTOM - y / top * (HEIGHT - TOP - BOTTOM)

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        f'font-size="12" role="img"><title>{title}</title>',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="white"/><text x="{LEFT}" y="20">{title}</text>',
    ]
    for step in range(5):
        y = place(points[0][0], top * step / 4)[1]
        parts.append(f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke="#d0d7de"/>')
        parts.append(f'<text x="{LEFT - 8}" y="{y + 4:.1f}" text-anchor="end">{top * step / 4:.3g}</text>')
    for x in sorted({x for x, _ in points}):
        parts.append(f'<text x="{place(x, 0)[0]:.1f}" y="{HEIGHT - BOTTOM + 18}" text-anchor="middle">{x:g}</text>')
    middle = (LEFT + WIDTH - RIGHT) / 2
    parts.append(f'<text x="{middle:.0f}" y="{HEIGHT - 10}" text-anchor="middle">{label}</text>')
    for index, (name, line) in enumerate(series.items()):
        colour, places = COLOURS[index % len(COLOURS)], [place(*point) for point in line]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in places)
        parts.append(f'<polyline points="{path}" fill="none" stroke="{colour}" stroke-width="2"/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3.5" fill="{colour}"/>' for x, y in places]
        parts.append(f'<text x="{places[-1][0] + 10:.1f}" y="{places[-1][1] + 4:.1f}" fill="{colour}">{name}</text>')
    return "\n".join([*parts, "</svg>", ""])


def _ceiling(value: float) -> float:
    """Return the next of 1, 1.5, 2, 3, 4, 6, 8 and their tenfolds."""
    power = 10 ** math.floor(math.log10(value))
    return next(step * power for step in (1, 1.2, 1.6, 2, 3, 4, 6, 8, 10) if step * power >= value)
