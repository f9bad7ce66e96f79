"""Runs that are cut short at any moment, and continued, end as those that were not."""

import random
import re
import resource
import shutil
import signal
import threading
import time
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch

import fishexp as library
from fishexp.run.record import Record, read
from fishexp.system import signals
from fishexp.training.logger import Logger
from fishexp.training.snapshots import Snapshots
from fishexp.training.trainer import Trainer
from tests.support.cli import fishexp
from tests.support.costs import cheap
from tests.support.program import Program
from tests.support.resuming import SMALL, Cut, assert_alike, cut_after, run_folder

EVERY_STEP = ("snapshot_minutes=0", "resume=true")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def every_regime() -> list[Any]:
    checkpointing = ("regime=checkpointing", "regime.mask=every_epoch")
    compat = ("compat=fish", "method=fish", "method.samples=8")
    return [
        pytest.param(("regime.epochs=3",), id="transfer"),
        pytest.param(("regime.epochs=3", "method.unit=channel"), id="channels", marks=pytest.mark.slow),
        pytest.param(("regime.epochs=3", "decay=all"), id="decay-all", marks=pytest.mark.slow),
        pytest.param(
            ("regime.epochs=3", "regime.optimiser=adamw", "regime.lr=0.01", "regime.clip=1.0"),
            id="adamw",
            marks=pytest.mark.slow,
        ),
        pytest.param(("regime.epochs=3", "method=full", "regime.accumulate=2"), id="full", marks=pytest.mark.slow),
        pytest.param(("regime.epochs=3", *compat), id="compat", marks=pytest.mark.slow),
        pytest.param(
            ("regime.epochs=4", *checkpointing, "regime.keyframe_every=2"), id="keyframes", marks=pytest.mark.slow
        ),
        pytest.param(
            ("regime.epochs=4", *checkpointing, "regime.warmup_epochs=2"), id="warm-up", marks=pytest.mark.slow
        ),
        pytest.param(("regime.epochs=3", *checkpointing, "decay=all"), id="checkpointing-decay-all"),
        pytest.param(
            ("regime.epochs=3", "regime=checkpointing", "regime.momentum=reset"), id="fixed", marks=pytest.mark.slow
        ),
        pytest.param(
            ("regime.epochs=3", *checkpointing, "compat=fish", "method=fish", "method.samples=8"),
            id="all-compat",
            marks=pytest.mark.slow,
        ),
    ]


@pytest.mark.parametrize("options", every_regime())
def test_a_run_cut_anywhere_ends_as_one_that_was_not(options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """In the middle of epochs and at their ends, more than once."""
    assert fishexp(*SMALL, *options, "outputs=whole").status == 0
    steps = 0
    for saves in (3, 1, 5, 4):
        with monkeypatch.context() as patch:
            cut_after(saves, patch)
            with pytest.raises(Cut):
                fishexp(*SMALL, *options, "outputs=cut", *EVERY_STEP)
        steps += saves
        assert int(max(folder.name for folder in run_folder("cut").glob("snapshots/*"))) == steps
    assert fishexp(*SMALL, *options, "outputs=cut", *EVERY_STEP).status == 0
    assert_alike("whole", "cut")


def signalled_after(steps: int, kind: signal.Signals, monkeypatch: pytest.MonkeyPatch) -> None:
    """Let this process get a signal in the middle of an optimiser step."""
    taken = iter(range(1, 1000))
    original = torch.optim.SGD.step

    def step(self: torch.optim.SGD, *arguments: Any) -> Any:
        if next(taken) == steps:
            signal.raise_signal(kind)
        return original(self, *arguments)

    monkeypatch.setattr(torch.optim.SGD, "step", step)


def test_a_command_whose_time_is_over_says_so_and_goes_on_by_itself(monkeypatch: pytest.MonkeyPatch) -> None:
    ends, timer, step = [], threading.Timer, torch.optim.SGD.step

    def taken(seconds: float, function: Any, *arguments: Any) -> threading.Timer:
        if seconds == 60 * 60 - 60:  # of an hour, a minute is kept
            ends.append(function)
        return timer(seconds, function, *arguments)

    def last_step(self: torch.optim.SGD, *arguments: Any) -> Any:
        ends.pop()()
        return step(self, *arguments)

    options = (*SMALL, "regime.optimiser=sgd", "minutes=60")
    with monkeypatch.context() as patch:
        patch.setattr(threading, "Timer", taken)
        patch.setattr(torch.optim.SGD, "step", last_step)
        cut = fishexp(*options)
    assert (cut.status, cut.err) == (
        130,
        "fishexp: stopped, as the time of minutes= is over; the same command continues\n",
    )
    assert "continued from a snapshot after 1 step" in fishexp(*options).out


@pytest.mark.parametrize("kind", [signal.SIGTERM, signal.SIGUSR2, signal.SIGINT])
def test_a_signal_is_followed_by_a_snapshot_and_loses_no_step(
    kind: signal.Signals, monkeypatch: pytest.MonkeyPatch
) -> None:
    options = (*SMALL, "regime.epochs=3", "regime.optimiser=sgd")
    assert fishexp(*options, "outputs=whole").status == 0
    with monkeypatch.context() as patch:
        signalled_after(5, kind, patch)
        cut = fishexp(*options, "outputs=cut")
    assert cut.status == 130
    assert cut.err == "fishexp: interrupted; the same command with resume=true continues\n"
    (snapshot,) = run_folder("cut").glob("snapshots/*")
    assert int(snapshot.name) == 5
    assert fishexp(*options, "outputs=cut", "resume=true").status == 0
    assert_alike("whole", "cut")


def test_a_sweep_stops_before_its_minutes_are_over_and_the_same_command_goes_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Runs are done once, and the one that was cut loses no step."""
    options = ("-m", *SMALL, "regime.epochs=2", "seed=0,1,2")
    assert fishexp(*options, "outputs=whole").status == 0
    begun: list[int] = []
    original = Trainer.run_epoch

    def run_epoch(self: Trainer, trainable: Any) -> None:
        begun.append(self.progress.steps)
        while len(begun) == 4 and not signals._asked:
            time.sleep(0.01)
        original(self, trainable)

    monkeypatch.setattr(Trainer, "run_epoch", run_epoch)
    assert fishexp(*options, "outputs=cut", "minutes=0.1").status == 130
    assert len(begun) <= 4
    begun += [-1] * 4
    assert fishexp(*options, "outputs=cut", "minutes=60").status == 0
    done = [record["seed"] for record in read(Path("cut", "records.jsonl")) if record["status"] == "finished"]
    assert sorted(done) == [0, 1, 2]
    for seed in range(3):
        whole, cut = (next(Path(outputs).glob(f"*/*/*/seed{seed}-*")) for outputs in ("whole", "cut"))
        assert (whole / "delta.safetensors").read_bytes() == (cut / "delta.safetensors").read_bytes()


@pytest.mark.parametrize(
    "options",
    [
        pytest.param(("regime.epochs=3",), marks=pytest.mark.slow),
        ("regime.epochs=3", "regime=checkpointing", "regime.mask=every_epoch"),
    ],
)
def test_a_resumed_run_forms_gradients_as_it_began_whatever_was_measured_since(
    options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The masks that it chooses later, too: the last bits would tell."""
    monkeypatch.setattr("fishexp.run.runner.calibrated", lambda: cheap("sddmm"))
    assert fishexp(*SMALL, *options, "outputs=whole").status == 0
    with monkeypatch.context() as patch:
        cut_after(3, patch)
        with pytest.raises(Cut):
            fishexp(*SMALL, *options, "outputs=cut", *EVERY_STEP)
    monkeypatch.setattr("fishexp.run.runner.calibrated", lambda: cheap("dense"))
    assert fishexp(*SMALL, *options, "outputs=cut", *EVERY_STEP).status == 0
    assert_alike("whole", "cut")
    assert fishexp(*SMALL, *options, "outputs=anew").status == 0
    records = [list(read(Path(outputs, "records.jsonl")))[-1] for outputs in ("whole", "cut", "anew")]
    methods = [set(record["gradient_methods"].values()) for record in records]
    assert methods == [{"sddmm"}, {"sddmm"}, {"dense"}]
    assert records[0]["kept_by"] == records[1]["kept_by"] != {}


def test_dropout_goes_on_where_it_was(bert_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "glue" / "SST-2").mkdir(parents=True)
    for file, count in (("train", 48), ("dev", 8)):
        rows = "".join(f"the cat sees a {'dog' if i % 3 else 'cat and the dog'} .\t{i % 2}\n" for i in range(count))
        (tmp_path / "glue" / "SST-2" / f"{file}.tsv").write_text(f"sentence\tlabel\n{rows}")
    options = (
        "data=glue", "data.task=sst2", f"data.root={tmp_path / 'glue'}", "model=bert_base", "model.pretrained=false",
        f"model.path={bert_folder}", "method=random", "keep=0.2", "regime.epochs=2", "regime.batch_size=8",
        "regime.lr=0.01", "threads=1", "data.max_length=16",
    )  # fmt: skip
    assert fishexp(*options, "outputs=whole").status == 0
    with monkeypatch.context() as patch:
        cut_after(4, patch)
        with pytest.raises(Cut):
            fishexp(*options, "outputs=cut", *EVERY_STEP)
    assert fishexp(*options, "outputs=cut", *EVERY_STEP).status == 0
    assert_alike("whole", "cut")


def kill_and_continue(kills: int, draw: random.Random, late: tuple[float, float], options: tuple[str, ...]) -> int:
    """Kill the run at so many random moments, then let it end; the number of kills that it did not outrun.

    Every other kill comes soon after there are snapshots, the others ``late``: seconds, from and to.
    """
    in_training = 0
    while kills:
        with Program("fishexp", *SMALL, *options, "outputs=killed", *EVERY_STEP) as process:
            ready = time.monotonic() + 120
            while not list(Path("killed").glob("*/*/*/*/snapshots")) and time.monotonic() < ready:
                time.sleep(0.01)
            time.sleep(draw.uniform(*((0, 0.4) if kills % 2 else late)))
            process.kill()
            in_training += process.wait() == -signal.SIGKILL
        kills -= 1
    with Program("fishexp", *SMALL, *options, "outputs=killed", *EVERY_STEP) as process:
        _, err = process.communicate(timeout=300)
        assert (process.wait(), err) == (0, "")
    return in_training


KILLED = ("regime=checkpointing", "regime.mask=every_epoch", "regime.keyframe_every=3")


@pytest.mark.slow
def test_three_kills(tmp_path: Path) -> None:
    """A real SIGKILL at moments of chance, in the middle of writing too: every step writes.

    60 steps take some seconds, and after a second and a half some of them are left.
    """
    options = (*KILLED, "regime.epochs=6")
    assert fishexp(*SMALL, *options, "outputs=whole").status == 0
    assert kill_and_continue(3, random.Random(0), (0.5, 1.5), options) > 0
    assert_alike("whole", "killed")


@pytest.mark.slow
@pytest.mark.parametrize(
    "options", [(*KILLED, "regime.epochs=12"), ("regime.epochs=40",)], ids=["checkpointing", "transfer"]
)
def test_thirty_kills(options: tuple[str, ...], tmp_path: Path) -> None:
    assert fishexp(*SMALL, *options, "outputs=whole").status == 0
    draw, kills = random.Random(1), 0
    while kills < 15:
        shutil.rmtree("killed", ignore_errors=True)
        kills += kill_and_continue(3, draw, (2, 5), options)
        assert_alike("whole", "killed")


def test_snapshots_hold_nothing_dense_and_the_newest_few(monkeypatch: pytest.MonkeyPatch) -> None:
    """Base and delta and k-sized moments: with decay=kept the state is as small as the mask."""
    with monkeypatch.context() as patch:
        cut_after(7, patch)
        with pytest.raises(Cut):
            fishexp(*SMALL, "keep=0.01", "regime.epochs=3", "regime.optimiser=adamw", "outputs=cut", *EVERY_STEP)
    folders = sorted(run_folder("cut").glob("snapshots/*"))
    assert [int(folder.name) for folder in folders] == [6, 7]
    kept = 3_080
    (snapshot,) = Snapshots(run_folder("cut") / "snapshots", 1).load()
    moments = sum(t.numel() for name, t in snapshot.tensors.items() if "exp_avg" in name)
    assert moments == 2 * kept
    sizes = sum(file.stat().st_size for file in folders[1].glob("*"))
    assert sizes < 3 * 4 * kept + 50_000  # values and two moments; streams, names, fingerprints
    assert sizes < 0.1 * 4 * 308_074


def test_a_damaged_snapshot_gives_way_to_the_one_before(monkeypatch: pytest.MonkeyPatch) -> None:
    assert fishexp(*SMALL, "regime.epochs=3", "outputs=whole").status == 0
    for damaged in ("state.safetensors", "delta.safetensors"):
        shutil.rmtree("cut", ignore_errors=True)
        with monkeypatch.context() as patch:
            cut_after(7, patch)
            with pytest.raises(Cut):
                fishexp(*SMALL, "regime.epochs=3", "outputs=cut", *EVERY_STEP)
        file = run_folder("cut") / "snapshots" / f"{7:09d}" / damaged
        content = bytearray(file.read_bytes())
        content[-5] ^= 1
        file.write_bytes(content)
        result = fishexp(*SMALL, "regime.epochs=3", "outputs=cut", *EVERY_STEP)
        assert "cannot be used" in result.out
        assert "continued from a snapshot after 6 steps" in result.out
        assert_alike("whole", "cut")


@pytest.mark.slow
def test_metrics_come_from_the_snapshot_whatever_became_of_their_file(monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*SMALL, "regime.epochs=3")
    assert fishexp(*options, "outputs=whole").status == 0
    with monkeypatch.context() as patch:
        cut_after(24, patch)
        with pytest.raises(Cut):
            fishexp(*options, "outputs=cut", *EVERY_STEP)
    lines = (run_folder("cut") / "metrics.jsonl").read_bytes()
    assert lines.count(b"\n") == 2
    changed = {
        "removed": None,
        "torn": lines[: len(lines) // 3],
        "flipped": lines[:5] + bytes([lines[5] ^ 64]) + lines[6:],
        "blank": b"\n\0\n" + lines,
        "longer": lines + lines,
        "renamed": lines.replace(b"accuracy", b"accuracx"),
    }
    for name, content in changed.items():
        shutil.copytree("cut", name)
        file = run_folder(name) / "metrics.jsonl"
        file.unlink()
        if content is not None:
            file.write_bytes(content)
        result = fishexp(*options, f"outputs={name}", *EVERY_STEP)
        assert "continued from a snapshot after 24 steps" in result.out, (name, result)
        assert file.read_bytes() == (run_folder("whole") / "metrics.jsonl").read_bytes(), name
        assert_alike("whole", name)


def test_metrics_that_change_while_the_run_goes_on_are_put_right(monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*SMALL, "regime.epochs=3")
    assert fishexp(*options, "outputs=whole").status == 0
    original = Trainer.steps

    def steps(self: Trainer) -> Any:
        if self.progress.epoch == 3:
            (run_folder("changed") / "metrics.jsonl").unlink()
        return original(self)

    with monkeypatch.context() as patch:
        patch.setattr(Trainer, "steps", steps)
        assert fishexp(*options, "outputs=changed").status == 0
    assert_alike("whole", "changed")


def test_a_snapshot_without_metrics_is_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        cut_after(4, patch)
        patch.setattr(Logger, "state", lambda _: {"seconds": {}, "wandb": None})
        with pytest.raises(Cut):
            fishexp(*SMALL, "regime.epochs=2", *EVERY_STEP)
    mistake = fishexp(*SMALL, "regime.epochs=2", *EVERY_STEP).mistake()
    assert mistake == "the snapshots are of another version of fishexp; resume=false begins anew"


def test_without_resume_a_run_begins_anew(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        cut_after(4, patch)
        with pytest.raises(Cut):
            fishexp(*SMALL, "regime.epochs=2", *EVERY_STEP)
    result = fishexp(*SMALL, "regime.epochs=2")
    assert result.status == 0
    assert "continued" not in result.out
    assert "continued" not in (run_folder("outputs") / "log.txt").read_text()


def test_other_threads_are_said_to_be(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        cut_after(4, patch)
        with pytest.raises(Cut):
            fishexp(*SMALL, "threads=null", "regime.epochs=2", *EVERY_STEP)
    before = torch.get_num_threads()
    monkeypatch.setattr("fishexp.run.runner._THREADS", before + 1)
    assert f"threads {before} -> {before + 1}" in fishexp(*SMALL, "threads=null", "regime.epochs=2", *EVERY_STEP).out


def test_a_full_disk_ends_the_run_and_leaves_the_last_good_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A file that may not grow further stands for a disk that is full: the system refuses the write either way."""
    size = 1_250_000  # bytes: a base, but not the moments of all weights
    limit = partial(resource.setrlimit, resource.RLIMIT_FSIZE, (size, size))
    options = (*SMALL, "regime.epochs=2", "method=full", "regime.optimiser=adamw", "regime.lr=0.01")
    assert fishexp(*options, "outputs=whole").status == 0
    with monkeypatch.context() as patch:
        cut_after(4, patch)
        with pytest.raises(Cut):
            fishexp(*options, "outputs=cut", *EVERY_STEP)
    with Program("fishexp", *options, "outputs=cut", *EVERY_STEP, prepare=limit) as process:
        _, err = process.communicate(timeout=200)
        assert process.wait() == 1
    assert re.fullmatch(
        r"fishexp: no snapshot can be written to .*snapshots \(.*File too large.*\); "
        r"the snapshot after 4 steps is whole; continue with resume=true\n",
        err,
    )
    assert "continued from a snapshot after 4 steps" in fishexp(*options, "outputs=cut", *EVERY_STEP).out
    assert_alike("whole", "cut")


def test_a_kill_before_the_record_is_written_loses_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*SMALL, "regime.epochs=2", "regime=checkpointing")
    assert fishexp(*options, "outputs=whole").status == 0

    def cut(*_: Any) -> None:
        raise Cut

    with monkeypatch.context() as patch:
        patch.setattr(Record, "write", cut)
        with pytest.raises(Cut):
            fishexp(*options, "outputs=cut", *EVERY_STEP)
    assert "continued from a snapshot after 20 steps" in fishexp(*options, "outputs=cut", *EVERY_STEP).out
    assert_alike("whole", "cut")


def test_what_a_cut_repetition_left_is_no_finished_run(monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor does it keep names of files beside those that count."""
    options = (*SMALL, "regime.epochs=2")
    assert fishexp(*options, "outputs=cut").status == 0
    with monkeypatch.context() as patch:
        cut_after(4, patch)
        with pytest.raises(Cut):
            fishexp(*options, "outputs=cut", "snapshot_minutes=0")
    with pytest.raises(library.FishexpError, match="is not the folder of a finished run"):
        library.load_run(run_folder("cut"))
    (run_folder("cut") / ".left.safetensors.0.tmp").touch()
    assert fishexp(*options, "outputs=cut").status == 0
    assert not list(run_folder("cut").glob(".*.tmp"))
    assert (run_folder("cut") / "base.safetensors").stat().st_nlink == 2


@pytest.mark.parametrize("where", ["about", "key"])
def test_a_snapshot_is_checked_in_all_its_parts(where: str, monkeypatch: pytest.MonkeyPatch) -> None:
    options = (*SMALL, "regime.epochs=2", "snapshot_keep=1", "outputs=cut")
    assert fishexp(*SMALL, "regime.epochs=2", "outputs=whole").status == 0
    with monkeypatch.context() as patch:
        cut_after(7, patch)
        with pytest.raises(Cut):
            fishexp(*options, *EVERY_STEP)
    file = run_folder("cut") / "snapshots" / f"{7:09d}" / "state.safetensors"
    old, new = {"about": (rb"\"steps\": 7", rb"\"steps\": 3"), "key": (b"fishexp.snap", b"fishexp.snip")}[where]
    content = file.read_bytes()
    assert content.count(old) == 1
    file.write_bytes(content.replace(old, new))
    result = fishexp(*options, *EVERY_STEP)
    assert "cannot be used" in result.out
    assert "continued" not in result.out
    assert_alike("whole", "cut")


def test_a_snapshot_that_cannot_be_written_is_an_error_that_says_what_is_whole(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The folder of the snapshots cannot be written from the fifth step on."""
    import fishexp.training.snapshots as module

    assert fishexp(*SMALL, "regime.epochs=3", "outputs=whole").status == 0
    original, calls = module.save_file, [0]

    def full(*arguments: Any, **options: Any) -> None:
        calls[0] += 1
        if calls[0] > 4:
            raise OSError(28, "No space left on device")
        original(*arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(module, "save_file", full)
        result = fishexp(*SMALL, "regime.epochs=3", "outputs=cut", *EVERY_STEP)
    assert result.status == 1
    assert result.err.count("\n") == 1
    assert "(No space left on device); the snapshot after 4 steps is whole; continue with resume=true" in result.err
    assert fishexp(*SMALL, "regime.epochs=3", "outputs=cut", *EVERY_STEP).status == 0
    assert_alike("whole", "cut")


def test_wandb_goes_on_with_the_same_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    with monkeypatch.context() as patch:
        cut_after(14, patch)
        with pytest.raises(Cut):
            fishexp(*SMALL, "regime.epochs=2", "wandb=offline", "outputs=cut", *EVERY_STEP)
    assert fishexp(*SMALL, "regime.epochs=2", "wandb=offline", "outputs=cut", *EVERY_STEP).status == 0
    folders = [folder.name.split("-") for folder in run_folder("cut").glob("wandb/offline-run-*")]
    assert len(folders) == 2
    assert len({run for _, _, _, run, *_ in folders}) == 1  # behind it is a number where both began in the same second
