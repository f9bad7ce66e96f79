"""Full, read-only, removed and moved run folders, and kills at the very end: what is on record and what is left."""

import errno
import json
import os
import resource
import shutil
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.distributed import HashStore  # pyright: ignore[reportPrivateImportUsage]

import fishexp as library
from fishexp.data import digits
from fishexp.distributed.context import Context
from fishexp.errors import FishexpError, RunFailed
from fishexp.run import record as record_module
from fishexp.run.record import Record, read
from fishexp.system.atomic import append
from fishexp.training.trainer import Trainer
from tests.support.cli import QUICK, Result, fishexp
from tests.support.program import Program
from tests.support.records import full_records
from tests.support.resuming import SMALL, Cut, assert_alike, cut_after, run_folder

RECORDS = "records=records.jsonl"
OPTIONS = (*SMALL, "regime.epochs=2", "snapshot_minutes=0")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def recorded() -> list[dict[str, Any]]:
    return list(read(Path("records.jsonl")))


def assert_failed(result: Result, *said: str) -> None:
    """Assert that a run ended with one line, which its record has too."""
    assert result.status != 0
    assert result.err.count("\n") == 1
    for text in said:
        assert text in result.err
    record = recorded()[-1]
    assert record["status"] == "failed"
    assert record["error"] in result.err


def test_a_run_whose_data_are_gone_leaves_what_is_there_of_an_earlier_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Be it finished, or cut with snapshots."""

    def load(*, train_limit: int | None, valid_limit: int | None, holdout: int) -> None:
        raise FishexpError("the data are gone")

    assert fishexp(*QUICK, RECORDS).status == 0
    folder = run_folder("outputs")
    before = library.load_run(folder)[0].state_dict()
    (folder / "snapshots/000000001").mkdir(parents=True)
    with monkeypatch.context() as patch:
        patch.setattr(digits, "load", load)
        assert_failed(fishexp(*QUICK, RECORDS), "the data are gone")
    after = library.load_run(folder)[0].state_dict()
    assert all(torch.equal(before[name], after[name]) for name in before)
    assert (folder / "snapshots/000000001").is_dir()

    def train(*_: object) -> None:
        raise Cut

    monkeypatch.setattr(Trainer, "run_epoch", train)
    with pytest.raises(Cut):
        fishexp(*QUICK, RECORDS)
    assert not list(folder.glob("[dm]*.safetensors"))
    assert not (folder / "snapshots").exists()


@pytest.mark.parametrize("name", [".lock", "log.txt", "config.yaml", "metrics.jsonl"])
def test_a_run_folder_that_cannot_be_written_is_on_record(name: str) -> None:
    """A folder where a file is to be stands for a disk that is full or read-only."""
    assert fishexp(*QUICK, RECORDS).status == 0
    folder = run_folder("outputs")
    (folder / name).unlink()
    (folder / name).mkdir()
    assert_failed(fishexp(*QUICK, RECORDS), str(folder))


def test_a_run_folder_that_cannot_be_made_is_on_record() -> None:
    Path("outputs").mkdir()
    Path("outputs/digits").write_text("")
    assert_failed(fishexp(*QUICK, RECORDS), "outputs/digits", "Not a directory")
    assert_failed(fishexp("-m", *QUICK, "seed=0,1", RECORDS), "outputs/digits", "Not a directory")
    assert [record["seed"] for record in recorded()] == [0, 0]


@pytest.mark.slow
def test_a_record_that_does_not_fit_into_the_run_folder_is_on_record(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    assert fishexp(*OPTIONS, "outputs=whole").status == 0
    with monkeypatch.context() as patch:
        patch.setattr(record_module, "replacing", full)
        result = fishexp(*OPTIONS, RECORDS, "outputs=cut")
    assert_failed(result, "record.json cannot be written (No space left on device); continue with resume=true")
    assert "continued from a snapshot after 20 steps" in fishexp(*OPTIONS, "outputs=cut", "resume=true").out
    assert_alike("whole", "cut")


@pytest.mark.parametrize("regime", ["transfer", "checkpointing"])
def test_weights_that_do_not_fit_on_the_disk_are_named(regime: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The base before training, whose writer names no file; an epoch and the last weights after it."""
    size = 1_000_000  # bytes: less than the base
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    with Program("fishexp", *OPTIONS, RECORDS, f"regime={regime}", prepare=limit) as process:
        _, err = process.communicate(timeout=200)
        assert_failed(Result(process.wait(), "", err), "safetensors cannot be written (Error while serializing: I/O ")
    assert err.endswith("; continue with resume=true\n")

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("fishexp.delta.delta.save" if regime == "checkpointing" else "fishexp.run.artifacts.sync", full)
        result = fishexp(*SMALL, "regime.epochs=2", RECORDS, f"regime={regime}")
    assert_failed(result, f"{run_folder('outputs').resolve()}", "cannot be written (No space left on device)")


def test_records_on_a_full_disk_lose_no_finished_run() -> None:
    """Its folder has all of it, and with resume=true its record is appended and nothing is trained."""
    size = 2_000_000  # bytes: more than any file of the run
    limit = full_records(Path("records.jsonl"), size)
    before = Path("records.jsonl").read_bytes()
    with Program("fishexp", *OPTIONS, RECORDS, prepare=limit) as process:
        _, err = process.communicate(timeout=200)
        assert process.wait() == 1
    folder = run_folder("outputs")
    assert err == (
        "fishexp: records.jsonl: the record cannot be appended (File too large); "
        f"it is in {folder.resolve()}/record.json, and resume=true appends it\n"
    )
    assert Path("records.jsonl").read_bytes() == before
    weights = library.load_run(folder)[0].state_dict()
    log = (folder / "log.txt").read_text()
    result = fishexp(*OPTIONS, RECORDS, "resume=true")
    assert (result.status, "is done already" in result.out) == (0, True)
    assert (folder / "log.txt").read_text() == log
    assert recorded()[-1] == json.loads((folder / "record.json").read_text())
    assert recorded()[-1]["status"] == "finished"
    assert all(torch.equal(t, weights[name]) for name, t in library.load_run(folder)[0].state_dict().items())
    assert fishexp(*OPTIONS, RECORDS, "resume=true").status == 0
    assert len(recorded()) == 2


def test_a_line_that_cannot_be_brought_onto_the_disk_is_not_left_half(monkeypatch: pytest.MonkeyPatch) -> None:
    def full(_: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    path = Path("records.jsonl")
    append(path, '{"a": 1}', "record")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        with pytest.raises(RunFailed) as refused:
            append(path, '{"b": 2}', "record")
    assert str(refused.value) == "records.jsonl: the record cannot be appended (No space left on device)"
    assert path.read_text() == '{"a": 1}\n'


@pytest.mark.parametrize(
    "where",
    [
        "before the line",
        *(pytest.param(each, marks=pytest.mark.slow) for each in ("after it", "before the snapshots go")),
    ],
)
def test_a_kill_at_the_very_end_leaves_a_finished_run(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def cut(*_: object) -> None:
        raise Cut

    def append_and_cut(path: Path, line: str, what: str) -> None:
        append(path, line, what)
        raise Cut

    assert fishexp(*OPTIONS, "outputs=whole").status == 0
    with monkeypatch.context() as patch:
        if where == "before the snapshots go":
            patch.setattr(Context, "await_record", cut)
        else:
            patch.setattr(record_module, "append", cut if where == "before the line" else append_and_cut)
        with pytest.raises(Cut):
            fishexp(*OPTIONS, "outputs=cut")
    assert (run_folder("cut") / "snapshots").exists()
    result = fishexp(*OPTIONS, "outputs=cut", "resume=true")
    assert (result.status, "is done already" in result.out) == (0, True)
    assert len(list(read(Path("cut/records.jsonl")))) == 1
    assert_alike("whole", "cut")


@pytest.mark.slow
def test_a_repetition_that_is_cut_short_is_not_what_the_record_of_before_says(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fishexp(*OPTIONS, "outputs=whole").status == 0
    assert fishexp(*OPTIONS, "outputs=cut").status == 0
    Path("cut/records.jsonl").unlink()
    with monkeypatch.context() as patch:
        cut_after(4, patch)
        patch.setattr(Record, "write", lambda *_: None)
        with pytest.raises(Cut):
            fishexp(*OPTIONS, "outputs=cut")
    assert not list(run_folder("cut").glob("delta.safetensors"))  # nor are the weights of before there to start from
    assert "continued from a snapshot after 4 steps" in fishexp(*OPTIONS, "outputs=cut", "resume=true").out
    assert_alike("whole", "cut")


@pytest.mark.parametrize("how", ["removed", "moved", "replaced"])
@pytest.mark.parametrize(
    ("minutes", "epoch"),
    [(10, 1), *(pytest.param(*case, marks=pytest.mark.slow) for case in ((0, 1), (0, 2), (10, 2)))],
)
def test_a_run_whose_folder_goes_while_it_runs_has_failed(
    how: str, minutes: int, epoch: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A snapshot makes the folder anew, and then there is nothing that the system would refuse."""
    original = Trainer.end_epoch

    def end_epoch(self: Trainer, metrics: Any) -> None:
        original(self, metrics)
        if self.progress.epoch == epoch + 1:
            folder = run_folder("outputs")
            if how == "removed":
                shutil.rmtree(folder)
            else:
                folder.rename("elsewhere")
            if how == "replaced":
                shutil.copytree("elsewhere", folder)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "end_epoch", end_epoch)
        result = fishexp(*SMALL, "regime.epochs=2", f"snapshot_minutes={minutes}", RECORDS)
    assert_failed(result, "outputs/digits/resnet8/random-0.02/seed0-", "was removed or moved while the run went on")
    assert result.status == 1
    shutil.rmtree("outputs", ignore_errors=True)
    assert fishexp(*SMALL, "regime.epochs=2", RECORDS, "resume=true").status == 0
    assert recorded()[-1]["status"] == "finished"


@pytest.mark.parametrize("name", ["config.yaml", "base.safetensors"])
def test_a_file_that_goes_while_the_run_goes_on_is_not_missing_in_the_end(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Either the run can do without it, or it has failed."""
    original = Trainer.end_epoch

    def end_epoch(self: Trainer, metrics: Any) -> None:
        original(self, metrics)
        (run_folder("outputs") / name).unlink()

    monkeypatch.setattr(Trainer, "end_epoch", end_epoch)
    result = fishexp(*SMALL, "regime.epochs=1", RECORDS)
    if name == "config.yaml":
        assert_failed(result, "config.yaml was removed while the run went on; run it again")
    else:
        assert result.status == 0
        library.load_run(run_folder("outputs"))


def test_other_workers_keep_their_snapshots_unless_the_run_has_finished() -> None:
    for status in ("failed", "finished"):
        store = HashStore()
        store.set("recorded", status)
        other = Context(rank=1, world_size=2, local_rank=1, local_world_size=2, store=store, timeout=5)
        assert other.await_record() == (status == "finished")
