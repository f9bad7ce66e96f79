"""What a sweep says of its runs: which of how many, the time left, how each ended."""

import io
import time
from collections.abc import Mapping
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from fishexp.run.sweep import Ended, Outcome, Status, Sweep, differing, labelled
from tests.support.cli import QUICK, fishexp, records


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def test_a_sweep_counts_its_runs_and_sums_them_up(tmp_path: Path) -> None:
    assert fishexp(*QUICK).status == 0
    result = fishexp("-m", *QUICK, "seed=0,1", "keep=0.4%,0.5%", "resume=true")
    lines = result.out.splitlines()
    assert [line.split(", about ")[0] for line in lines if line.startswith("run ")][:4] == [
        "run 1/4, seed=0 keep=0.004", "run 2/4, seed=0 keep=0.005", "run 3/4, seed=1 keep=0.004",
        "run 4/4, seed=1 keep=0.005",
    ]  # fmt: skip
    assert sum(", about " in line and line.endswith(" left") for line in lines) == 3
    table = lines[-6:]
    assert table[0].startswith("4 runs in ")
    assert table[0].endswith(": 2 failed, 1 done already, 1 finished")
    assert table[1].split() == ["run", "name", "result", "status", "seconds"]
    by_id = {record["run_id"]: record for record in records(tmp_path)}
    for line, status in zip(table[2:], ("failed", "done already", "failed", "finished"), strict=True):
        record = by_id[line.split()[2].rpartition("-")[2]]
        assert f"seed={record['seed']} keep={record['keep']}" in line
        assert f" {status} " in line
        shown = f"accuracy {record['metrics']['accuracy']:.4g}" if record["metrics"] else ""
        assert shown in line
        assert ("accuracy" in line) == (status != "failed")


def test_a_single_run_says_nothing_of_a_sweep() -> None:
    assert "run " not in fishexp(*QUICK).out.splitlines()[0]
    assert "runs in" not in fishexp(*QUICK).out


def test_an_interrupted_sweep_says_what_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("fishexp.run.runner.run", interrupted)
    result = fishexp("-m", *QUICK, "seed=0-3")
    assert (result.status, result.err) == (130, "fishexp: interrupted; the same command with resume=true continues\n")
    assert " s: 1 interrupted; 3 did not begin, resume=true goes on\n" in result.out


def sweep_of(folder: Path, *settings: str, start: float | None = None) -> Sweep:
    """Begin a sweep over settings that all tell runs apart."""
    (folder / "ended").touch()
    results = [(setting,) for setting in settings]
    return Sweep(folder / "ended", settings, results, shown=True, start=start or time.time())


def ended(number: int, status: Status, metrics: Mapping[str, float | None]) -> Ended:
    return Ended(number, f"digits/seed{number}", 2.0, Outcome(status, metrics, 0))


def test_the_time_left_is_that_of_the_runs_so_far(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Runs that were done already say nothing about the time of one: two runs in 96 s, three are left."""
    sweep = sweep_of(tmp_path, *(f"seed={seed}" for seed in range(6)), start=time.time() - 96)
    sweep.begin(1)
    sweep.end(ended(1, "finished", {}))
    sweep.end(ended(3, "failed", {}))
    sweep.end(ended(2, "done already", {}))
    sweep.begin(4)
    assert capsys.readouterr().out == "run 1/6, seed=0\nrun 4/6, seed=3, about 2 min left\n"
    assert [end.number for end in sweep.ended()] == [1, 2, 3]


def test_the_table_has_the_headline_of_each_run(tmp_path: Path) -> None:
    sweep = sweep_of(tmp_path, "seed=0", "seed=1")
    sweep.end(ended(2, "finished", {"matthews": None, "loss": 1.0}))
    sweep.end(ended(1, "finished", {"accuracy": 0.51234, "loss": 2.0}))
    assert sweep.summary().splitlines() == [
        "",
        "2 runs in 0 s: 2 finished",
        "run     name          result              status    seconds",
        "seed=0  digits/seed1  accuracy 0.5123     finished      2.0",
        "seed=1  digits/seed2  matthews undefined  finished      2.0",
    ]


def test_what_tells_runs_apart() -> None:
    assert differing([["a=1", "b=2", "c=3"], ["a=1", "b=3"]]) == ["b=2 c=3", "b=3"]
    assert differing([["a=1"]]) == [""]


def test_a_label_stands_before_each_whole_line() -> None:
    stream = io.StringIO()
    with redirect_stdout(stream), labelled("2/3 fish"):
        print("one\ntwo", end="")
        assert stream.getvalue() == "[2/3 fish] one\n"
        print("!")
    assert stream.getvalue() == "[2/3 fish] one\n[2/3 fish] two!\n"
