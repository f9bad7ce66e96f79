"""Sweeps: which runs are started, in which order, and what ends them."""

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.lib import durations, experiment, sweep
from experiments.lib.plan import Command
from experiments.lib.settings import composed_runs
from fishexp.errors import FishexpError
from fishexp.run import record
from fishexp.run.identity import run_id
from fishexp.system.atomic import append


class Runner:
    """Stands where command lines are started: notes them, and does what it is told to do with each."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, records: Path) -> None:
        self.records, self.calls = records, []
        self.status: Callable[[list[str]], int] = lambda overrides: 0
        monkeypatch.setattr(sweep, "_call", self)

    def __call__(self, command: list[str]) -> int:
        overrides = command[command.index("-m", 2) + 1 :]
        self.calls.append(overrides[3:])
        status = self.status(overrides[3:])
        if status == 0:
            for run in composed_runs(tuple(overrides[3:])):
                done = {"run_id": run_id(run), "status": "finished", "config": run, "metrics": {"accuracy": 1}}
                append(self.records, json.dumps(done), "record")
        return status


DIGITS = ("data=digits", "method=random", "keep=0.01", "regime.epochs=1")


def commands(*seeds: str) -> list[Command]:
    return [Command("table", (*DIGITS, f"seed={seed}")) for seed in seeds]


@pytest.fixture
def runner(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Runner:
    return Runner(monkeypatch, tmp_path / "records.jsonl")


def go(runner: Runner, plan: list[Command]) -> int:
    return sweep.carry_out(lambda: plan, "python", "outputs", runner.records)


def test_finished_runs_are_skipped_and_the_others_run_in_order(runner: Runner) -> None:
    assert go(runner, commands("0,1", "2")) == 0
    assert [overrides[-1] for overrides in runner.calls] == ["seed=0,1", "seed=2"]
    assert go(runner, commands("3", "1", "0,1,4")) == 0
    assert [overrides[-1] for overrides in runner.calls[2:]] == ["seed=3", "seed=0,1,4"]


def test_a_run_that_fails_or_goes_on_elsewhere_is_tried_once(runner: Runner, capsys) -> None:
    runner.status = lambda overrides: 1 if overrides[-1] == "seed=0" else 0
    assert go(runner, commands("0", "1")) == 1
    assert [overrides[-1] for overrides in runner.calls] == ["seed=0", "seed=1"]
    assert "1 run is not done" in capsys.readouterr().out


def test_when_time_is_up_the_sweep_ends_well_and_says_what_is_left(
    runner: Runner, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    """The second run takes all of the hour but what it keeps back to end in time."""
    clock = iter([0, 10, 20, 3590, 3590, 3590])
    monkeypatch.setattr(sweep.time, "monotonic", lambda: next(clock))
    runner.status = lambda overrides: 130 if overrides[-1] == "seed=1" else 0
    limits: list[str] = []
    call = runner.__call__

    def noting(command: list[str]) -> int:
        limits.append(command[command.index("-m", 2) + 4])
        return call([word for word in command if not word.startswith("minutes=")])

    monkeypatch.setattr(sweep, "_call", noting)
    monkeypatch.setattr(durations, "_carried_out", lambda overrides, python: None)
    plan = commands("0", "1", "2")
    assert sweep.carry_out(lambda: plan, "python", "outputs", runner.records, hours=1) == 0
    assert limits == ["minutes=59.83", "minutes=59.67"]
    said = capsys.readouterr().out.splitlines()
    assert said[1:3] == [
        "resnet8 on digits, transfer: its steps could not be timed",
        "HOURS=1 is enough for about 0 of 3 runs to do; whole then: nothing",
    ]
    assert said[-2:] == ["whole: table (seed 0)", "2 runs are not done: time is up; the same command continues"]


@pytest.mark.parametrize("hours", ["0", "-1", "soon", "nan"])
def test_hours_are_a_number_above_zero(hours: str) -> None:
    with pytest.raises(FishexpError, match=f"HOURS={hours} is no number above 0"):
        experiment._hours({"HOURS": hours})


@pytest.mark.parametrize(("status", "ended"), [(2, 2), (130, 130), (-9, 137)])
def test_mistakes_and_signals_end_the_sweep(runner: Runner, status: int, ended: int) -> None:
    runner.status = lambda overrides: status
    assert go(runner, commands("0", "1")) == ended
    assert len(runner.calls) == 1


def test_the_plan_is_asked_again_after_every_command(runner: Runner) -> None:
    """The second command is known only when the first is done; one that waits does not run."""

    def plan() -> list[Command]:
        waits = not runner.calls
        return [*commands("0"), Command("table", (*DIGITS, f"seed={1 if waits else 2}"), waits=waits)]

    assert sweep.carry_out(plan, "python", "outputs", runner.records) == 0
    assert [overrides[-1] for overrides in runner.calls] == ["seed=0", "seed=2"]
    never = [*commands("0"), replace(commands("0")[0], waits=True)]
    assert go(runner, never) == 1  # done, but it still waits
    assert len(runner.calls) == 2


def test_the_status_of_a_process_and_the_signal_to_it(tmp_path: Path) -> None:
    assert sweep._call([sys.executable, "-c", "import sys; sys.exit(3)"]) == 3
    before = signal.getsignal(signal.SIGTERM)
    ready = tmp_path / "ready"
    code = "import signal, sys, time; signal.signal(signal.SIGTERM, lambda *_: sys.exit(130)); "
    code += "open(sys.argv[1], 'w').close(); time.sleep(60)"

    def terminate() -> None:
        while not ready.exists():
            time.sleep(0.02)
        os.kill(os.getpid(), signal.SIGTERM)

    threading.Thread(target=terminate).start()
    assert sweep._call([sys.executable, "-c", code, str(ready)]) == 130
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_sweep_that_writes_tracked_records_stays_clean(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    files = [tmp_path / "fishexp" / "run" / "record.py", tmp_path / "experiments" / "table4" / "records.jsonl"]
    for file in files:
        file.parent.mkdir(parents=True)
        file.write_text("1\n")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.org"]
    for arguments in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"]):
        subprocess.run([*git, *arguments], check=True)
    monkeypatch.setattr(record, "_ROOT", tmp_path)
    commits = []
    for file in reversed(files):
        file.write_text("2\n")
        commits.append(record.commit.__wrapped__())
    assert re.fullmatch("[0-9a-f]{12}", commits[0])
    assert commits[1] == commits[0] + "+"
