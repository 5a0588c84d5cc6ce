"""Small plots as inline SVG, coloured by the page's own variables, so that they follow its light and dark looks."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

FONT = 12
ROW = 26


@dataclass(frozen=True)
class Mark:
    """A value with its interval.

    Args:
        label: What it is.
        value: The value, None if it does not apply.
        low: Lower end of its interval.
        high: Upper end of its interval.
        look: Class of its colour, such as "edited".
    """

    label: str
    value: float | None
    low: float = 0.0
    high: float = 0.0
    look: str = "base"


def intervals(marks: Sequence[Mark], title: str, width: int = 520, label_width: int = 206) -> str:
    """Draw one row per mark on a scale from 0 to 1: a dot, its interval, and the number beside it."""
    scale = width - label_width - 60
    height = ROW * len(marks) + 26
    parts = [_grid(label_width, scale, height - 24)]
    for index, mark in enumerate(marks):
        y = ROW * index + ROW / 2
        parts.append(
            f'<text x="{label_width - 12}" y="{y + 4}" text-anchor="end">{escape(_short(mark.label, 28))}</text>'
        )
        if mark.value is None:
            parts.append(f'<text class="muted" x="{label_width + 6}" y="{y + 4}">not applicable</text>')
            continue
        left, right, x = (label_width + scale * place for place in (mark.low, mark.high, mark.value))
        parts.append(f'<line class="{mark.look} bar" x1="{left:.1f}" x2="{right:.1f}" y1="{y}" y2="{y}"/>')
        parts.append(f'<circle class="{mark.look}" cx="{x:.1f}" cy="{y}" r="5"/>')
        parts.append(f'<text class="number" x="{label_width + scale + 14}" y="{y + 4}">{mark.value:.2f}</text>')
    return _svg(width, height, title, parts)


@dataclass(frozen=True)
class Point:
    """Two values with their intervals.

    Args:
        label: What it is.
        x: Value, lower and upper end of its interval, on the horizontal axis.
        y: The same on the vertical axis.
        look: Class of its colour, such as "edited".
    """

    label: str
    x: tuple[float, float, float]
    y: tuple[float, float, float]
    look: str = "base"


def scatter(points: Sequence[Point], title: str, x_label: str, y_label: str, width: int = 620) -> str:
    """Draw points with two intervals each on scales from 0 to 1; names stand beside them without touching."""
    left, top, size = 56, 24, width - 200
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x, y = left + size * tick, top + size * (1 - tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{left + size}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="{top}" y2="{top + size}"/>')
        parts.append(f'<text class="muted" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
        parts.append(f'<text class="muted" x="{x:.1f}" y="{top + size + 18}" text-anchor="middle">{tick:g}</text>')
    taken: list[tuple[float, float]] = []
    for point in sorted(points, key=lambda item: (-item.y[0], item.x[0])):
        x, x_low, x_high = (left + size * value for value in point.x)
        y, y_low, y_high = (top + size * (1 - value) for value in point.y)
        parts.append(f'<line class="{point.look} bar" x1="{x_low:.1f}" x2="{x_high:.1f}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<line class="{point.look} bar" x1="{x:.1f}" x2="{x:.1f}" y1="{y_low:.1f}" y2="{y_high:.1f}"/>')
        parts.append(f'<circle class="{point.look}" cx="{x:.1f}" cy="{y:.1f}" r="4.5"/>')
        at = y - 8
        while any(abs(at - other) < FONT + 1 and abs(x - place) < 120 for place, other in taken):
            at += FONT + 2
        taken.append((x, at))
        parts.append(f'<text x="{x + 8:.1f}" y="{at + 4:.1f}">{escape(_short(point.label, 20))}</text>')
    middle = left + size / 2
    parts.append(
        f'<text class="muted" x="{middle}" y="{top + size + 38}" text-anchor="middle">{escape(x_label)}</text>'
    )
    parts.append(f'<text class="muted" x="{left}" y="{top - 10}" text-anchor="middle">{escape(y_label)}</text>')
    return _svg(width, top + size + 48, title, parts)


def curves(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]], title: str, x_label: str, width: int = 760
) -> str:
    """Draw lines over a scale from 0 to 1, with their intervals as bands.

    Args:
        series: For each name, points (x, value, low, high), sorted by x; the name is also the class of the colour.
        title: What the plot shows.
        x_label: What the horizontal axis is.
        width: Width in pixels.
    """
    left, top, high, right = 40, 12, 190, width - 120
    xs = [point[0] for points in series.values() for point in points] or [0.0]
    low, span = min(xs), (max(xs) - min(xs)) or 1.0
    parts = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        y = top + high * (1 - tick)
        parts.append(f'<line class="grid" x1="{left}" x2="{right}" y1="{y:.1f}" y2="{y:.1f}"/>')
        parts.append(f'<text class="muted" x="{left - 8}" y="{y + 4:.1f}" text-anchor="end">{tick:g}</text>')
    for x in _ticks(xs):
        place = left + (right - left) * (x - low) / span
        parts.append(f'<text class="muted" x="{place:.1f}" y="{top + high + 18}" text-anchor="middle">{x:.3g}</text>')
    taken: list[float] = []
    for name, points in sorted(series.items(), key=lambda item: -item[1][-1][1] if item[1] else 0.0):
        drawn = [
            (left + (right - left) * (x - low) / span, *(top + high * (1 - v) for v in rest)) for x, *rest in points
        ]
        if not drawn:
            continue
        band = [f"{x:.1f},{y:.1f}" for x, _, y, _ in drawn] + [f"{x:.1f},{y:.1f}" for x, _, _, y in reversed(drawn)]
        parts.append(f'<polygon class="{_look(name)} band" points="{" ".join(band)}"/>')
        line = " ".join(f"{x:.1f},{y:.1f}" for x, y, _, _ in drawn)
        parts.append(f'<polyline class="{_look(name)} line" points="{line}"/>')
        parts += [f'<circle class="{_look(name)}" cx="{x:.1f}" cy="{y:.1f}" r="3.5"/>' for x, y, _, _ in drawn]
        at = drawn[-1][1]
        while any(abs(at - other) < FONT + 2 for other in taken):
            at += FONT + 2
        taken.append(at)
        parts.append(f'<text class="{_look(name)} name" x="{right + 12}" y="{at + 4:.1f}">{escape(name)}</text>')
    middle = f'x="{(left + right) / 2}" y="{top + high + 36}"'
    parts.append(f'<text class="muted" {middle} text-anchor="middle">{escape(x_label)}</text>')
    return _svg(width, top + high + 44, title, parts)


def matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    title: str,
    signed: bool = False,
) -> str:
    """Draw a table of shares as coloured cells; signed ones run from -1 to 1 in two colours.

    Args:
        rows: What was asked for.
        columns: What was seen.
        values: Share by row and column; a pair that is missing is 0.
        title: What the plot shows.
        signed: Whether values are differences.
    """
    left, top, wide, high = 92, 34, 62, 34
    parts = [
        f'<text class="muted" x="{left + wide * (index + 0.5)}" y="{top - 10}" text-anchor="middle">'
        f"{escape(_short(name, 9))}</text>"
        for index, name in enumerate(columns)
    ]
    for line, row in enumerate(rows):
        y = top + high * line
        parts.append(f'<text x="{left - 10}" y="{y + high / 2 + 4}" text-anchor="end">{escape(_short(row, 12))}</text>')
        for place, column in enumerate(columns):
            value = values.get((row, column), 0.0)
            look = "less" if value < 0 else "more"
            strength = min(1.0, abs(value))
            x = left + wide * place
            parts.append(f'<rect class="cell" x="{x + 1}" y="{y + 1}" width="{wide - 2}" height="{high - 2}" rx="4"/>')
            parts.append(
                f'<rect class="{look}" x="{x + 1}" y="{y + 1}" width="{wide - 2}" height="{high - 2}" rx="4" '
                f'fill-opacity="{strength:.2f}"/>'
            )
            text = ("" if value == 0 else f"{value:+.2f}") if signed else f"{value:.2f}"
            ink = "strong" if strength > 0.55 else ("" if strength > 0.2 else "muted")
            parts.append(
                f'<text class="{ink}" x="{x + wide / 2}" y="{y + high / 2 + 4}" text-anchor="middle">{text}</text>'
            )
    return _svg(left + wide * len(columns) + 4, top + high * len(rows) + 4, title, parts)


def _ticks(xs: Sequence[float]) -> list[float]:
    """Return values to write below an axis: those of the points, without such as would touch."""
    least, span = min(xs), max(xs) - min(xs)
    chosen = [least]
    for x in sorted({*xs}):
        if x - chosen[-1] >= 0.08 * span and x > least:
            chosen.append(x)
    return chosen


def _grid(left: float, scale: float, height: float) -> str:
    lines = []
    for tick in (0.0, 0.25, 0.5, 0.75, 1.0):
        x = left + scale * tick
        lines.append(f'<line class="grid" x1="{x:.1f}" x2="{x:.1f}" y1="0" y2="{height}"/>')
        lines.append(f'<text class="muted" x="{x:.1f}" y="{height + 16}" text-anchor="middle">{tick:g}</text>')
    return "".join(lines)


def _svg(width: float, height: float, title: str, parts: Sequence[str]) -> str:
    return (
        f'<svg viewBox="0 0 {width:g} {height:g}" width="{width:g}" role="img" aria-label="{escape(title)}" '
        f'font-size="{FONT}"><title>{escape(title)}</title>{"".join(parts)}</svg>'
    )


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"


def _look(name: str) -> str:
    return name.split()[0].lower()
