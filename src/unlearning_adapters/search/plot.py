"""The picture of a search: every trial by what it leaves and what it changes, as one SVG that holds no script."""

from collections.abc import Sequence
from html import escape

WIDTH, HEIGHT = 640, 420
LEFT, TOP, RIGHT, BOTTOM = 64, 44, 20, 52
TICKS = 5

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
    span = [max(1e-9, *(point[axis] for point in trials)) * 1.05 for axis in (0, 1)]

    def at(point: Point) -> tuple[float, float]:
        across = LEFT + (WIDTH - LEFT - RIGHT) * point[0] / span[0]
        return across, HEIGHT - BOTTOM - (HEIGHT - TOP - BOTTOM) * point[1] / span[1]

    parts = [
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" font-family="sans-serif" '
        'font-size="12" fill="#222222">',
        f'<rect width="{WIDTH}" height="{HEIGHT}" fill="#ffffff"/>',
        _text(LEFT, 24, title, size=15),
        *_axes(span),
        *(_dot(at(point), 3, "#9aa5b1") for point in trials),
        '<polyline fill="none" stroke="#1f6feb" stroke-width="1.5" points="'
        + " ".join("{:.1f},{:.1f}".format(*at(point)) for point in sorted(front))
        + '"/>',
        *(_dot(at(point), 4, "#1f6feb") for point in front),
        _dot(at(best), 6, "#d1242f"),
        _text(WIDTH - RIGHT, 24, "grey: trial; blue: front; red: chosen", anchor="end"),
        "</svg>",
    ]
    return "\n".join(parts) + "\n"


def _axes(span: Sequence[float]) -> list[str]:
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM
    parts = [f'<path d="M{LEFT} {TOP}V{bottom}H{right}" fill="none" stroke="#222222"/>']
    for tick in range(TICKS + 1):
        share = tick / TICKS
        across, up = LEFT + (right - LEFT) * share, bottom - (bottom - TOP) * share
        parts.append(_text(across, bottom + 18, f"{span[0] * share:.2g}", anchor="middle"))
        parts.append(_text(LEFT - 8, up + 4, f"{span[1] * share:.2g}", anchor="end"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 12, "left of the concept (0.9 quantile)", anchor="middle"))
    turned = f'transform="rotate(-90 16 {(TOP + bottom) / 2:g})"'
    parts.append(_text(16, (TOP + bottom) / 2, "change elsewhere (drift)", anchor="middle", extra=turned))
    return parts


def _dot(place: tuple[float, float], radius: int, colour: str) -> str:
    return f'<circle cx="{place[0]:.1f}" cy="{place[1]:.1f}" r="{radius}" fill="{colour}"/>'


def _text(x: float, y: float, text: str, *, anchor: str = "start", size: int = 12, extra: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" {extra}>{escape(text)}</text>'
