import copy
import json
import re
import subprocess
import sys

import numpy as np
import pytest
from matplotlib.text import Annotation

from fishexp.errors import FishexpError
from fishexp.report import plot, table
from fishexp.report.pool import differing, pool

FISH = {"name": "fish", "samples": 1024, "labels": "true_label"}
METHODS = {
    "fish": FISH,
    "bitfit": {"name": "bitfit", "ignores_keep": True},
    "full": {"name": "full", "ignores_keep": True},
}
CONFIG = {
    "model": {"name": "resnet10", "module": "resnet", "layers": 10},
    "data": {"name": "digits", "train_limit": None, "valid_limit": None, "holdout": 0},
    "regime": {"name": "transfer", "epochs": 10, "lr": 0.1, "optimiser": "sgd"},
    "precision": "fp32",
    "decay": "kept",
    "compat": "none",
}


def record(
    score: float | None = 0.8, *, seed=0, method="fish", keep=0.005, metric="accuracy", status="finished", **settings
):
    """A record whose run_id stands for its settings; a dot in one of ``settings`` is written __."""
    run_id, commit = settings.pop("run_id", None), settings.pop("commit", "0123456789ab")
    kept = settings.pop("kept", {"bitfit": 1290, "full": 307466}.get(method, 1537))
    keep = None if method in ("bitfit", "full") else keep
    config = copy.deepcopy(CONFIG | {"method": METHODS.get(method, {"name": method}), "keep": keep, "seed": seed})
    for key, value in settings.items():
        *groups, last = key.split("__")
        place = config
        for group in groups:
            place = place[group]
        place[last] = value
    return {
        "run_id": run_id or json.dumps(config, sort_keys=True),
        "config": config,
        "status": status,
        "kept": kept,
        "total": 307466,
        "metrics": {metric: score, "loss": 0.3} if status == "finished" else {},
        "seconds": {"data": 1.0, "train": 2.0 + seed} if status == "finished" else {},
        "commit": commit,
    }


def held_out(score, lr, **settings):
    return record(score, metric="accuracy_holdout", data__holdout=1000, regime__lr=lr, **settings)


def cells(text, row):
    """The cells of a line of Markdown; 0 is the header, 2 the first row."""
    return [cell.strip() for cell in text.splitlines()[row].strip("|").split(" | ")]


def column(records, header, **options):
    text = next(t for t in table.markdown(pool(records, **options)).split("\n\n") if t.startswith("|"))
    return [cells(text, row)[cells(text, 0).index(header)] for row in range(2, len(text.splitlines()))]


@pytest.fixture
def written(tmp_path):
    def write(records, name="records.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(line) + "\n" for line in records))
        return path

    return write


def test_the_whole_table():
    records = [record(0.8 + seed / 100, seed=seed) for seed in (2, 0, 1)]
    records += [record(0.9712, method="full"), record(status="failed", seed=3), record(status="interrupted", seed=4)]
    assert table.markdown(pool(records)) == (
        "| data set | model    | method |  keep | weights moved | accuracy, % | seeds | seconds |  lr |\n"
        "| -------- | -------- | ------ | ----: | ------------: | ----------: | ----: | ------: | --: |\n"
        "| digits   | resnet10 | fish   | 0.005 |         1,537 |  81.0 ± 1.0 |     3 |     4.0 | 0.1 |\n"
        "| digits   | resnet10 | full   |     – |       307,466 |        97.1 |     1 |     3.0 | 0.1 |\n"
        "\n"
        "Not shown, because they did not finish: 1 failed, 1 interrupted."
    )


def test_std_is_the_sample_standard_deviation_and_seconds_the_median():
    group = pool([record(score, seed=seed) for seed, score in enumerate([0.70, 0.74, 0.81, 0.9])]).reported[0]
    assert group.mean == pytest.approx(100 * np.mean([0.70, 0.74, 0.81, 0.9]))
    assert group.std == pytest.approx(100 * np.std([0.70, 0.74, 0.81, 0.9], ddof=1))
    assert group.seconds == 4.5


@pytest.mark.parametrize(
    "other",
    [
        {"regime__epochs": 11},
        {"data__train_limit": 100},
        {"keep": 0.006},
        {"precision": "bf16"},
        {"metric": "f1"},
        {"new": 1},
    ],
)
def test_runs_that_differ_in_more_than_the_seed_do_not_pool(other):
    assert [len(group.runs) for group in pool([record(), record(seed=1), record(seed=2, **other)]).reported] in (
        [1, 2],
        [2, 1],
    )


def test_the_latest_record_of_a_run_counts():
    again = pool([record(status="failed"), record(0.5), record(0.6, seed=1), record(0.7)])
    assert [group.values for group in again.reported] == [pytest.approx([70, 60])]
    assert not again.unfinished
    failed_later = pool([record(0.5), record(0.6, seed=1), record(status="failed")])
    assert failed_later.reported[0].values == pytest.approx([50, 60])  # the result is not taken away
    assert not failed_later.unfinished


def test_of_two_runs_with_equal_settings_the_later_counts():
    first, second = record(0.5, run_id="a"), record(0.6, run_id="b")
    assert pool([first, second]).reported[0].values == [60]
    assert pool([second, first]).reported[0].values == [50]
    assert pool([first, second, first]).reported[0].values == [50]


def test_an_undefined_metric_is_neither_zero_nor_nan():
    records = [record(0.5), record(None, seed=1), record(float("nan"), seed=2)]
    assert column(records, "accuracy, %") == ["undefined (2 of 3)"]
    assert pool(records).reported[0].mean is None


def test_each_metric_keeps_its_convention():
    settings = {"cola": ("matthews", 0.612), "stsb": ("pearson", 0.9), "rte": ("accuracy", 0.7)}
    records = [record(s, metric=m, data__name="glue", data__task=t) for t, (m, s) in settings.items()]
    assert column(records[:1], "matthews, x100") == ["61.2"]
    assert column(records, "data set") == ["glue/cola", "glue/rte", "glue/stsb"]
    assert column(records, "metric") == ["matthews, x100", "accuracy, %", "pearson, x100"]
    assert column(records, "score") == ["61.2", "70.0", "90.0"]
    assert column([record(12.34567, metric="bleu")], "bleu") == ["12.35"]


def test_methods_and_keeps_are_in_order():
    names = ["zebra", "full", "bitfit", "ant", "magnitude", "random", "fish"]
    records = [record(method=name) for name in names] + [record(keep=keep) for keep in (0.1, 0.02)]
    methods = ["fish", "fish", "fish", "random", "magnitude", "bitfit", "full", "ant", "zebra"]
    assert column(records, "method") == methods
    assert column(records, "keep")[:3] == ["0.005", "0.02", "0.1"]


def test_settings_get_a_column_where_they_differ_between_rows():
    records = [record(), record(method__samples=64), record(method="random"), record(method="full", regime__epochs=5)]
    assert differing(pool(records).reported) == ["regime.epochs", "method.samples"]
    assert column(records, "method.samples") == ["64", "1024", "", ""]
    assert column(records, "regime.epochs") == ["10", "10", "10", "5"]
    assert differing(pool(records[::2]).reported) == []  # random has no samples to differ in
    assert differing(pool([record(), record(new=1)]).reported) == ["new"]  # an older record has not
    assert differing(pool([record(), record(model__name="resnet18", model__layers=18)]).reported) == []


def test_decay_of_all_weights_is_always_shown():
    assert column([record(decay="all"), record(method="full", decay="all")], "decay") == ["all", "all"]
    assert column([record(decay="all"), record()], "decay") == ["all", "kept"]
    assert "decay" not in table.markdown(pool([record()]))


def test_text_does_not_break_the_table():
    assert "a\\|b" in table.markdown(pool([record(data__name="a|b")]))


def test_uncommitted_code_is_refused():
    dirty = [record(seed=seed, run_id=f"run{seed}", commit="abc+") for seed in (0, 1)]
    with pytest.raises(
        FishexpError, match=r"^runs run0, run1 are of uncommitted code; commit .* or pass --uncommitted$"
    ):
        pool([*dirty, record(seed=2)])
    with pytest.raises(FishexpError, match=r"^run run0 is of"):
        pool(dirty[:1])


def test_uncommitted_code_is_marked_where_it_is_allowed():
    records = [record(run_id="dirty", commit="abc+"), record(seed=1), record(method="random")]
    assert column(records, "accuracy, %", uncommitted=True) == ["80.0 ± 0.0 †", "80.0"]
    assert table.markdown(pool(records, uncommitted=True)).endswith("† with uncommitted code: dirty")


def test_uncommitted_code_is_no_matter_once_it_ran_again_or_did_not_finish():
    dirty = record(run_id="a", commit="abc+")
    for records in (
        [dirty, record(0.7, run_id="a")],
        [record(0.7), record(seed=1, commit="abc+", status="failed")],
        [record(0.7, commit=None)],
    ):
        assert pool(records).reported[0].score == "70.0"


def test_learning_rates_come_from_the_held_out_runs_of_the_same_question():
    records = [record(0.9, regime__lr=0.002), held_out(0.7, 0.0005), held_out(0.75, 0.002, regime__epochs=10)]
    assert column(records, "lr chosen from") == ["0.0005, **0.002** (on 1,000 held-out examples, 1 seed)"]
    assert column(records, "accuracy, %") == ["90.0"]


def test_a_row_that_did_not_run_at_the_best_learning_rate_says_so():
    cheaper = {"regime__epochs": 2, "data__train_limit": 500, "data__valid_limit": 300}
    tried = [held_out(score, 0.2, seed=seed, **cheaper) for seed, score in enumerate([0.6, 0.9])]
    records = [record(), held_out(0.7, 0.1, **cheaper), *tried]
    assert column(records, "lr chosen from") == [
        "0.1, **0.2** (on 300 held-out examples, 1–2 seeds), but this row ran at 0.1"
    ]


@pytest.mark.parametrize(
    "other",
    [
        {"method": "random"},
        {"keep": 0.01},
        {"method__samples": 64},
        {"precision": "bf16"},
        {"decay": "all"},
        {"compat": "fish"},
        {"model__name": "resnet18"},
        {"data__name": "cifar10"},
        {"data__task": "rte"},
        {"regime__optimiser": "adamw"},
    ],
)
def test_a_row_without_held_out_runs_of_its_own_is_not_tuned(other):
    assert column([record(), held_out(0.7, 0.1, **other)], "lr chosen from") == ["not tuned"]


def test_candidates_are_compared_under_one_protocol_only():
    records = [record(), held_out(0.7, 0.1), held_out(0.8, 0.2, regime__epochs=3), held_out(None, 0.4)]
    assert column(records, "lr chosen from") == [
        "**0.2** (on 1,000 held-out examples, 1 seed), but this row ran at 0.1; "
        "**0.1**, 0.4 (on 1,000 held-out examples, 1 seed)"
    ]


def test_learning_rates_of_one_family_stand_together():
    runs = [held_out(0.7, lr, regime__weight_decay=decay) for lr in (0.2, 0.1) for decay in (1, 0)]
    assert column(runs, "lr") == ["**0.1**", "**0.2**", "**0.1**", "**0.2**"]
    assert column(runs, "regime.weight_decay") == ["0", "0", "1", "1"]


def test_held_out_runs_have_a_table_of_their_own():
    runs = [held_out(0.7, 0.1), held_out(0.7, 0.2), held_out(0.6, 0.4), held_out(0.5, 0.1, method="random")]
    text = table.markdown(pool([record(0.9), *runs]))
    _, title, second = text.split("\n\n")
    assert title.startswith("**Chosen on held-out training examples**")
    assert cells(second, 0)[-2:] == ["lr", "held-out examples"]
    assert [cells(second, row)[-4:-1] for row in range(2, 6)] == [
        ["1", "3.0", "**0.1**"],
        ["1", "3.0", "**0.2**"],
        ["1", "3.0", "0.4"],
        ["1", "3.0", "**0.1**"],
    ]
    assert table.markdown(pool(runs)) == f"{title}\n\n{second}"


@pytest.mark.parametrize("module", [table, plot])
@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is not a file of records"),
        ("{}\n", "line 1 is not a record"),
        ("", "no finished run among the 0 in the records"),
        (json.dumps(record(status="failed")), r"no finished run among the 1 in the records \(1 failed\)"),
        (json.dumps(record(run_id="x") | {"metrics": {}}), "the record of run x says finished but has no metrics"),
        (
            json.dumps({"run_id": "x", "status": "finished", "config": {}, "metrics": {}}),
            "the record of run x is not one of ours",
        ),
        (json.dumps(record(run_id="x", commit="abc+")), "run x is of uncommitted code"),
        (b"\xff\n", "cannot be read"),
    ],
)
def test_a_mistake_is_one_line(module, content, message, tmp_path, capsys):
    path = tmp_path / "records.jsonl"
    if content is not None:
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
    arguments = [str(path)] + (["-o", str(tmp_path / "x.png")] if module is plot else [])
    assert module.main(arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.count("\n") == 1
    assert err.startswith("fishexp: ")
    assert re.search(message, err)
    assert not (tmp_path / "x.png").exists()


def test_command_line_reads_several_files_in_order(written, capsys):
    files = [str(written([record(0.5)], "a.jsonl")), str(written([record(0.6, commit="abc+")], "b.jsonl"))]
    assert table.main([*reversed(files)]) == 0
    assert "|        50.0 |" in capsys.readouterr().out
    assert table.main(files) == 2
    assert table.main([*files, "--uncommitted"]) == 0
    assert "|      60.0 † |" in capsys.readouterr().out


def test_reports_need_no_torch_and_the_table_no_matplotlib():
    code = "import sys, fishexp.report.{}; print([m for m in ('torch', 'hydra', 'matplotlib') if m in sys.modules])"
    for name, needs in (("table", "[]"), ("plot", "['matplotlib']")):
        done = subprocess.run([sys.executable, "-c", code.format(name)], capture_output=True, text=True, check=True)
        assert done.stdout.strip() == needs


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
    assert [one.detail for one in rates] == ["lr=0.1", "lr=0.2"]
    assert rates[0].colour != rates[1].colour


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
