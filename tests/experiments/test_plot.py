"""The legends of pictures of scores, which stay within them, and the signs at their points."""

import pytest
from matplotlib.figure import Figure
from matplotlib.text import Annotation

from experiments.lib.plot import Line, _legend, draw_score_against_bytes
from fishexp.report.pool import pool
from tests.support.records import one_class, record


@pytest.mark.parametrize(
    ("name", "columns"), [("random", 3), ("random, a merge every 105 steps", 2), ("long " * 20, 1)]
)
def test_a_legend_has_as_many_columns_as_there_is_room_for(name: str, columns: int) -> None:
    fig = Figure((8, 5), layout="constrained")
    axes = fig.subplots()
    for number in range(7):
        axes.plot([number], label=name)
    _legend(fig, 3)
    fig.draw_without_rendering()
    (legend,) = fig.legends
    assert len({round(text.get_window_extent().x0) for text in legend.get_texts()}) == columns


def test_signs_stand_at_the_points_that_have_them() -> None:
    runs = [one_class(0.7, seed=0), record(0.75, seed=1), record(0.8, keep=0.1), record(0.9, keep=0.2, commit="abc+")]
    groups = pool(runs, uncommitted=True).reported
    fig = draw_score_against_bytes([Line("fish", "", 0, groups)], lambda group: 1e6 * (group.keep or 0), "sent", [])
    assert fig is not None
    marks = {text.get_text(): text.xy for text in fig.axes[0].texts if isinstance(text, Annotation)}
    assert marks == {"‡ (1 of 2)": pytest.approx((5e3, 72.5)), "†": pytest.approx((2e5, 90.0))}
