"""A picture of scores by method, or of scores against keep."""

from collections.abc import Sequence

import matplotlib.style
from matplotlib.figure import Figure

from fishexp.errors import FishexpError
from fishexp.report.dots import draw_dots
from fishexp.report.group import Group
from fishexp.report.majority import majority_of
from fishexp.report.pool import Pool
from fishexp.report.rates import Passed, passed_over
from fishexp.report.series import series_of
from fishexp.report.shared import is_shared
from fishexp.report.style import STYLE
from fishexp.report.sweep import draw_sweep


def figure(pooled: Pool, metric: str | None = None) -> Figure:
    """Draw a row for each method, or a line against keep where there are several.

    Args:
        metric: Name of the metric to draw; None for the headline.

    Raises:
        FishexpError: If the runs are not of one data set and one model on its reported examples, or lack the metric.
    """
    if not pooled.reported:
        raise FishexpError("these runs are all on held-out training examples; a plot shows the reported ones")
    if metric is not None:
        pooled = pooled.measured_by(metric)
    groups = pooled.reported
    kinds = sorted({f"{group.data} {group.model} {group.metric}" for group in groups})
    if len(kinds) > 1:
        raise FishexpError(
            f"a plot shows one data set, model and metric; these records hold {', '.join(kinds)}; {_remedy(groups)}"
        )
    passed = passed_over(pooled)
    draw = draw_sweep if len({group.keep for group in groups} - {None}) > 1 else draw_dots
    with matplotlib.style.context(STYLE, after_reset=True):
        return draw(series_of(groups, passed), _about(passed), majority_of(groups))


def _remedy(groups: Sequence[Group]) -> str:
    """Say what takes groups of one kind: a word by which they differ, or a metric."""
    for word, key in (("data", "data.name"), ("task", "data.task"), ("model", "model.name")):
        if not is_shared(groups, key):
            value = next(value for group in groups if (value := group.setting(key)))
            return f"words such as {word}={value} take some of them"
    common = [metric for metric in groups[0].metrics if all(metric in group.metrics for group in groups)]
    return f"--metric {common[0]} draws what all have" if common else "name records of one metric"


def _about(passed: Passed) -> str:
    """Say what is drawn hollow; nothing if nothing is."""
    judges = (["on held-out examples"] if passed.held_out else []) + (["of those drawn"] if passed.reported else [])
    return f" Hollow: learning rates that were not the best {' or '.join(judges)}." if judges else ""
