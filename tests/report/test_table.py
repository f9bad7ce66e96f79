"""The Markdown table: its rows, columns and units, and how learning rates were chosen."""

from typing import Any

import pytest

from fishexp.report import table
from fishexp.report.pool import differing, pool
from tests.support.records import above, cells, column, held_out, one_class, record, tables


def test_the_whole_table():
    records = [record(0.8 + seed / 100, seed=seed) for seed in (2, 0, 1)]
    records += [record(0.9712, method="full"), record(status="failed", seed=3), record(status="interrupted", seed=4)]
    assert table.markdown(pool(records)) == (
        "All rows: data set digits; model resnet10; training examples all; reported examples all; regime transfer; "
        "epochs 10; lr\n0.1; optimiser sgd; precision fp32; decay kept; fish (samples 1,024, labels true_label).\n"
        "\n"
        "| method |  keep | accuracy, % | weights moved | seeds | seconds |\n"
        "| ------ | ----: | ----------: | ------------: | ----: | ------: |\n"
        "| fish   | 0.005 |  81.0 ± 1.0 |         1,537 |     3 |     4.0 |\n"
        "| full   |     – |        97.1 |       307,466 |     1 |     3.0 |\n"
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
    assert column(records, "matthews, x100") == ["61.2", "", ""]
    assert column(records, "accuracy, %") == ["", "70.0", ""]
    assert column(records, "pearson, x100") == ["", "", "90.0"]
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


def test_units_are_told_apart_from_entries_and_records_without_any_are_of_entries():
    records = [record(0.7, method__unit="row"), record(0.9, method__unit="entry"), record(0.8, seed=1)]
    records += [record(0.5, method="random", method__unit=unit) for unit in ("column", "entry")]
    assert column(records, "method") == ["fish", "fish rows", "random", "random columns"]
    assert column(records, "accuracy, %") == ["85.0 ± 7.1", "70.0", "50.0", "50.0"]
    assert differing(pool(records).reported) == []
    assert column(records[:1], "method") == ["fish rows"]
    assert "unit" not in above(records)


def test_a_learning_rate_of_entries_was_not_chosen_for_rows():
    records = [record(method__unit="row"), held_out(0.7, 0.1, method__unit="entry")]
    assert column(records, "lr chosen from") == ["not tuned"]
    records += [held_out(0.7, 0.1, method__unit="row")]
    assert column(records, "lr chosen from") == ["**0.1**"]


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
    assert column(records, "lr chosen from") == ["0.0005, **0.002**"]
    records += [held_out(0.8, 0.0005), held_out(0.71, 0.002)]
    assert column(records, "lr chosen from") == ["0.0005, **0.002**; **0.0005**, 0.002, but this row ran at 0.002"]


def test_decay_is_always_told():
    assert "; decay all; " in above([record(decay="all"), record(method="full", decay="all")])
    assert column([record(decay="all"), record()], "decay") == ["all", "kept"]
    assert "; decay kept; " in above([record()])


def test_text_does_not_break_the_table():
    names = ["a|b", "c\n d", "魚"]
    (text,) = tables([record(note=name) for name in names])
    assert [cells(text, row)[2] for row in range(2, 5)] == ["魚", "a\\|b", "c d"]
    header, _, wide, *_ = text.splitlines()
    assert len(wide) == len(header) - 1  # that character takes two columns of a terminal


def test_uncommitted_code_is_marked_where_it_is_allowed():
    records = [record(run_id="dirty", commit="abc+"), record(seed=1), record(method="random")]
    assert column(records, "accuracy, %", uncommitted=True) == ["80.0 ± 0.0 †", "80.0"]
    assert "\n\n† with uncommitted code: dirty" in table.markdown(pool(records, uncommitted=True))


def test_learning_rates_come_from_the_held_out_runs_of_the_same_question():
    records = [record(0.9, regime__lr=0.002), held_out(0.7, 0.0005), held_out(0.75, 0.002, regime__epochs=10)]
    assert column(records, "lr chosen from") == ["0.0005, **0.002**"]
    assert above(records).endswith("; learning rates compared on 1,000 held-out examples, 1 seed.")
    assert column(records, "accuracy, %") == ["90.0"]


def test_where_learning_rates_were_compared_stands_in_the_rows_if_it_differs():
    random = [held_out(score, 0.1, method="random", seed=seed) for seed, score in enumerate([0.6, 0.9])]
    records = [record(), record(method="random"), record(method="full"), held_out(0.7, 0.1), *random]
    assert column(records, "lr chosen from") == [
        "**0.1** (on 1,000 held-out examples, 1 seed)",
        "**0.1** (on 1,000 held-out examples, 2 seeds)",
        "not tuned",
    ]
    assert "compared" not in above(records)


def test_a_row_that_did_not_run_at_the_best_learning_rate_says_so():
    cheaper = {"regime__epochs": 2, "data__train_limit": 500, "data__valid_limit": 300}
    tried = [held_out(score, 0.2, seed=seed, **cheaper) for seed, score in enumerate([0.6, 0.9])]
    records = [record(), held_out(0.7, 0.1, **cheaper), *tried]
    assert column(records, "lr chosen from") == ["0.1, **0.2**, but this row ran at 0.1"]
    assert above(records).endswith("; learning rates compared on 300 held-out examples, 1–2 seeds.")


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
        {"regime__name": "distributed"},
    ],
)
def test_a_row_without_held_out_runs_of_its_own_is_not_tuned(other):
    assert column([record(), held_out(0.7, 0.1, **other)], "lr chosen from") == ["not tuned"]


def test_rates_that_were_tried_on_as_much_data_are_preferred():
    records = [record(data__train_limit=500), held_out(0.7, 0.2, data__train_limit=100)]
    assert column(records, "lr chosen from") == ["**0.2**, but this row ran at 0.1"]
    records += [held_out(0.6, 0.1, data__train_limit=500)]
    assert column(records, "lr chosen from") == ["**0.1**"]


def test_candidates_are_compared_under_one_protocol_only():
    records = [record(), held_out(0.7, 0.1), held_out(0.8, 0.2, regime__epochs=3), held_out(None, 0.4)]
    assert column(records, "lr chosen from") == ["**0.2**, but this row ran at 0.1; **0.1**, 0.4"]


def test_learning_rates_of_one_family_stand_together():
    runs = [held_out(0.7, lr, regime__weight_decay=decay) for lr in (0.2, 0.1) for decay in (1, 0)]
    assert column(runs, "lr") == ["**0.1**", "**0.2**", "**0.1**", "**0.2**"]
    assert column(runs, "regime.weight_decay") == ["0", "0", "1", "1"]


def test_held_out_runs_have_a_table_of_their_own():
    runs = [held_out(0.7, 0.1), held_out(0.7, 0.2), held_out(0.6, 0.4), held_out(0.5, 0.1, method="random")]
    text = table.markdown(pool([record(0.9), *runs]))
    *_, title, shared, second = text.split("\n\n")
    assert title.startswith("**Chosen on held-out training examples**")
    assert "held-out examples 1,000; " in shared
    assert cells(second, 0) == ["method", "lr", "held-out accuracy, %", "seconds"]
    assert [cells(second, row)[:3] for row in range(2, 6)] == [
        ["fish", "**0.1**", "70.0"],
        ["fish", "**0.2**", "70.0"],
        ["fish", "0.4", "60.0"],
        ["random", "**0.1**", "50.0"],
    ]
    assert table.markdown(pool(runs)) == f"{title}\n\n{shared}\n\n{second}"
    fewer = held_out(0.7, 0.1, data__valid_limit=500)
    assert column([*runs, fewer], "held-out examples") == ["500", "1,000", "1,000", "1,000", "1,000"]


def test_settings_that_all_rows_share_stand_above_the_table_and_others_in_columns():
    limits: dict[str, Any] = {"data__train_limit": 6000, "data__valid_limit": 500, "regime__batch_size": 64}
    records = [record(method=name, **limits) for name in ("fish", "random")] + [record(keep=0.02, **limits)]
    text = above(records)
    for shared in (
        "data set digits",
        "training examples at most 6,000",
        "reported examples at most 500",
        "batch size 64",
    ):
        assert f"{shared}; " in text
    assert text.endswith("; fish (samples 1,024, labels true_label); 1,537 weights moved; 1 seed.")
    (only,) = tables(records)
    assert cells(only, 0) == ["method", "keep", "accuracy, %", "seconds"]
    more = [*records, record(data__train_limit=3000, data__valid_limit=500, regime__batch_size=64, seed=1)]
    assert "training examples" not in above(more)
    assert column(more, "data.train_limit") == ["3000", "6000", "6000", "6000"]


def test_several_data_sets_have_a_column_and_no_place_above():
    records = [record(data__name="glue", data__task=task) for task in ("rte", "sst2")]
    assert column(records, "data set") == ["glue/rte", "glue/sst2"]
    assert "data set" not in above(records)
    assert "data set glue/rte; model" in above(records[:1])


def test_a_second_metric_has_a_column():
    f1 = [{"f1": score} for score in (0.81, 0.83)]
    records = [record(0.7, seed=seed, more=more) for seed, more in enumerate(f1)] + [record(method="full")]
    assert column(records, "accuracy, %") == ["70.0 ± 0.0", "80.0"]
    assert column(records, "f1, x100") == ["82.0 ± 1.4", ""]
    both = [record(0.9, metric="pearson", more={"spearman": None})]
    assert column(both, "spearman, x100") == ["undefined (1 of 1)"]
    assert cells(tables(both)[0], 0) == ["method", "pearson, x100", "spearman, x100", "seconds"]


@pytest.mark.parametrize("name", ["method", "keep", "lr", "weights moved", "seeds", "seconds", "precision"])
def test_a_metric_named_as_another_column_has_one_of_its_own(name):
    usual = [record(0.7, method="random"), record(0.8, keep=0.01, regime__lr=0.2, precision="bf16", kept=7)]
    more = [record(0.9, method="random", keep=0.01, seed=seed) for seed in range(2)]
    runs = [*usual, *more]
    without = {header: column(runs, header) for table in tables(runs) for header in cells(table, 0)}
    for run in runs:
        run["metrics"][name] = 0.25
    found = {header: column(runs, header) for table in tables(runs) for header in cells(table, 0)}
    assert found == without | {f"{name} (metric)": ["0.25", "0.25", "0.25 ± 0"]}
    assert name in without


def wide():
    """Two rows that differ in ten settings."""
    settings: dict[str, Any] = {f"regime__{letter * 6}": place for place, letter in enumerate("abcdefghij")}
    return [record(0.5), record(0.6, method="full", **settings)]


def test_more_than_ten_columns_fold_into_tables_of_at_most_ten_that_a_terminal_holds():
    parts = tables(wide())
    headers = [cells(part, 0) for part in parts]
    assert [len(header) for header in headers] == [7, 7, 6]
    assert headers[0][:4] == ["row", "method", "keep", "accuracy, %"]
    assert all(header[:2] == ["row", "method"] for header in headers)
    assert [cells(parts[1], row)[:2] for row in (2, 3)] == [["1", "fish"], ["2", "full"]]
    assert max(len(header) for header in headers) <= 10
    assert max(len(line) for part in parts for line in part.splitlines()) <= 120
    whole = [name for header in headers for name in header[2:]]
    assert len(whole) == len(set(whole)) == 14  # nothing lost, nothing twice
    assert column(wide(), "regime.jjjjjj") == ["", "9"]


def test_a_table_that_is_too_wide_for_a_terminal_folds_however_few_its_columns():
    records = [record(data__name="d" * 70), record(model__name="m" * 60)]
    assert [cells(part, 0) for part in tables(records)] == [
        ["row", "method", "data set"],
        ["row", "method", "model", "accuracy, %", "seconds"],
    ]


def test_runs_that_predict_a_single_class_are_marked():
    records = [one_class(0.7, seed=seed) for seed in range(3)] + [one_class(0.7, method="random")]
    records += [record(0.75, seed=1, method="random", more={"largest_class": 0.7, "largest_predicted": 0.9})]
    assert column(records, "accuracy, %") == ["70.0 ± 0.0 ‡", "72.5 ± 3.5 ‡ (1 of 2)"]
    assert "; largest class 70.0 %" in above(records)
    assert table.markdown(pool(records)).endswith(
        "\n\n‡ predicted the same class for all examples (all of a row's runs, or as many as it says); "
        "the largest class is 70.0 % of digits"
    )


def test_runs_of_which_nobody_knows_what_they_predicted_have_no_mark():
    text = table.markdown(pool([record(0.7), record(None, metric="matthews")]))
    assert "‡" not in text
    assert "largest class" not in text


def test_an_undefined_metric_of_a_single_class_says_why():
    shares = {"accuracy": 0.69, "largest_class": 0.69, "largest_predicted": 1.0}
    records = [record(None, metric="matthews", more=shares)]
    assert column(records, "matthews, x100") == ["undefined (1 of 1) ‡"]
    assert column(records, "accuracy, %") == ["69.0 ‡"]


def test_each_set_of_examples_has_a_mark_of_its_own():
    more = {"accuracy_mismatched": 0.4, "largest_predicted_matched": 0.5, "largest_predicted_mismatched": 1.0}
    records = [record(0.6, metric="accuracy_matched", more=more)]
    assert column(records, "accuracy_matched, %") == ["60.0"]
    assert column(records, "accuracy_mismatched, %") == ["40.0 ‡"]
    more = {"accuracy_ood_test": 0.4, "largest_predicted_test": 0.5, "largest_predicted_ood_test": 1.0}
    records = [record(0.6, metric="accuracy_test", more=more)]
    assert column(records, "accuracy_test, %") == ["60.0"]
    assert column(records, "accuracy_ood_test, %") == ["40.0 ‡"]


def test_runs_of_different_code_are_said_to_stand_together() -> None:
    one = {"versions": {"torch": "2.11.0", "numpy": "2.3"}}
    other = {"versions": {"torch": "2.15.0", "numpy": "2.3"}}
    assert "different code" not in table.markdown(pool([record(seed=0) | one, record(seed=1) | one]))
    text = table.markdown(pool([record(seed=0) | one, record(seed=1, commit="ffff") | other]))
    assert "Runs of different code stand together: commits 0123456789ab, ffff; torch 2.11.0, 2.15.0; resume" in text


def test_files_of_a_data_set_are_told_where_others_of_it_stand_beside_them() -> None:
    first = record(data__name="glue", data__task="rte", data__root="@a")
    other_task = record(data__name="glue", data__task="sst2", data__root="@b")
    other_files = record(data__name="glue", data__task="rte", data__root="@c")
    assert "data.root" not in table.markdown(pool([first, other_task]))
    assert column([first, other_files], "data.root") == ["@a", "@c"]
