"""The picture: a row for each method, or a line for each method against keep."""

import numpy as np
import pytest
from matplotlib.text import Annotation

from fishexp.errors import FishexpError
from fishexp.report import plot
from fishexp.report.pool import pool
from tests.support.records import held_out, record


def texts(figure):
    return [text.get_text() for text in (*figure.texts, *figure.axes[0].texts)]


def four_methods():
    levels = {"fish": 0.93, "random": 0.81, "bitfit": 0.87, "full": 0.97}
    return [record(level + seed / 100, seed=seed, method=name) for name, level in levels.items() for seed in range(3)]


def test_dots_show_every_seed_the_mean_and_the_share_of_weights():
    figure = plot.figure(pool(four_methods()))
    axes = figure.axes[0]
    dots = [np.asarray(points.get_offsets()) for points in axes.collections]
    assert dots[0][:, 0].tolist() == pytest.approx([93, 94, 95])
    assert [round(d[:, 1].mean(), 6) for d in dots] == [0, 1, 2, 3]
    assert axes.patches[1].get_extents().transformed(axes.transData.inverted()).intervalx == pytest.approx([81, 83])
    assert axes.get_xlabel() == "accuracy, %"
    written = texts(figure)
    assert written[0] == "digits on resnet10, keep = 0.005, 3 seeds"
    assert written[2:5] == ["fish", "0.5 % of weights", "94.0 ± 1.0"]
    assert written[8:] == ["bitfit", "0.42 % of weights", "88.0 ± 1.0", "full", "100 % of weights", "98.0 ± 1.0"]


def test_rows_of_one_method_say_what_tells_them_apart():
    records = [record(), record(method__samples=64), record(None, method="random"), record(method="full", commit="a+")]
    drawn = texts(plot.figure(pool(records, uncommitted=True)))
    assert "†: uncommitted code." in drawn[1]
    assert drawn[2:] == [
        *("fish", "0.5 % of weights\nsamples=64", "80.0"),
        *("fish", "0.5 % of weights\nsamples=1024", "80.0"),
        *("random", "0.5 % of weights", "undefined (1 of 1)"),
        *("full †", "100 % of weights", "80.0"),
    ]
    rates = plot.series(pool([record(), record(regime__lr=0.2)]).reported)
    assert [series.detail for series in rates] == ["lr=0.1", "lr=0.2"]
    assert rates[0].colour != rates[1].colour


def test_runs_with_other_random_streams_have_a_row_of_their_own():
    rows = plot.series(pool([record(streams=None), record()]).reported)
    assert [series.detail for series in rows] == ["streams=1", "streams=2"]


def sweep():
    keeps = (0.1, 0.001, 0.01)
    records = [record(0.9 + k + s / 100, seed=s, keep=k, regime__lr=k) for k in keeps for s in range(3)]
    return records + [r for r in four_methods() if r["config"]["method"]["name"] in ("bitfit", "full")]


def test_several_keeps_make_lines_with_bands_and_a_dashed_reference():
    axes = plot.figure(pool(sweep())).axes[0]
    line = next(line for line in axes.lines if line.get_marker() == "o")
    assert line.get_xdata() == pytest.approx([0.001, 0.01, 0.1])
    assert line.get_ydata() == pytest.approx([91.1, 92, 101])
    dashed = next(line for line in axes.lines if line.get_linestyle() == "--")
    assert np.asarray(dashed.get_ydata()) == pytest.approx([98, 98])
    band = np.asarray(axes.collections[0].get_paths()[0].vertices)
    assert (band[:, 1].min(), band[:, 1].max()) == pytest.approx((90.1, 102))
    point = next(line for line in axes.lines if line.get_marker() == "D")
    assert point.get_xdata() == pytest.approx([1290 / 307466])
    assert axes.get_xscale() == "log"
    assert [label.get_text() for label in axes.get_xticklabels()] == ["0.1 %", "1 %", "10 %"]
    assert {text.get_text() for text in axes.texts} == {"fish", "bitfit", "full"}


def test_names_of_lines_that_end_close_together_do_not_overlap():
    ends = {"fish": 0.9, "random": 0.9, "magnitude": 0.901, "zebra": 0.5}
    axes = plot.figure(
        pool([record(e * (1 - k), method=m, keep=k) for m, e in ends.items() for k in (0.001, 0.1)])
    ).axes[0]
    low, high = axes.get_ylim()
    heights = sorted(text.xy[1] for text in axes.texts if isinstance(text, Annotation))
    assert heights[:2] == pytest.approx([45, 81])
    assert np.diff(heights).min() >= 0.06 * (high - low) * 0.999


def test_a_sweep_names_what_it_cannot_draw():
    axes = plot.figure(pool([*sweep(), record(None, keep=0.05, kept=15373)])).axes[0]
    assert axes.get_xlabel().endswith("\nfish at 5 %: undefined (1 of 1)")
    line = next(line for line in axes.lines if line.get_marker() == "o")
    assert np.isnan(line.get_ydata()).tolist() == [False, False, True, False]


def test_a_plot_refuses_what_one_picture_cannot_show():
    with pytest.raises(
        FishexpError, match=r"one data set, model and metric; .*cifar10 resnet10 accuracy, digits resnet10"
    ):
        plot.figure(pool([record(), record(data__name="cifar10")]))
    with pytest.raises(FishexpError, match="all on held-out training examples"):
        plot.figure(pool([held_out(0.7, 0.1)]))


def test_held_out_runs_are_not_drawn():
    assert len(plot.figure(pool([record(), held_out(0.7, 0.1)])).axes[0].collections) == 1


def test_the_same_records_give_the_same_picture(written, tmp_path):
    path = str(written(four_methods()))
    for name in ("a.png", "b.png"):
        assert plot.main([path, "-o", str(tmp_path / name)]) == 0
    first = (tmp_path / "a.png").read_bytes()
    assert first == (tmp_path / "b.png").read_bytes()
    assert int.from_bytes(first[16:20], "big") == 1600  # pixels wide


@pytest.mark.parametrize(
    ("name", "message"), [("x.svg", "ends in .png"), ("no/x.png", "cannot be written: No such file")]
)
def test_a_picture_that_cannot_be_written(written, tmp_path, capsys, name, message):
    assert plot.main([str(written([record()])), "-o", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err
