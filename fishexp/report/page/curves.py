"""Learning curves from the run folders, where these are at hand: the headline metric and the training loss by epoch."""

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from fishexp.report.group import Group
from fishexp.report.page.chart import BOTTOM, LEFT, RIGHT, TOP, frame, mark, polyline
from fishexp.report.page.comparison import Line
from fishexp.report.page.markup import Markup, joined, tag
from fishexp.report.page.scale import scale
from fishexp.report.run_folders import files_named
from fishexp.report.scores import scores_of

_METRICS, _LOSS = "metrics.jsonl", "train_loss"
# curves of at most so many epochs have a mark at each
_FEW_EPOCHS = 12

# run_id -> the metrics of each epoch
Histories = Mapping[str, Sequence[Mapping[str, float]]]


@dataclass(frozen=True)
class _Curve:
    line: Line
    seed: int
    points: list[tuple[float, float]]


def read_histories(folders: Sequence[Path]) -> dict[str, list[dict[str, float]]]:
    """Read what the run folders in ``folders`` say of their epochs: run_id -> the numbers of each epoch."""
    read = {run_id: list(_epochs(file)) for run_id, file in files_named(_METRICS, folders).items()}
    return {run_id: epochs for run_id, epochs in read.items() if epochs}


def _epochs(file: Path) -> Iterator[dict[str, float]]:
    """Read the numbers of each line of a file; lines that are none, as while a run writes them, are left out."""
    try:
        lines = file.read_text(errors="replace").splitlines()
    except OSError:
        return
    for line in lines:
        try:
            values = json.loads(line)
        except (ValueError, RecursionError):
            continue
        if isinstance(values, dict):
            numbers = {name: value for name, value in values.items() if isinstance(value, int | float)}
            yield {name: float(value) for name, value in numbers.items() if abs(value) < 1e18}


def draw_curves(lines: Sequence[Line], histories: Histories) -> Markup | None:
    """Draw the learning curves of all runs that have any; None if none has."""
    groups = [group for line in lines for group in line.groups]
    metric = groups[0].metric if groups else ""
    pictures = {
        "Learning curves": _picture(lines, histories, metric, groups[0].header if groups else ""),
        "Training loss": _picture(lines, histories, _LOSS, "mean over the examples"),
    }
    drawn = {title: picture for title, picture in pictures.items() if picture is not None}
    if not drawn:
        return None
    runs = [run["run_id"] for group in groups for run in group.runs]
    missing = sum(run_id not in histories for run_id in runs)
    lacking = f"; {missing} of {len(runs)} runs have no folder here" if missing else ""
    note = tag("p", f"A curve for each run{lacking}.", class_="note")
    return joined(*(tag("figure", tag("figcaption", title), picture, note) for title, picture in drawn.items()))


def _picture(lines: Sequence[Line], histories: Histories, metric: str, title: str) -> Markup | None:
    curves = [curve for line in lines for group in line.groups for curve in _curves(line, group, histories, metric)]
    if not curves:
        return None
    x = scale([epoch for curve in curves for epoch, _ in curve.points], LEFT, RIGHT, may_be_log=False)
    y = scale([value for curve in curves for _, value in curve.points], BOTTOM, TOP, may_be_log=False)
    drawn = []
    for curve in curves:
        places = [(x.at(epoch), y.at(value)) for epoch, value in curve.points]
        marks = [mark(curve.line, *place, size=3.5) for place in places] if len(places) <= _FEW_EPOCHS else None
        last = f"{curve.line.name}, seed {curve.seed}: {curve.points[-1][1]:.4g} after epoch {curve.points[-1][0]:g}"
        shape = polyline(places, f"curve stroke{curve.line.colour}")
        drawn.append(tag("g", tag("title", last), shape, marks, data_line=curve.line.key))
    ticks = [tick for tick in x.ticks(5) if tick.is_integer()]
    return frame(x, y, "epoch", title, "{:g}".format, *drawn, title=f"{title} by epoch", x_ticks=ticks)


def _curves(line: Line, group: Group, histories: Histories, metric: str) -> Iterator[_Curve]:
    for run in group.runs:
        epochs = histories.get(run["run_id"], ())
        values = scores_of(metric, [{"metrics": epoch} for epoch in epochs]).values
        pairs = [(epoch.get("epoch"), value) for epoch, value in zip(epochs, values, strict=True)]
        points = [(at, value) for at, value in pairs if at is not None and value is not None and math.isfinite(value)]
        if points:
            yield _Curve(line, run["config"]["seed"], points)
