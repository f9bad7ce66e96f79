"""Pictures of scores: against what they cost, with the front that none betters, and against learning rates."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from statistics import mean

from fishexp.report.group import Group, percent
from fishexp.report.page.chart import BOTTOM, LEFT, MOST_X, RIGHT, TOP, frame, mark, polyline
from fishexp.report.page.comparison import Comparison, Line, row_id
from fishexp.report.page.markup import Markup, joined, tag
from fishexp.report.page.scale import Scale, scale
from fishexp.report.rates import families
from fishexp.system.text_table import write_bytes

# marks whose places differ by less are moved apart, by so much
_NEAR, _APART = 9.0, 10.0
# room at both ends of the axis for marks that are moved
_ROOM = 34.0


@dataclass(frozen=True)
class Cost:
    """Say what a picture has on its horizontal axis.

    Attributes:
        word: What the switch calls it.
        title: What the axis calls it.
        of: A group -> its cost; None if it is unknown.
        write: Writes a cost.
    """

    word: str
    title: str
    of: Callable[[Group], float | None]
    write: Callable[[float], str]


@dataclass(frozen=True)
class Point:
    """Hold a group that has a place in the picture."""

    line: Line
    group: Group
    cost: float
    score: float


def bytes_of(group: Group) -> tuple[float | None, str]:
    """Return the bytes that a worker sent in a run, or those of its delta or checkpoint, and which they are."""
    records = [run["bytes"] for run in group.runs if isinstance(run.get("bytes"), dict)]
    for key, word in (("sent", "sent by a worker"), ("delta", "of what is stored"), ("dense", "of what is stored")):
        values = [record[key] for record in records if isinstance(record.get(key), int) and 0 < record[key] < 1e18]
        if values and len(values) == len(group.runs):
            return mean(values), word
    return None, ""


def costs_of(groups: Sequence[Group]) -> list[Cost]:
    """Return the three costs by which groups are drawn."""
    words = dict.fromkeys(word for group in groups if (word := bytes_of(group)[1]))
    return [
        Cost("kept weights", "weights that may move (share of all)", lambda group: group.share, percent),
        Cost("bytes", f"bytes {' or '.join(words)}".strip(), lambda group: bytes_of(group)[0], write_bytes),
        Cost("seconds", "seconds of a run (median over seeds)", lambda group: group.seconds, write_number),
    ]


def write_number(value: float) -> str:
    """Write a number with commas for thousands, to three digits at least."""
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def draw_tradeoffs(comparison: Comparison, lines: Sequence[Line], name: str) -> Markup:
    """Draw scores against each cost, of which the page shows one at a time, with the buttons that switch.

    Args:
        name: Names the comparison within the page.
    """
    buttons, panels = [], []
    for number, cost in enumerate(costs_of(comparison.best)):
        points = [
            Point(line, group, value, group.mean)
            for line in lines
            for group in line.groups
            if (value := cost.of(group)) is not None and group.mean is not None
        ]
        identity = f"{name}-cost{number}"
        selected = "true" if number == 0 else "false"
        switch = {"role": "tab", "aria_controls": identity, "aria_selected": selected, "type": "button"}
        buttons.append(tag("button", cost.word, id=f"{identity}-tab", tabindex=None if number == 0 else "-1", **switch))
        there = {id(point.group) for point in points}
        missing = [group for line in lines for group in line.groups if id(group) not in there]
        body = joined(_picture(points, cost, None, apart=True), _front_text(points), _missing_text(missing))
        panels.append(tag("div", body, id=identity, role="tabpanel", aria_labelledby=f"{identity}-tab", class_="panel"))
    tabs = tag("div", buttons, role="tablist", aria_label="Score against", class_="tabs")
    return tag("figure", tag("figcaption", "Score against ", tabs), panels)


def draw_rates(comparison: Comparison, lines: Sequence[Line]) -> Markup | None:
    """Draw scores against the learning rates that were tried, a curve for each budget; None if it was always one."""
    tried = families(comparison.groups)
    points = []
    for line in lines:
        for best in line.groups:
            family = next(family for family in tried if any(group is best for group in family))
            own = replace(line)  # a curve of its own
            points += [
                Point(own, group, group.lr, group.mean) for group in family if group.lr and group.mean is not None
            ]
    rates = sorted({point.cost for point in points})
    if len(rates) < 2:
        return None
    cost = Cost("learning rate", "learning rate", lambda group: group.lr, "{:g}".format)
    ticks = rates if len(rates) <= MOST_X else None
    return tag(
        "figure", tag("figcaption", "Score against the learning rate"), _picture(points, cost, ticks, apart=False)
    )


def front(points: Sequence[Point]) -> list[Point]:
    """Return the points that none betters: no other has a higher mean for as much, or as high a one for less."""
    found: list[Point] = []
    for point in sorted(points, key=lambda point: (point.cost, -point.score)):
        if not found or point.score > found[-1].score:
            found.append(point)
    return found


def _picture(points: Sequence[Point], cost: Cost, ticks: Sequence[float] | None, *, apart: bool) -> Markup | None:
    """Draw points with their axes; None if there are none.

    Args:
        ticks: Of the horizontal axis; None for round values.
        apart: Move marks of about the same cost apart, and draw the front.
    """
    if not points:
        return None
    x = scale([point.cost for point in points], LEFT + _ROOM, RIGHT - _ROOM, may_be_log=True)
    spread = [point.group.std or 0.0 for point in points]
    ends = [p.score + sign * std for p, std in zip(points, spread, strict=True) for sign in (-1, 1)]
    y = scale(ends, BOTTOM, TOP, may_be_log=False)
    exact = [x.at(point.cost) for point in points]
    places = dict(zip(map(id, points), _apart(exact) if apart else exact, strict=True))
    best = [(places[id(point)], y.at(point.score)) for point in front(points)]
    drawn = [polyline(best, "front")] if apart else []
    for same in _by_line(points):
        curve = polyline([(places[id(p)], y.at(p.score)) for p in same], f"curve stroke{same[0].line.colour}")
        drawn.append(tag("g", curve, data_line=same[0].line.key) if len(same) > 1 else Markup())
    marks = [_mark(point, places[id(point)], y, cost) for point in points]
    costs = {point.cost for point in points}
    shown = list(costs) if len(costs) == 1 else ticks
    title = f"{points[0].group.header} against {cost.title}"
    axis_title = f"{cost.title}{', log scale' if x.log else ''}"
    return frame(x, y, axis_title, points[0].group.header, cost.write, *drawn, *marks, title=title, x_ticks=shown)


def _mark(point: Point, x: float, y: Scale, cost: Cost) -> Markup:
    """Draw mean and spread of a group, as a link to its row in the table."""
    group, middle = point.group, y.at(point.score)
    bar = None
    if group.std:
        low, high = y.at(point.score - group.std), y.at(point.score + group.std)
        shape = f"M{x:.1f},{low:.1f}V{high:.1f}M{x - 3:.1f},{low:.1f}h6M{x - 3:.1f},{high:.1f}h6"
        bar = tag("path", d=shape, class_=f"bar stroke{point.line.colour}")
    text = f"{point.line.name_of(group)}: {group.score} at {cost.write(point.cost)}, n = {len(group.runs)}"
    shown = joined(tag("title", text), bar, mark(point.line, x, middle))
    return tag("a", shown, href=f"#{row_id(group)}", aria_label=text, data_line=point.line.key, class_="point")


def _by_line(points: Sequence[Point]) -> list[list[Point]]:
    """Split points by their lines, each in the order of the costs."""
    found: dict[int, list[Point]] = {}
    for point in sorted(points, key=lambda point: point.cost):
        found.setdefault(id(point.line), []).append(point)
    return list(found.values())


def _apart(places: Sequence[float]) -> list[float]:
    """Move places that are nearly the same apart, around where they are."""
    order = sorted(range(len(places)), key=lambda index: places[index])
    moved, crowd = list(places), list[int]()
    for position, index in enumerate(order):
        crowd.append(index)
        last = position + 1 == len(order)
        if last or places[order[position + 1]] - places[index] >= _NEAR:
            middle = sum(places[one] for one in crowd) / len(crowd)
            step = min(_APART, (RIGHT - LEFT) / len(places))
            for number, one in enumerate(sorted(crowd)):
                moved[one] = middle + step * (number - (len(crowd) - 1) / 2)
            crowd = []
    return [min(max(place, LEFT + 4), RIGHT - 4) for place in moved]


def _front_text(points: Sequence[Point]) -> Markup | None:
    """Name the points of the front, for those who do not see it."""
    if not points:
        return None
    names = [
        f"{point.line.name_of(point.group)} ({point.group.score}, n = {len(point.group.runs)})"
        for point in front(points)
    ]
    text = f"On the dashed front, by their means: {'; '.join(names)}. Marks of about the same cost stand side by side."
    return tag("p", text, class_="note")


def _missing_text(groups: Sequence[Group]) -> Markup | None:
    names = [f"{group.label} ({group.score})" for group in groups]
    return tag("p", f"Not drawn, as a number is missing: {', '.join(names)}.", class_="note") if names else None
