"""The picture: a row for each method, or a line for each method against keep."""

import itertools
from typing import Any

import matplotlib
import numpy as np
import pytest
from matplotlib.collections import LineCollection, PathCollection
from matplotlib.colors import to_hex
from matplotlib.lines import Line2D
from matplotlib.text import Annotation

from fishexp.errors import FishexpError
from fishexp.report import colours, picture, plot, style
from fishexp.report.pool import pool
from fishexp.report.rates import passed_over
from fishexp.report.series import Series, series_of
from fishexp.report.sweep import spread
from tests.support.records import held_out, one_class, record


def points(line: Line2D) -> list[tuple[float, float]]:
    return list(zip(np.asarray(line.get_xdata()).tolist(), np.asarray(line.get_ydata()).tolist(), strict=True))


def first_colour(colours: Any) -> str:
    return to_hex(tuple(np.asarray(colours)[0]), keep_alpha=False).upper()


def drawn_series(records) -> list[Series]:
    pooled = pool(records)
    return series_of(pooled.reported, passed_over(pooled))


def texts(figure):
    return [text.get_text() for text in (*figure.texts, *figure.axes[0].texts)]


def four_methods():
    levels = {"fish": 0.93, "random": 0.81, "bitfit": 0.87, "full": 0.97}
    return [record(level + seed / 100, seed=seed, method=name) for name, level in levels.items() for seed in range(3)]


def test_dots_show_every_seed_the_mean_and_the_share_of_weights():
    figure = picture.figure(pool(four_methods()))
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
    drawn = texts(picture.figure(pool(records, uncommitted=True)))
    assert "†: uncommitted code." in drawn[1]
    assert drawn[2:] == [
        *("fish", "0.5 % of weights, samples=64", "80.0"),
        *("fish", "0.5 % of weights, samples=1024", "80.0"),
        *("random", "0.5 % of weights", "undefined (1 of 1)"),
        *("full †", "100 % of weights", "80.0"),
    ]


def test_runs_with_other_random_streams_have_a_row_of_their_own():
    assert [series.detail for series in drawn_series([record(streams=None), record()])] == ["streams=1", "streams=2"]


def test_learning_rates_of_a_method_have_its_colour_and_are_hollow_unless_they_were_best():
    records = [record(score, regime__lr=lr, method=name) for name in ("fish", "full") for lr, score in RATES.items()]
    figure = picture.figure(pool(records))
    rows = [points for points in figure.axes[0].collections if isinstance(points, PathCollection)]
    assert "Hollow: learning rates that were not the best of those drawn." in texts(figure)[1].replace("\n", " ")
    filled = [first_colour(points.get_facecolor()) for points in rows]
    fish, full = colours.COLOURS["fish"], colours.COLOURS["full"]
    assert filled == ["#FFFFFF", fish, "#FFFFFF", "#FFFFFF", full, "#FFFFFF"]
    edges = [first_colour(points.get_edgecolor()) for points in rows]
    assert edges == [fish, "#FFFFFF", fish, full, "#FFFFFF", full]
    assert texts(figure)[3:7] == ["0.5 % of weights, lr=0.1", "80.0", "fish", "0.5 % of weights, lr=0.2"]


RATES = {0.1: 0.8, 0.2: 0.85, 0.4: 0.7}


def test_held_out_examples_decide_which_learning_rate_was_chosen_where_there_are_any():
    records = [record(score, regime__lr=lr) for lr, score in RATES.items()]
    (series,) = drawn_series([*records, held_out(0.9, 0.4), held_out(0.8, 0.2)])
    assert [group.lr for group in series.groups] == [0.4]
    assert [group.lr for group in series.passed] == [0.1, 0.2]
    elsewhere = drawn_series([*records, held_out(0.9, 0.4, keep=0.1)])[0]  # another question
    assert [group.lr for group in elsewhere.groups] == [0.2]
    caption = texts(picture.figure(pool([*records, held_out(0.9, 0.4)])))[1].replace("\n", " ")
    assert "not the best on held-out examples." in caption
    (alone,) = drawn_series([record(), held_out(0.9, 0.4), held_out(0.8, 0.1)])
    assert (alone.groups, [group.lr for group in alone.passed]) == ([], [0.1])


def test_a_line_goes_through_the_best_learning_rate_at_each_keep():
    scores = {(0.01, 0.1): 0.8, (0.01, 0.2): 0.7, (0.1, 0.1): 0.85, (0.1, 0.2): 0.9}
    axes = picture.figure(pool([record(s, keep=keep, regime__lr=lr) for (keep, lr), s in scores.items()])).axes[0]
    line, *hollow = axes.lines
    assert line.get_ydata() == pytest.approx([80, 90])
    assert [points(mark) for mark in hollow] == [[(0.01, 70)], [(0.1, 85)]]
    assert {mark.get_markerfacecolor() for mark in hollow} == {"white"}
    assert {line.get_color() for line in axes.lines} == {colours.COLOURS["fish"]}


def sweep():
    keeps = (0.1, 0.001, 0.01)
    records = [record(0.9 + k + s / 100, seed=s, keep=k, regime__lr=k) for k in keeps for s in range(3)]
    return records + [r for r in four_methods() if r["config"]["method"]["name"] in ("bitfit", "full")]


def test_several_keeps_make_lines_with_bands_and_a_dashed_reference():
    axes = picture.figure(pool(sweep())).axes[0]
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
    assert {text.get_text() for text in axes.texts} == {"fish", "◆ bitfit", "full"}


def test_a_method_at_one_budget_has_a_bar_in_the_place_of_a_band():
    scores = [0.80, 0.82, 0.84]  # a mean of 82 and a deviation of 2 %
    alone = [record(score, method="random", seed=seed, keep=0.01) for seed, score in enumerate(scores)]
    axes = picture.figure(pool([*sweep(), *alone])).axes[0]
    (bar,) = [
        collection.get_segments()[0]
        for collection in axes.collections
        if isinstance(collection, LineCollection) and collection.get_segments()[0][0][0] == pytest.approx(0.01)
    ]
    assert bar[:, 1] == pytest.approx([80, 84])


def crowded():
    """Lines that end at the same score, two of a method, and a largest class just below."""
    names = {"fish": 0.9, "random": 0.9, "magnitude": 0.901, "zebra": 0.9, "ant": 0.5, "bitfit": 0.9, "full": 0.9}
    known = {"largest_class": 0.898, "largest_predicted": 0.95}
    records = [record(e * (1 - k / 9), method=m, keep=k, more=known) for m, e in names.items() for k in (0.001, 0.1)]
    return records + [record(0.89, keep=keep, method__samples=64, more=known) for keep in (0.001, 0.1)]


@pytest.mark.parametrize("records", [crowded, four_methods, lambda: sweep()])
def test_no_text_overlaps_another(records):
    figure = picture.figure(pool(records()))
    figure.draw_without_rendering()
    axes = figure.axes[0]
    labels = [axes.xaxis.label, *axes.get_xticklabels(), *axes.get_yticklabels(), *figure.texts, *axes.texts]
    boxes = [text.get_window_extent() for text in labels if text.get_text()]
    assert len(boxes) > 8
    for one, other in itertools.combinations(boxes, 2):
        width = min(one.x1, other.x1) - max(one.x0, other.x0)
        height = min(one.y1, other.y1) - max(one.y0, other.y0)
        assert min(width, height) < 2  # pixels
    whole = figure.bbox
    assert all(box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1 for box in boxes)


def test_texts_are_moved_apart_as_little_as_can_be():
    assert spread([1, 5], [1, 1], 0, 10) == [1, 5]
    assert spread([5, 5], [1, 1], 0, 10) == [4.5, 5.5]
    assert spread([4, 5, 5, 9.8], [1, 1, 1, 1], 0, 10) == pytest.approx([11 / 3, 14 / 3, 17 / 3, 9.5])
    assert spread([9, 9, 9], [2, 2, 2], 0, 10) == [5, 7, 9]
    assert spread([1, 1, 1], [2, 2, 2], 0, 5) == [1, 3, 5]  # no room for all
    assert spread([], [], 0, 1) == []


def test_series_of_a_method_differ_in_line_and_marker_and_say_what_they_are():
    axes = picture.figure(pool(crowded())).axes[0]
    fish = [line for line in axes.lines if line.get_color() == colours.COLOURS["fish"]]
    assert [line.get_marker() for line in fish] == ["o", "s"]
    assert fish[0].get_linestyle() != fish[1].get_linestyle()
    written = [text.get_text() for text in axes.texts]
    assert {"● fish", "samples=64", "■ fish", "samples=1024", "random", "full"} <= set(written)
    assert written.count("samples=64") == 1


def test_units_of_a_method_have_its_colour_and_a_name_of_their_own():
    names = ("entry", "row", "column", "channel")
    records = [
        record(0.5 + keep + i / 20, keep=keep, method__unit=n) for i, n in enumerate(names) for keep in (0.01, 0.1)
    ]
    axes = picture.figure(pool(records)).axes[0]
    fish = [line for line in axes.lines if line.get_color() == colours.COLOURS["fish"]]
    assert [line.get_marker() for line in fish] == ["o", "s", "^", "v"]
    written = {text.get_text() for text in axes.texts}
    assert {"● fish", "■ fish channels", "▲ fish columns", "▼ fish rows"} <= written
    assert "fish rows" in texts(picture.figure(pool([record(method__unit="row")])))


def test_the_share_of_the_largest_class_is_a_line_where_it_is_near():
    records = [one_class(0.684, seed=seed) for seed in range(3)] + [record(0.75, method="full", more=MRPC)]
    figure = picture.figure(pool(records))
    dotted = [line for line in figure.axes[0].lines if line.get_color() == style.QUIET]
    assert [points(line)[0][0] for line in dotted] == pytest.approx([68.4])
    written = texts(figure)
    assert "largest class 68.4 %" in written
    assert "68.4 ± 0.0 ‡" in written
    assert "‡: the same class for all examples." in written[1].replace("\n", " ")
    assert "75.0" in written


def test_a_largest_class_far_from_the_scores_is_told_and_not_drawn():
    figure = picture.figure(pool([record(0.97, seed=seed, more={"largest_class": 0.1}) for seed in range(2)]))
    assert "The largest class 10.0\u00a0% is beyond the picture." in texts(figure)[1].replace("\n", " ")
    assert not [line for line in figure.axes[0].lines if line.get_color() == style.QUIET]
    assert "largest class" not in " ".join(texts(picture.figure(pool([record(), record(method="full")]))))


def test_the_largest_class_is_a_level_line_in_a_sweep_and_marks_are_at_their_points():
    records = [record(0.75, keep=0.1, more=MRPC), one_class(0.684, keep=0.01)]
    axes = picture.figure(pool(records)).axes[0]
    levels = [points(line)[0][1] for line in axes.lines if line.get_color() == style.QUIET]
    assert levels == pytest.approx([68.4])
    marks = {text.get_text(): text.xy for text in axes.texts if isinstance(text, Annotation)}
    assert marks["‡"] == pytest.approx((0.01, 68.4))
    assert "largest class 68.4 %" in marks


MRPC = {"largest_class": 0.684, "largest_predicted": 0.9, "f1": 0.82}


def test_another_metric_can_be_drawn():
    records = [record(0.7, seed=seed, more=MRPC | {"f1": 0.8 + seed / 100}) for seed in range(3)]
    axes = picture.figure(pool(records), "f1").axes[0]
    assert np.asarray(axes.collections[0].get_offsets())[:, 0].tolist() == pytest.approx([80, 81, 82])
    assert axes.get_xlabel() == "f1, x100"
    assert "largest class" not in " ".join(text.get_text() for text in axes.texts)  # that is no share of right answers
    with pytest.raises(FishexpError, match=r"^--metric f2: not all of these runs have it; all have accuracy, f1$"):
        picture.figure(pool(records), "f2")
    with pytest.raises(FishexpError, match=r"all have accuracy$"):
        picture.figure(pool([*records, record(method="full")]), "f1")


@pytest.mark.parametrize(("metric", "passed"), [("mse", 0.4), ("mse_matched", 0.4), ("error_reduction", 0.1)])
def test_of_an_error_the_rate_with_the_least_is_filled(metric: str, passed: float) -> None:
    more = {"loss_matched": 0.1}
    records = [record(regime__lr=lr, more=more | {metric: value}) for lr, value in ((0.1, 0.2), (0.4, 0.9))]
    drawn = pool(records).measured_by(metric)
    assert [group.lr for group in passed_over(drawn).reported] == [passed]


def test_a_hundred_seeds_and_names_that_the_font_lacks_are_drawn():
    records = [
        record(0.8 + seed / 1000, seed=seed, method=name) for name in ("魚 $x^2$", "n" * 99) for seed in range(100)
    ]
    figure = picture.figure(pool(records))
    figure.draw_without_rendering()  # a glyph that is missing would be a warning, a formula that is none an error
    assert "<U+9B5A> $x^2$" in texts(figure)
    assert "n" * 39 + "…" in texts(figure)
    assert "100 seeds" in texts(figure)[0]
    assert len(np.asarray(figure.axes[0].collections[0].get_offsets())) == 100


def test_more_rows_than_a_picture_holds_are_refused():
    records = [record(method=f"m{number}") for number in range(101)]
    with pytest.raises(FishexpError, match="has room for 100 rows, and these records make 101"):
        picture.figure(pool(records))


def test_a_line_goes_by_budget_and_its_name_is_at_its_right_end_whatever_comes_first():
    found = pool([record(score, keep=keep) for keep, score in ((0.02, 0.9), (0.001, 0.5), (0.005, 0.6))])
    found.reported.reverse()
    (axes,) = picture.figure(found).axes
    assert points(axes.lines[0]) == [pytest.approx(point) for point in ((0.001, 50), (0.005, 60), (0.02, 90))]
    (name,) = [text for text in axes.texts if isinstance(text, Annotation) and text.get_text() == "fish"]
    assert name.xy[1] == pytest.approx(90, abs=2)


def test_a_sweep_names_what_it_cannot_draw():
    axes = picture.figure(pool([*sweep(), record(None, keep=0.05, kept=15373)])).axes[0]
    assert axes.get_xlabel().endswith("\nfish at 5 %: undefined (1 of 1)")
    line = next(line for line in axes.lines if line.get_marker() == "o")
    assert np.isnan(line.get_ydata()).tolist() == [False, False, True, False]


def test_a_plot_refuses_what_one_picture_cannot_show():
    with pytest.raises(
        FishexpError, match=r"one data set, model and metric; .*cifar10 resnet10 accuracy, digits resnet10"
    ):
        picture.figure(pool([record(), record(data__name="cifar10")]))
    with pytest.raises(FishexpError, match="all on held-out training examples"):
        picture.figure(pool([held_out(0.7, 0.1)]))


def test_held_out_runs_are_not_drawn():
    assert len(picture.figure(pool([record(), held_out(0.7, 0.1)])).axes[0].collections) == 1


@pytest.mark.parametrize("ending", ["png", "svg", "pdf"])
def test_the_same_records_give_the_same_picture(written, tmp_path, ending):
    path = str(written(four_methods()))
    for name, setting in (("a", False), ("b", True)):
        with matplotlib.rc_context({"savefig.transparent": setting, "svg.hashsalt": str(setting)}):  # somebody's own
            assert plot.main([path, "-o", str(tmp_path / f"{name}.{ending}")]) == 0
    first = (tmp_path / f"a.{ending}").read_bytes()
    assert first == (tmp_path / f"b.{ending}").read_bytes()
    assert not [word for word in (b"Date", b"dc:date", b"atplotlib v", b"Matplotlib v") if word in first]
    if ending == "png":
        assert int.from_bytes(first[16:20], "big") == 1600  # pixels wide
    else:
        assert first.startswith(b"%PDF" if ending == "pdf" else b"<?xml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("x.jpg", "pictures are PNG, SVG or PDF files; give a name that ends in .png, .svg, .pdf"),
        ("x", "pictures are PNG, SVG or PDF files"),
        ("no/x.png", "cannot be written: No such file"),
    ],
)
def test_a_picture_that_cannot_be_written(written, tmp_path, capsys, name, message):
    assert plot.main([str(written([record()])), "-o", str(tmp_path / name)]) == 2
    assert message in capsys.readouterr().err
