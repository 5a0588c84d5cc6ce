"""The picture of a search: every trial by what it leaves and what it changes, as one SVG that holds no script."""

from collections.abc import Sequence

from unlearning_adapters.evaluation.reports.drawing import Axis, Drawing

WIDTH, HEIGHT = 640, 420
SHARES = (0.0, 0.2, 0.4, 0.6, 0.8, 1.0)  # of the axes, at which a value is written

Point = tuple[float, float]


def front_svg(title: str, trials: Sequence[Point], front: Sequence[Point], best: Point) -> str:
    """Return a scatter plot of trials with the Pareto front as a line.

    Args:
        title: What was searched.
        trials: What each trial leaves of the concept (across) and changes elsewhere (up).
        front: Those that no other beats in both.
        best: The one that was chosen.

    Returns:
        An SVG document, the same text for the same numbers.
    """
    x = _axis(56, WIDTH - 20, [point[0] for point in trials], "left of the concept (0.9 quantile)")
    y = _axis(HEIGHT - 52, 68, [point[1] for point in trials], "change elsewhere (drift)")
    drawing = Drawing(WIDTH, HEIGHT, title, to_file=True)
    drawing.text(16, 20, title, "heading")
    drawing.text(WIDTH - 20, 20, "grey: trial; blue: front; red: chosen", "muted", "end")
    drawing.axes(x, y)
    for look, radius, points in (("trial", 3, trials), ("front", 4, front), ("best", 6, [best])):
        for across, up in points:
            drawing.add("circle", look, cx=x(across), cy=y(up), r=radius)
    drawing.lines("front line", [(x(across), y(up)) for across, up in sorted(front)])
    return f"{drawing.svg()}\n"


def _axis(start: float, end: float, values: Sequence[float], label: str) -> Axis:
    high = max(1e-9, *values) * 1.05
    return Axis(start, end, 0.0, high, tuple(high * share for share in SHARES), label)
