"""The plots of reports as SVG: coloured by classes, so that they follow the light and dark looks of the page."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from markupsafe import Markup

from .drawing import Axis, Drawing

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


def intervals(marks: Sequence[Mark], title: str, width: int = 520, label_width: int = 206) -> Markup:
    """Draw one row per mark on a scale from 0 to 1: a dot, its interval, and the number beside it."""
    bottom = ROW * len(marks) + 2
    x = Axis(label_width, width - 60)
    drawing = Drawing(width, bottom + 24, title)
    drawing.axes(x, Axis(bottom, 0, ticks=()))
    for index, mark in enumerate(marks):
        y = ROW * (index + 0.5)
        drawing.text(x.start - 12, y, _short(mark.label, 28), anchor="end")
        if mark.value is None:
            drawing.text(x.start + 6, y, "not applicable", "muted")
            continue
        drawing.add("line", f"{mark.look} bar", x1=x(mark.low), x2=x(mark.high), y1=y, y2=y)
        drawing.add("circle", mark.look, cx=x(mark.value), cy=y, r=5)
        drawing.text(x.end + 14, y, f"{mark.value:.2f}", "number")
    return drawing.svg()


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


def scatter(
    points: Sequence[Point], title: str, x_label: str, y_label: str, width: int = 620, to_file: bool = False
) -> Markup:
    """Draw points with two intervals each on scales from 0 to 1; names stand beside them without touching."""
    left, top, size = 56, 40, width - 200
    x, y = Axis(left, left + size, label=x_label), Axis(top + size, top, label=y_label)
    drawing = Drawing(width, top + size + 48, title, to_file)
    drawing.axes(x, y)
    for point in sorted(points, key=lambda item: (-item.y[0], item.x[0])):
        (across, x_low, x_high), (up, y_low, y_high) = map(x, point.x), map(y, point.y)
        drawing.add("line", f"{point.look} bar", x1=x_low, x2=x_high, y1=up, y2=up)
        drawing.add("line", f"{point.look} bar", x1=across, x2=across, y1=y_low, y2=y_high)
        drawing.add("circle", point.look, cx=across, cy=up, r=4.5)
        drawing.name(across + 8, up - 8, _short(point.label, 20))
    return drawing.svg()


def curves(
    series: Mapping[str, Sequence[tuple[float, float, float, float]]], title: str, x_label: str, width: int = 760
) -> Markup:
    """Draw lines over a scale from 0 to 1, with their intervals as bands.

    Args:
        series: For each name, points (x, value, low, high), sorted by x; the name is also the class of the colour.
        title: What the plot shows.
        x_label: What the horizontal axis is.
        width: Width in pixels.
    """
    xs = [point[0] for points in series.values() for point in points] or [0.0]
    x = Axis(40, width - 120, min(xs), max(xs), _ticks(xs), x_label, grid=False)
    y = Axis(202, 12)
    drawing = Drawing(width, 246, title)
    drawing.axes(x, y)
    for name, points in sorted(series.items(), key=lambda item: -item[1][-1][1] if item[1] else 0.0):
        if not points:
            continue
        look = name.split()[0].lower()
        band = [(x(at), y(low)) for at, _, low, _ in points] + [(x(at), y(high)) for at, *_, high in reversed(points)]
        drawing.lines(f"{look} band", band, closed=True)
        drawing.lines(f"{look} line", [(x(at), y(value)) for at, value, *_ in points])
        for at, value, *_ in points:
            drawing.add("circle", look, cx=x(at), cy=y(value), r=3.5)
        drawing.name(x.end + 12, y(points[-1][1]), name, f"{look} name")
    return drawing.svg()


def matrix(
    rows: Sequence[str],
    columns: Sequence[str],
    values: Mapping[tuple[str, str], float],
    title: str,
    signed: bool = False,
) -> Markup:
    """Draw a table of shares as coloured cells; signed ones run from -1 to 1 in two colours.

    Args:
        rows: What was asked for.
        columns: What was seen.
        values: Share by row and column; a pair that is missing is 0.
        title: What the plot shows.
        signed: Whether values are differences.
    """
    left, top, wide, high = 92, 34, 62, 34
    drawing = Drawing(left + wide * len(columns) + 4, top + high * len(rows) + 4, title)
    for index, column in enumerate(columns):
        drawing.text(left + wide * (index + 0.5), top - 14, _short(column, 9), "muted", "middle")
    for line, row in enumerate(rows):
        y = top + high * line
        drawing.text(left - 10, y + high / 2, _short(row, 12), anchor="end")
        for index, column in enumerate(columns):
            value, x = values.get((row, column), 0.0), left + wide * index
            strength = min(1.0, abs(value))
            place: dict[str, Any] = {"x": x + 1, "y": y + 1, "width": wide - 2, "height": high - 2, "rx": 4}
            drawing.add("rect", "cell", **place)
            drawing.add("rect", "less" if value < 0 else "more", **place, fill_opacity=f"{strength:.2f}")
            text = ("" if value == 0 else f"{value:+.2f}") if signed else f"{value:.2f}"
            ink = "strong" if strength > 0.55 else ("" if strength > 0.2 else "muted")
            drawing.text(x + wide / 2, y + high / 2, text, ink, "middle")
    return drawing.svg()


def _ticks(xs: Sequence[float]) -> tuple[float, ...]:
    """Return values to write below an axis: those of the points, without those that would touch."""
    least, span = min(xs), max(xs) - min(xs)
    ticks = [least]
    for x in sorted({*xs}):
        if x - ticks[-1] >= 0.08 * span and x > least:
            ticks.append(x)
    return tuple(ticks)


def _short(text: str, length: int) -> str:
    return text if len(text) <= length else f"{text[: length - 1]}…"
