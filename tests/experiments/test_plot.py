"""The legends of pictures of scores, which stay within them."""

import pytest
from matplotlib.figure import Figure

from experiments.lib.plot import _legend


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
