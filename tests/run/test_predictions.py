"""Predictions: whatever a run evaluated last, example by example, in the order of the data set."""

import json
import logging
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from fishexp.data import digits
from fishexp.errors import FishexpError, RunFailed
from fishexp.run.predictions import Predictions, read_predictions, write_predictions
from fishexp.run.predictions_file import PREDICTIONS, append_predictions, predictions_file
from fishexp.training.evaluate import evaluate
from tests.support.cases import CLASSES
from tests.support.cli import QUICK, fishexp, records
from tests.support.resuming import SMALL, Cut, cut_after
from tests.support.training import EXAMPLES, mlp, problem

RECORDS = Path("outputs/records.jsonl")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def some(count: int = 872, classes: int = 2, seed: int = 0, examples: str = "0123456789ab") -> Predictions:
    generator = np.random.default_rng(seed)
    if classes == 1:
        return Predictions(examples, 1, generator.random(count).round(1), generator.normal(size=count))
    return Predictions(examples, classes, *generator.integers(0, classes, (2, count)))


def store(run_id: str, predictions: Predictions, name: str = "") -> None:
    write_predictions(Path(), run_id, {name: predictions})
    append_predictions(RECORDS, Path())


@pytest.mark.parametrize("classes", [CLASSES, 1])
def test_predictions_are_in_the_order_of_the_data_set(classes: int) -> None:
    """Sentences are evaluated longest first; ties among the lengths too."""
    ours = problem(mlp(), (5,))
    model = torch.nn.Linear(5, classes).double()
    rows = ours.data.valid[""]
    rows.lengths = torch.randint(3, 6, (EXAMPLES,), generator=torch.Generator().manual_seed(0))
    rows.labels = rows.labels if classes > 1 else rows.labels.double()
    metric = replace(ours.data, classes=classes, metrics=lambda logits, labels: {"metric": logits.sum().item()})
    found = evaluate(replace(ours, model=model, data=metric), 4).predicted[""]
    logits = model(rows.inputs)
    torch.testing.assert_close(found, logits.argmax(-1) if classes > 1 else logits.squeeze(-1))


@pytest.mark.parametrize(
    "options",
    [
        ("regime.epochs=0",),
        ("regime=transfer", "regime.epochs=2"),
        ("regime=checkpointing", "regime.epochs=2", "regime.mask=every_epoch"),
        pytest.param(
            ("regime=distributed", "regime.workers=2", "regime.sync_every=3", "regime.epochs=2"), marks=pytest.mark.slow
        ),
        ("data.holdout=100",),
    ],
)
def test_predictions_are_of_what_the_record_reports(options: tuple[str, ...]) -> None:
    assert fishexp(*QUICK[1:], *options).status == 0
    (record,) = records(Path())
    name = "holdout" if "data.holdout=100" in options else ""
    (run,) = read_predictions(RECORDS).items()
    found = run[1][name]
    assert (run[0], found.classes, len(found.predicted)) == (record["run_id"], 10, 64)
    accuracy = record["metrics"]["accuracy_holdout" if name else "accuracy"]
    assert (found.predicted == found.labels).mean() == pytest.approx(accuracy, abs=1e-12)
    assert np.bincount(found.predicted).max() / 64 == record["metrics"][f"largest_predicted{name and '_'}{name}"]
    data = digits.load(train_limit=128, valid_limit=64, holdout=100 * bool(name))
    assert found.labels.tolist() == data.valid[name].labels.tolist()


@pytest.mark.parametrize("regime", ["transfer", pytest.param("distributed", marks=pytest.mark.slow)])
def test_a_run_that_resumes_leaves_the_same_predictions(regime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = ("regime.backend=simulated", "regime.sync_every=4", "regime.snapshot_steps=1")
    own = workers if regime == "distributed" else ()
    options = (*SMALL, f"regime={regime}", *own, "regime.epochs=2", "snapshot_minutes=0")
    assert fishexp(*options, "outputs=whole").status == 0
    with monkeypatch.context() as patch:
        cut_after(13, patch)
        with pytest.raises(Cut):
            fishexp(*options, "outputs=cut")
    assert not predictions_file(Path("cut/records.jsonl")).exists()
    assert fishexp(*options, "outputs=cut", "resume=true").status == 0
    whole, cut = (predictions_file(Path(f"{name}/records.jsonl")).read_text() for name in ("whole", "cut"))
    assert whole == cut


def test_a_record_that_is_appended_later_has_its_predictions() -> None:
    assert fishexp(*QUICK).status == 0
    before = predictions_file(RECORDS).read_text()
    predictions_file(RECORDS).unlink()
    RECORDS.unlink()
    assert "is done already" in fishexp(*QUICK, "resume=true").out
    assert predictions_file(RECORDS).read_text() == before


def test_runs_on_the_same_reported_examples_pair_up_and_share_their_labels() -> None:
    """Whatever they trained on; on others they do not."""
    for limit in ("data.train_limit=128", "data.train_limit=130", "data.valid_limit=60"):
        assert fishexp(*QUICK, limit).status == 0
    one, two, other = (sets[""] for sets in read_predictions(RECORDS).values())
    assert one.examples == two.examples != other.examples
    lines = [json.loads(line)["sets"][""] for line in predictions_file(RECORDS).read_text().splitlines()]
    assert ["labels" in line for line in lines] == [True, False, True]


@given(
    values=st.sampled_from([1, 2, 10, 128, 129, 1000, 40_000]).flatmap(
        lambda classes: st.tuples(
            st.just(classes),
            arrays.arrays(np.float32, 7, elements=st.floats(-1e9, 1e9, width=32))
            if classes == 1
            else arrays.arrays(np.int64, 7, elements=st.integers(-100, classes - 1)),
        )
    )
)
def test_what_is_read_is_what_was_written(values: tuple[int, np.ndarray]) -> None:
    classes, found = values
    store("a", Predictions("e", classes, found[::-1], found), "matched")
    back = read_predictions(RECORDS)["a"]["matched"]
    assert (back.predicted.tolist(), back.labels.tolist()) == (found.tolist(), found[::-1].tolist())
    predictions_file(RECORDS).unlink()


def test_the_last_line_of_a_run_counts() -> None:
    for seed in (1, 2):
        store("a", replace(some(seed=seed), labels=some().labels))
    assert (read_predictions(RECORDS)["a"][""].predicted == some(seed=2).predicted).all()


def test_predictions_are_small() -> None:
    """Three seeds of twenty cells on SST-2, and a regression's 1,500 numbers in about four bytes each."""
    for run in range(60):
        store(str(run), some(seed=run))
    assert predictions_file(RECORDS).stat().st_size < 60 * 400
    store("s", some(1500, 1, examples="other"))
    assert (Path(PREDICTIONS)).stat().st_size < 1500 * 4 * 4 / 3 + 2500


def test_lines_that_are_no_predictions_are_skipped_and_said(caplog: pytest.LogCaptureFixture) -> None:
    store("a", some())
    file = predictions_file(RECORDS)
    whole = file.read_text()
    file.write_text(whole[:80])  # torn
    store("b", some())
    for line in ("[]", '{"run_id": 1, "sets": {}}', '{"run_id": "x", "sets": []}', '{"run_id": "x", "sets": {"": 1}}'):
        file.write_text(file.read_text() + line + "\n")
    with caplog.at_level(logging.WARNING):
        assert read_predictions(RECORDS).keys() == {"b"}
    assert "5 lines are no predictions and are skipped, first line 1" in caplog.text


@pytest.mark.parametrize("damage", [
    {"predicted": "!"}, {"predicted": "AAAA"}, {"predicted": None}, {"labels": "eJwDAAAAAAE="}, {"classes": 1},
    {"examples": "other"},
])  # fmt: skip
def test_damaged_predictions_are_named(damage: dict[str, object]) -> None:
    store("a", some(count=873))
    file = predictions_file(RECORDS)
    line = json.loads(file.read_text())
    line["sets"][""] |= damage
    if "examples" in damage:
        del line["sets"][""]["labels"]
    file.write_text(json.dumps(line))
    with pytest.raises(FishexpError, match=r"records\.predictions\.jsonl: the predictions of run a are damaged; run"):
        read_predictions(RECORDS)


def test_predictions_that_cannot_be_appended_are_one_line() -> None:
    predictions_file(RECORDS).mkdir(parents=True)
    result = fishexp(*QUICK)
    assert result.status == 1
    assert "records.predictions.jsonl: the predictions cannot be read (Is a directory)" in result.err
    assert not RECORDS.exists()
    predictions_file(RECORDS).rmdir()
    assert fishexp(*QUICK, "resume=true").status == 0
    assert records(Path())[0]["run_id"] in read_predictions(RECORDS)
    with pytest.raises(RunFailed, match="Is a directory"):
        append_predictions(Path("..") / Path.cwd().name / RECORDS, folder_named_like_a_file())


def folder_named_like_a_file() -> Path:
    folder = Path("odd")
    (folder / PREDICTIONS).mkdir(parents=True)
    return folder
