"""``python -m fishexp.report.table RECORDS --against METHOD``: which groups are compared, and what cannot be."""

import numpy as np
import pytest

from fishexp.report import table
from fishexp.run.predictions import Predictions, write_predictions
from fishexp.run.predictions_file import append_predictions
from tests.support.records import held_out, record


@pytest.fixture
def against(written, capsys):
    """Print the differences of these records to a method: (exit status, what was printed, error)."""

    def against(records, method="fish"):
        status = table.main([str(written(records)), "--against", method])
        return status, *capsys.readouterr()

    return against


def rows(text):
    lines = [line for line in text.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines]


def three(score, **settings):
    return [record(score + step / 100, seed=seed, **settings) for seed, step in enumerate((0, 1, 3))]


def test_each_method_is_compared_at_the_same_budget(against) -> None:
    lines = [*three(0.8), *three(0.7, method="random"), *three(0.9, keep=0.02), *three(0.6, method="random", keep=0.02)]
    status, out, err = against(lines)
    assert (status, err) == (0, "")
    assert rows(out)[0][:3] == ["keep", "method", "accuracy, % against fish"]
    assert [row[:3] for row in rows(out)[2:]] == [["0.005", "random", "-10.00"], ["0.02", "random", "-30.00"]]
    assert out.startswith("All rows: data set digits; model resnet10")


def test_a_method_without_a_budget_is_compared_with_each(against) -> None:
    out = against([*three(0.8), *three(0.9, keep=0.02), *three(0.7, method="bitfit")])[1]
    assert [row[:2] for row in rows(out)[2:]] == [["0.005", "bitfit"], ["0.02", "bitfit"]]
    out = against([*three(0.8), *three(0.9, keep=0.02), *three(0.7, method="bitfit")], "bitfit")[1]
    assert [row[:2] for row in rows(out)[2:]] == [["0.005", "fish"], ["0.02", "fish"]]


def test_predictions_beside_the_records_give_intervals_over_examples(written, tmp_path, capsys) -> None:
    labels, lines = np.arange(200) % 2, []
    for method, wrong in (("fish", (20, 22, 21)), ("random", (60, 65, 58))):
        for seed, count in enumerate(wrong):
            lines.append(record(1 - count / 200, method=method, seed=seed, run_id=f"{method}{seed}"))
            predicted = np.where(np.random.default_rng(seed).permutation(200) < count, 1 - labels, labels)
            write_predictions(tmp_path, f"{method}{seed}", {"": Predictions("e", 2, labels, predicted)})
            append_predictions(tmp_path / "records.jsonl", tmp_path)
    assert table.main([str(written(lines)), "--against", "fish"]) == 0
    out = capsys.readouterr().out
    assert rows(out)[2][0] == "random"
    assert rows(out)[2][1] == "**-20.00**"
    assert rows(out)[2][5:] == ["3 of 3", "3"]
    damaged = (tmp_path / "records.predictions.jsonl").read_text().replace('"predicted": "eN', '"predicted": "??', 1)
    (tmp_path / "records.predictions.jsonl").write_text(damaged)
    assert table.main([str(written(lines)), "--against", "fish"]) == 2
    err = capsys.readouterr().err
    assert err.startswith("fishexp: ")
    assert err.endswith("records.predictions.jsonl: the predictions of run fish0 are damaged; run it again\n")


def test_only_the_best_learning_rates_are_compared(against) -> None:
    lines = [*three(0.8), *three(0.9, regime__lr=0.4), *three(0.7, method="random"), held_out(0.9, 0.1)]
    lines += [held_out(0.5, 0.4), *three(0.75, method="random", regime__lr=0.4)]
    out = against(lines)[1]
    assert [row[:2] for row in rows(out)[2:]] == [["random", "-5.00"]]  # fish at 0.1, held out; random at its best
    assert "Some learning rates were chosen on the reported examples themselves" in out


def test_what_has_no_counterpart_is_said(against) -> None:
    lines = [*three(0.8), *three(0.7, method="random"), record(0.6, method="random", keep=0.1)]
    out = against(lines)[1]
    assert "Not compared, as fish was not run in their setting: random at 0.1 on digits." in out


@pytest.mark.parametrize(("lines", "method", "said"), [
    ([record(0.8), record(0.7, method="random")], "fish",
     "--against fish: no interval can be given: fewer than three seeds and no predictions on record"),
    ([record(0.8)], "lora", "--against lora: no runs of it on reported examples, but of fish"),
    ([held_out(0.8, 0.1)], "fish", "no runs of it on reported examples, but of none"),
    ([record(0.8)], "fish", "--against fish: no other method was run in a setting in which fish was"),
    ([record(0.8), record(0.7, method="random", regime__epochs=3)], "fish",
     "no other method was run in a setting in which fish was: they differ in regime.epochs"),
    ([record(0.8), record(0.7, method="random"),
      record(0.9, method__samples=8)], "fish",
     "--against fish: at keep 0.005 there are 2 kinds of it, which differ in method.samples; give records of one kind"),
])  # fmt: skip
def test_what_cannot_be_compared_is_one_line(against, lines, method, said) -> None:
    status, out, err = against(lines, method)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert err.startswith("fishexp: ")
    assert said in err
