"""Workers and launchers that are killed, stopped, interrupted: a run goes on from its snapshot, and nobody is left."""

import json
import random
import shutil
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from fishexp.run.record import read
from tests.support import launched
from tests.support.cli import fishexp
from tests.support.launched import TINY, ended, gone, kill, lay_out, records, run_folder, started, wait_for
from tests.support.records import full_records

PAUSED = "model.pause=0.25"  # seconds a batch: there is time for a kill


def undisturbed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The same run, in one process."""
    with monkeypatch.context() as patch:
        patch.chdir(folder)
        patch.syspath_prepend(folder)
        with pytest.warns(UserWarning, match="has something to say"):
            assert fishexp(*TINY, "regime.backend=simulated", "outputs=whole").status == 0


def assert_as_undisturbed(folder: Path) -> None:
    model = "model.safetensors"
    assert (run_folder(folder) / model).read_bytes() == (run_folder(folder, "whole") / model).read_bytes()
    (whole,), found = records(folder, "whole"), records(folder)[-1]
    for key in ("status", "metrics", "kept", "bytes"):
        assert found[key] == whole[key]


def kills(folder: Path, count: int, draw: random.Random, *arguments: str, early: bool) -> tuple[int, str, str]:
    """A run, some worker of which is killed so many times at random moments; what it came to.

    ``early``: perhaps before it trains again.
    """
    with started(folder, PAUSED, *arguments) as process:
        before: set[int] = set()
        for number in range(1, count + 1):
            assert wait_for(
                partial(_starts, folder, process.pid, before) if early else partial(_trains, folder, number)
            )
            time.sleep(draw.uniform(0, 3))
            pids = launched.workers(process.pid)
            before |= set(pids.values())
            kill(pids[draw.choice(sorted(pids))])
        return ended(process)


def _starts(folder: Path, launcher: int, before: set[int]) -> bool:
    """Whether there are workers again, and the first ones had come to a snapshot."""
    pids = set(launched.workers(launcher).values())
    return launched.has_snapshot(folder) and len(pids) == 2 and not pids & before


def _trains(folder: Path, number: int) -> bool:
    """Whether the workers of this start have weights that move, and the first ones had come to a snapshot."""
    return launched.has_snapshot(folder) and log(folder).count(" workers on ") == number


def log(folder: Path) -> str:
    return (run_folder(folder) / "log.txt").read_text()


@pytest.mark.slow
def test_two_kills_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    undisturbed(tmp_path, monkeypatch)
    status, out, err = kills(tmp_path, 2, random.Random(0), early=False)
    assert (status, err) == (0, "")
    lines = [line for line in out.splitlines() if " was lost (signal 9); continued from a snapshot after " in line]
    assert len(lines) == 2
    assert [record["status"] for record in records(tmp_path)] == ["finished"]
    assert_as_undisturbed(tmp_path)


@pytest.mark.slow
def test_twenty_kills_change_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    undisturbed(tmp_path, monkeypatch)
    for seed in range(4):
        status, _, err = kills(tmp_path, 5, random.Random(seed), "regime.restarts=5", early=True)
        assert (status, err) == (0, "")
        assert len(records(tmp_path)) == seed + 1
        assert_as_undisturbed(tmp_path)


def test_an_interrupt_is_on_record_and_a_killed_launcher_leaves_nobody(tmp_path: Path) -> None:
    lay_out(tmp_path)
    with started(tmp_path, PAUSED) as process:
        assert wait_for(lambda: launched.has_snapshot(tmp_path))
        kill(process.pid, signal.SIGINT)
        status, _, err = ended(process)
    assert (status, err) == (130, "fishexp: interrupted; the same command with resume=true continues\n")
    assert [record["status"] for record in records(tmp_path)] == ["interrupted"]

    with started(tmp_path, PAUSED, "resume=true") as process:
        assert wait_for(lambda: "continued from a snapshot after" in log(tmp_path))
        left = launched.children(process.pid)
        assert len(left) >= 2
        kill(process.pid)
        assert gone(left)
    assert len(records(tmp_path)) == 1


@pytest.mark.slow
def test_a_worker_that_hangs_is_noticed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    undisturbed(tmp_path, monkeypatch)
    with started(tmp_path, PAUSED, "regime.timeout=10") as process:
        assert wait_for(lambda: launched.has_snapshot(tmp_path))
        stopped = launched.workers(process.pid)[1]
        kill(stopped, signal.SIGSTOP)
        assert gone([stopped], within=30)
        status, out, err = ended(process)
    assert (status, err) == (0, "")
    assert "worker 1 was silent for 10 s; continued from a snapshot after " in out
    assert [record["status"] for record in records(tmp_path)] == ["finished"]
    assert_as_undisturbed(tmp_path)


@pytest.mark.slow
def test_restarts_are_used_up(tmp_path: Path) -> None:
    lay_out(tmp_path)
    status, out, err = kills(tmp_path, 2, random.Random(2), "regime.restarts=1", early=False)
    (record,) = records(tmp_path)
    assert status == 1
    assert record["status"] == "failed"
    assert record["error"].endswith(
        " was lost (signal 9) after 1 restarts; resume=true continues from the last snapshot, if there is one"
    )
    assert err == f"fishexp: {record['error']}\n"
    assert out.count(" was lost ") == 1
    status, out, _ = launched.run_to_end(tmp_path, PAUSED, "regime.restarts=1", "resume=true")
    assert status == 0
    assert "continued from a snapshot after" in out


@pytest.mark.slow
@pytest.mark.parametrize(
    ("fault", "status", "line"),
    [
        ("nan1", 1, "worker 1: a weight is not finite after step 6; lower regime.lr"),
        ("bug1", 1, "worker 1: TypeError: what is this?; debug=true shows where"),
        ("bug0", 1, "TypeError: what is this?; debug=true shows where"),
        ("refuses1", 2, "worker 1: no such weights; take others"),
        ("other1", 2, "worker 1 has initial weights="),
    ],
)
def test_what_a_restart_cannot_mend_is_said_once(fault: str, status: int, line: str, tmp_path: Path) -> None:
    lay_out(tmp_path)
    found, _, err = launched.run_to_end(tmp_path, f"model.fault={fault}")
    assert found == status
    assert err.startswith(f"fishexp: {line}")
    assert err.count("\n") == 1
    (record,) = records(tmp_path)
    assert record["status"] == "failed"
    assert err == f"fishexp: {record['error']}\n"
    assert (run_folder(tmp_path) / "workers" / "1.txt").read_text().count("workers on") == 1  # started once


def test_workers_with_other_examples_do_not_train_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    monkeypatch.setenv("OTHER_EXAMPLES", "1")
    status, _, err = launched.run_to_end(tmp_path)
    assert status == 2
    assert err.startswith("fishexp: worker 1 has examples=")
    assert [record["status"] for record in records(tmp_path)] == ["failed"]


@pytest.mark.slow
def test_records_on_a_full_disk_lose_no_finished_run(tmp_path: Path) -> None:
    lay_out(tmp_path)
    limit = full_records(tmp_path / "records.jsonl", 1_000_000)
    status, _, err = launched.run_to_end(tmp_path, "records=records.jsonl", prepare=limit)
    assert status == 1
    assert err == (
        "fishexp: records.jsonl: the record cannot be appended (File too large); "
        f"it is in {run_folder(tmp_path)}/record.json, and resume=true appends it\n"
    )
    assert json.loads((run_folder(tmp_path) / "record.json").read_text())["status"] == "finished"
    status, out, _ = launched.run_to_end(tmp_path, "records=records.jsonl", "resume=true")
    assert (status, "is done already" in out) == (0, True)
    assert not (run_folder(tmp_path) / "snapshots").exists()


@pytest.mark.slow
def test_a_run_folder_that_cannot_be_written_is_said_once(tmp_path: Path) -> None:
    """And the others' logs with it; a folder where a file is to be stands for a disk that is full or read-only."""
    lay_out(tmp_path)
    assert launched.run_to_end(tmp_path, "records=records.jsonl")[0] == 0
    folder = run_folder(tmp_path)
    shutil.rmtree(folder)
    for name in (".lock", "log.txt", "workers"):
        (folder / name).mkdir(parents=True)
    (folder / "workers" / "1.txt").mkdir()
    status, _, err = launched.run_to_end(tmp_path, "records=records.jsonl")
    record = list(read(tmp_path / "records.jsonl"))[-1]
    assert (status, err.count("\n")) == (2, 1)
    assert f"{folder} cannot be written (Is a directory); choose another with outputs=" in err
    assert (record["status"], err) == ("failed", f"fishexp: {record['error']}\n")


@pytest.mark.slow
@pytest.mark.parametrize("backend", ["static", "c10d"])
def test_torchrun_starts_them_again(backend: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    undisturbed(tmp_path, monkeypatch)
    port, more = launched.free_port(), ("--max-restarts=2", f"--rdzv-backend={backend}")
    if backend == "c10d":
        more = (*more, f"--rdzv-endpoint=127.0.0.1:{port}")
    commands = [launched.torchrun(node, port, 2, *more) for node in (0, 1)]
    with (
        started(tmp_path, PAUSED, command=commands[0]) as first,
        started(tmp_path, PAUSED, command=commands[1]) as second,
    ):
        assert wait_for(lambda: launched.has_snapshot(tmp_path))
        pids = launched.workers(first.pid) | launched.workers(second.pid)
        kill(pids[1])
        (status, _, _), (other, _, _) = ended(first), ended(second)
    assert (status, other) == (0, 0)
    assert "a worker was lost; continued from a snapshot after " in log(tmp_path)  # with c10d either may be the first
    assert [record["status"] for record in records(tmp_path)] == ["finished"]
    assert_as_undisturbed(tmp_path)


@pytest.mark.slow
def test_jobs_at_the_same_time_have_workers_of_their_own(tmp_path: Path) -> None:
    """With Hydra's joblib launcher, whose processes do not begin in one that was forked from another."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="needs the extra `parallel`")
    lay_out(tmp_path)
    command = [sys.executable, "-m", "fishexp", "-m", *TINY, "seed=0,1", "hydra/launcher=joblib"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False, timeout=240)
    assert (done.returncode, done.stderr) == (0, "")
    assert sorted((record["seed"], record["status"]) for record in records(tmp_path)) == [
        (0, "finished"),
        (1, "finished"),
    ]
