"""What the pictures of the page share: a frame with axes, marks, lines, and a legend whose entries hide and show."""

from collections.abc import Callable, Sequence

from fishexp.report.page.comparison import Line
from fishexp.report.page.markup import Markup, joined, tag
from fishexp.report.page.scale import Scale

# of a picture, in units of its own: a phone shows it at two thirds of its size, with larger letters
WIDTH, HEIGHT = 520.0, 330.0
# where the axes are: left, right, top, bottom
LEFT, RIGHT, TOP, BOTTOM = 66.0, 508.0, 40.0, 268.0
# labels that an axis has room for
MOST_X, MOST_Y = 5, 6
# half the size of a mark
_HALF = 5.5
# outlines of marks around (0, 0), for a half size of 1
_MARKS = (
    "M-1,0a1,1 0 1 0 2,0a1,1 0 1 0 -2,0z",
    "M-.9,-.9h1.8v1.8h-1.8z",
    "M0,-1.15L1.1,.85H-1.1z",
    "M0,-1.3L1.3,0L0,1.3L-1.3,0z",
    "M0,1.15L1.1,-.85H-1.1z",
    "M-.4,-1.2h.8v.8h.8v.8h-.8v.8h-.8v-.8h-.8v-.8h.8z",
)


def frame(
    x: Scale,
    y: Scale,
    x_title: str,
    y_title: str,
    x_unit: Callable[[float], str],
    *content: Markup,
    title: str,
    x_ticks: Sequence[float] | None = None,
) -> Markup:
    """Draw axes with their ticks and titles around ``content``.

    Args:
        x_unit: Writes a tick of the horizontal axis.
        title: Tells readers who do not see the picture what it is.
        x_ticks: Ticks of the horizontal axis, if they are others than the scale's own.
    """
    lines, labels = [], []
    for value in y.ticks(MOST_Y):
        place = y.at(value)
        lines.append(tag("line", x1=LEFT, x2=RIGHT, y1=place, y2=place, class_="grid"))
        labels.append(tag("text", f"{value:g}", x=LEFT - 8, y=place + 5, class_="tick end"))
    for value in x.ticks(MOST_X) if x_ticks is None else x_ticks:
        place = x.at(value)
        lines.append(tag("line", x1=place, x2=place, y1=BOTTOM, y2=BOTTOM + 5, class_="grid"))
        labels.append(tag("text", x_unit(value), x=place, y=BOTTOM + 24, class_="tick middle"))
    axis = tag("line", x1=LEFT, x2=RIGHT, y1=BOTTOM, y2=BOTTOM, class_="axis")
    titles = [
        tag("text", y_title, x=4.0, y=16.0, class_="label"),
        tag("text", x_title, x=RIGHT, y=HEIGHT - 12, class_="label end"),
    ]
    box = f"0 0 {WIDTH:g} {HEIGHT:g}"
    return tag("svg", lines, axis, labels, titles, *content, viewBox=box, role="group", aria_label=title)


def mark(line: Line, x: float, y: float, size: float = _HALF) -> Markup:
    """Draw the mark of a line."""
    place = f"translate({x:.1f} {y:.1f}) scale({size:g})"
    return tag("path", d=_MARKS[line.mark], transform=place, class_=f"mark fill{line.colour}")


def polyline(points: Sequence[tuple[float, float]], class_: str) -> Markup:
    """Draw a line through points."""
    return tag("polyline", points=" ".join(f"{x:.1f},{y:.1f}" for x, y in points), class_=class_)


def legend(lines: Sequence[Line]) -> Markup:
    """List the lines with their marks, as buttons that hide and show them in all pictures of the comparison."""
    entries = []
    for line in lines:
        stroke = tag("line", x1=0.0, x2=28.0, y1=8.0, y2=8.0, class_=f"curve stroke{line.colour}")
        swatch = tag("svg", stroke, mark(line, 14.0, 8.0), viewBox="0 0 28 16", class_="swatch", aria_hidden="true")
        button = tag("button", swatch, " ", line.name, type="button", aria_pressed="true", data_line=line.key)
        entries.append(tag("li", button))
    return tag("ul", joined(*entries), class_="legend", aria_label="Lines; press one to hide or show it")
