"""The Markdown table: its rows, columns and units, and how learning rates were chosen."""

import pytest

from fishexp.report import table
from fishexp.report.pool import differing, pool
from tests.support.records import cells, column, held_out, record


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


def test_random_streams_of_before_are_told_apart_from_those_of_now():
    both = [record(0.5, streams=None), record(0.6)]
    assert column(both, "streams") == ["1", "2"]
    assert column(both, "accuracy, %") == ["50.0", "60.0"]
    said = "ade with the random streams of fishexp 0.1: the same seeds draw other numbers now."
    assert table.markdown(pool(both)).endswith(f"\n\nThose with streams=1 were m{said}")
    assert table.markdown(pool(both[:1])).endswith(f"\n\nM{said}")
    assert "streams" not in table.markdown(pool(both[1:]))


def test_learning_rates_chosen_with_the_random_streams_of_before_are_a_family_of_their_own():
    records = [record(0.9, regime__lr=0.002), held_out(0.7, 0.0005, streams=None), held_out(0.75, 0.002, streams=None)]
    assert column(records, "lr chosen from") == ["0.0005, **0.002** (on 1,000 held-out examples, 1 seed)"]
    records += [held_out(0.8, 0.0005), held_out(0.71, 0.002)]
    assert column(records, "lr chosen from") == [
        "0.0005, **0.002** (on 1,000 held-out examples, 1 seed); **0.0005**, 0.002 "
        "(on 1,000 held-out examples, 1 seed), but this row ran at 0.002"
    ]


def test_decay_of_all_weights_is_always_shown():
    assert column([record(decay="all"), record(method="full", decay="all")], "decay") == ["all", "all"]
    assert column([record(decay="all"), record()], "decay") == ["all", "kept"]
    assert "decay" not in table.markdown(pool([record()]))


def test_text_does_not_break_the_table():
    assert "a\\|b" in table.markdown(pool([record(data__name="a|b")]))


def test_uncommitted_code_is_marked_where_it_is_allowed():
    records = [record(run_id="dirty", commit="abc+"), record(seed=1), record(method="random")]
    assert column(records, "accuracy, %", uncommitted=True) == ["80.0 ± 0.0 †", "80.0"]
    assert table.markdown(pool(records, uncommitted=True)).endswith("† with uncommitted code: dirty")


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
