"""The best epoch and early stopping on the command line: what is held out, recorded, foretold, resumed and refused."""

import json
from pathlib import Path

import pytest

from fishexp.run.record import read
from tests.support.cli import QUICK, fishexp, records
from tests.support.resuming import SMALL, Cut, assert_alike, cut_after, run_folder

CHOSEN = (*SMALL, "regime.epochs=6", "lr=0.4", "validation_fraction=0.2", "regime.best=true", "regime.patience=2")
EVERY_STEP = ("snapshot_minutes=0", "resume=true")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_run_says_what_it_took_and_goes_on_from_a_cut_as_if_there_was_none(monkeypatch: pytest.MonkeyPatch) -> None:
    """Cut before the best epoch is known, and after it, when its weights are in the snapshot alone."""
    result = fishexp(*CHOSEN, "outputs=whole")
    assert result.status == 0
    assert "32 of 160 training examples are held out to choose the epoch by" in result.out
    (record,) = read(Path("whole/records.jsonl"))
    epochs = record["epochs"]
    assert 1 < epochs["taken"] == epochs["best"] < epochs["trained"] < epochs["planned"] == 6
    assert epochs["trained"] - epochs["best"] == 2
    assert (epochs["metric"], epochs["validation_examples"]) == ("accuracy", 32)
    lines = [json.loads(line) for line in (run_folder("whole") / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in lines] == list(range(1, epochs["trained"] + 1))
    assert [line["epoch"] for line in lines if "accuracy" in line] == [epochs["best"]]
    assert max(line["accuracy_validation"] for line in lines) == epochs["value"]
    best = lines[epochs["best"] - 1]
    assert {name: best[name] for name in record["metrics"]} == record["metrics"]
    assert f"stopped after {epochs['trained']} of 6 epochs: none better than epoch {epochs['best']} in 2" in result.out

    steps = 8 * epochs["best"]  # of 16 of the 128 that are left
    for saves in (steps - 3, 6):
        with monkeypatch.context() as patch:
            cut_after(saves, patch)
            with pytest.raises(Cut):
                fishexp(*CHOSEN, "outputs=cut", *EVERY_STEP)
    assert fishexp(*CHOSEN, "outputs=cut", *EVERY_STEP).status == 0
    assert_alike("whole", "cut")


def test_a_plan_counts_the_examples_that_are_left() -> None:
    plain, chosen = (fishexp(*SMALL, "regime.epochs=6", *more, "plan=true") for more in ((), CHOSEN[-3:]))
    assert " 60 " in plain.out.splitlines()[1]
    assert " 48 " in chosen.out.splitlines()[1]
    assert "regime.patience=2 may stop a run earlier: steps at most" in chosen.out


REFUSED = {
    ("regime=checkpointing", "best=true"): "regime.best=true: regime=checkpointing trains all its epochs and takes the",
    ("regime=distributed", "patience=2"): "regime.patience=2: regime=distributed trains all its epochs and takes the",
    ("epochs=0", "patience=2"): "regime.patience=2: regime.epochs=0 trains no epoch to choose; leave it out",
    ("metric=loss",): "regime.metric=loss says by what an epoch is better; add regime.best=true or regime.patience=2",
    ("metric=f1", "best=true"): "regime.metric=f1 is no metric of this data set; there are: accuracy, loss",
    ("patience=0",): "regime.patience=0 should be greater than or equal to 1",
    ("best=true", "validation_fraction=1"): "regime.validation_fraction=1 should be less than 1",
    ("best=true", "data.train_limit=1"): "regime.validation_fraction=0.1 leaves nothing to train on: there are 1",
}


@pytest.mark.parametrize("arguments", REFUSED)
def test_what_cannot_be_chosen_is_refused_in_a_line(arguments: tuple[str, ...]) -> None:
    assert REFUSED[arguments] in fishexp(*QUICK, *arguments).mistake()


def test_a_run_without_a_choice_is_the_run_that_it_was_before_there_was_one(tmp_path: Path) -> None:
    """Its configuration on record has no word of it, and so neither has its identity."""
    assert fishexp(*QUICK).status == 0
    (record,) = records(tmp_path)
    assert record["epochs"] == {}
    assert not {"patience", "best", "metric", "validation_fraction"} & record["config"]["regime"].keys()
    assert fishexp(*QUICK, "validation_fraction=0.2", "resume=true").out.count("is done already") == 1
