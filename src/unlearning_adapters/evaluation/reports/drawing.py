"""`Drawing` writes an SVG: axes, ticks, labels and marks are placed, formatted and escaped here, for every plot."""

from dataclasses import dataclass
from xml.etree import ElementTree

from markupsafe import Markup

FONT = 12
QUARTERS = (0.0, 0.25, 0.5, 0.75, 1.0)
# Looks of a file of its own; the page of a report has its own ones, with a light and a dark side.
FILE_STYLE = (
    "svg{background:#fff}text{font-family:sans-serif;fill:#222;stroke:none}.muted{fill:#666}.grid{stroke:#ddd}"
    ".bar{stroke-width:1.5;opacity:.5}.line{fill:none;stroke-width:1.5}.heading{font-size:15px}"
    ".edited,.front{fill:#1f6feb;stroke:#1f6feb}.base{fill:#222;stroke:#222}.trial{fill:#9aa5b1}"
    ".reference{fill:#2da44e;stroke:#2da44e}.control,.best{fill:#cf222e;stroke:#cf222e}.front.line{fill:none}"
)


@dataclass(frozen=True)
class Axis:
    """A linear axis.

    Args:
        start: Pixel at which `low` lies.
        end: Pixel at which `high` lies.
        low: Its first value.
        high: Its last value.
        ticks: Values that are written beside it.
        label: What it is.
        grid: Whether each tick has a line across the plot.
    """

    start: float
    end: float
    low: float = 0.0
    high: float = 1.0
    ticks: tuple[float, ...] = QUARTERS
    label: str = ""
    grid: bool = True

    def __call__(self, value: float) -> float:
        """Return the pixel at which a value lies."""
        return self.start + (self.end - self.start) * (value - self.low) / ((self.high - self.low) or 1.0)


class Drawing:
    """An SVG that is drawn element by element; lengths are pixels, y grows downwards.

    Args:
        width: Its width.
        height: Its height.
        title: What it shows.
        to_file: Whether it is a file of its own, with its own colours, and no part of a page.
    """

    def __init__(self, width: float, height: float, title: str, to_file: bool = False) -> None:
        sizes = {"viewBox": f"0 0 {width:g} {height:g}", "width": f"{width:g}", "font-size": str(FONT)}
        self._root = ElementTree.Element("svg", {**sizes, "role": "img", "aria-label": title})
        self._labels: list[tuple[float, float]] = []
        ElementTree.SubElement(self._root, "title").text = title
        if to_file:
            self._root.set("xmlns", "http://www.w3.org/2000/svg")
            ElementTree.SubElement(self._root, "style").text = FILE_STYLE

    def add(self, tag: str, look: str = "", text: str = "", **attributes: float | str) -> None:
        """Add an element.

        Args:
            tag: Its name, such as "circle".
            look: Its class.
            text: What stands in it.
            attributes: Its attributes, with "_" for "-"; numbers get one digit.
        """
        texts = {
            name.replace("_", "-"): value if isinstance(value, str) else f"{value:.1f}"
            for name, value in attributes.items()
        }
        element = ElementTree.SubElement(self._root, tag, {"class": look, **texts} if look else texts)
        element.text = text or None

    def text(self, x: float, y: float, text: str, look: str = "", anchor: str = "start") -> None:
        """Write text whose middle is at the height y."""
        self.add("text", look, text, x=x, y=y + 4, text_anchor=anchor)

    def name(self, x: float, y: float, text: str, look: str = "") -> None:
        """Write the name of a mark beside it, further down if another name is there."""
        while any(abs(y - other) < FONT + 2 and abs(x - place) < 120 for place, other in self._labels):
            y += FONT + 2
        self._labels.append((x, y))
        self.text(x, y, text, look)

    def lines(self, look: str, points: list[tuple[float, float]], closed: bool = False) -> None:
        """Draw a line through points, or the area inside of it."""
        corners = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
        self.add("polygon" if closed else "polyline", look, points=corners)

    def axes(self, x: Axis, y: Axis) -> None:
        """Draw the ticks, the grid and the labels of a horizontal and a vertical axis."""
        for tick in x.ticks:
            if x.grid:
                self.add("line", "grid", x1=x(tick), x2=x(tick), y1=y.end, y2=y.start)
            self.text(x(tick), y.start + 14, f"{tick:.3g}", "muted", "middle")
        for tick in y.ticks:
            if y.grid:
                self.add("line", "grid", x1=x.start, x2=x.end, y1=y(tick), y2=y(tick))
            self.text(x.start - 8, y(tick), f"{tick:.3g}", "muted", "end")
        if x.label:
            self.text((x.start + x.end) / 2, y.start + 34, x.label, "muted", "middle")
        if y.label:
            self.text(x.start - 40, y.end - 24, y.label, "muted")

    def svg(self) -> Markup:
        """Return the SVG."""
        return Markup(ElementTree.tostring(self._root, encoding="unicode"))
