"""`make table3`: which runs, at which learning rates; what the report says of them."""

import re
import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import table3
from experiments.__main__ import HOME
from experiments.lib import sweep
from experiments.lib.experiment import run_experiment, sections
from experiments.lib.plan import plan
from experiments.lib.records import recorded_runs
from experiments.lib.results import result_of, section_of
from experiments.lib.settings import composed_run
from experiments.table3 import report
from experiments.table3.cells import Cell, methods
from experiments.table3.profiles import PROFILES
from fishexp.run import record
from fishexp.run.identity import run_id
from tests.support.cli import fishexp
from tests.support.tables import chosen, figures, reported, rows, words, write_records

CPU, JUNE = PROFILES["cpu"]
FISH, RANDOM, FULL = Cell("fish", 0.02, 21), Cell("random", 0.02, 21), Cell("full", 1.0, 21)
RATES = {0.01: 0.3, 0.04: 0.4, 0.16: 0.2}
COMMON = "data=cifar10 model=resnet18 precision=fp32 threads=1 device=cpu data.train_limit=2240 regime.batch_size=64 "
COMMON += "regime=distributed regime.workers=2 regime.backend=simulated regime.shard=false regime.merge=mean "
COMMON += "regime.refresh_every=10 decay=kept compat=none "
MASKED = "regime.masks=same regime.warmup_epochs=1"
# method -> its overrides
METHOD = {
    "fish": f"method=fish method.samples=256 {MASKED}",
    "random": f"method=random {MASKED}",
    "full": "method=full regime.warmup_epochs=0",
}
SIZES: dict[str, Any] = {"per_merge": 932_360, "sent": 229_490_683}


def tuned(scores: dict[float, float] = RATES) -> list[dict[str, Any]]:
    """All held-out runs of the profile ``cpu``."""
    return [run for cell in (FISH, RANDOM, FULL) for run in chosen(CPU, CPU.sources[cell], scores)]


def test_the_runs_of_the_cpu_profile(tmp_path: Path) -> None:
    """Word for word, as the identity of runs on record hangs on them."""
    commands = list(plan([CPU], write_records(tmp_path, tuned())))
    further = "seed=0 regime.sync_every=35 data.holdout=1000 regime.epochs=5 regime.warmup=0.5 regime.lr=0.01,0.04,0.16"
    assert [set(command.overrides) for command in commands if command.step == "rates"] == [
        words(f"{COMMON} {further} {METHOD[method]}{keep}")
        for method, keep in {"fish": " keep=0.02", "random": " keep=0.02", "full": ""}.items()
    ]
    further = "seed=1 regime.lr=0.04 data.valid_limit=2000 regime.epochs=6 regime.warmup=0.6"
    second = [command for command in commands if command.step == "table"][21:42]
    assert {frozenset(command.overrides) for command in second} == {
        frozenset(words(f"{COMMON} {further} regime.sync_every={sync} {METHOD[method]}{keep}"))
        for sync in (4, 21, 105)
        for method, keeps in {"fish": (0.005, 0.02, 0.1), "random": (0.005, 0.02, 0.1), "full": (None,)}.items()
        for keep in (f" keep={number}" if number else "" for number in keeps)
    }
    assert Counter(command.step for command in commands) == {"rates": 3, "table": 3 * 21}
    assert not any(command.waits for command in commands)


def test_all_parts_of_a_seed_come_before_the_next_seed(tmp_path: Path) -> None:
    """The setting of the logs has one seed, and rates from the start."""
    steps = [command.step for command in plan(PROFILES["cpu"], write_records(tmp_path, tuned()))]
    assert steps == ["rates"] * 3 + ["table"] * 21 + ["june table"] * 6 + ["table"] * 42


@pytest.mark.parametrize("name", PROFILES)
def test_every_kind_of_command_can_be_composed(name: str) -> None:
    """Also that no two cells are one run, that masks outlive the warm-up, and that all rows merge more than once."""
    ids, runs = set(), 0
    for part in PROFILES[name]:
        for cell in (cell for cell in part.cells if cell.keep in (0.02, 1)):
            for step in filter(None, (part.report or {"seed": 1}, part.choose)):
                run = composed_run(part.settings(cell, step, {"regime.lr": 0.1}))
                regime, limit = run["regime"], run["data"]["train_limit"]
                steps = (limit or 50_000 - run["data"]["holdout"]) // regime["batch_size"] * regime["epochs"]
                merging = -(-steps // regime["sync_every"])
                assert merging > 1 or regime["epochs"] == 5  # to choose rates, at one interval
                warm = 0 if cell.method == "full" or part.name == "june" else regime["epochs"] // 10 or 1
                assert regime["warmup_epochs"] == warm
                assert regime["masks"] == ("disjoint" if part.name == "june" and cell.method != "full" else "same")
                assert regime["warmup"] / regime["epochs"] == pytest.approx(0.1)
                ids.add(run_id(run))
                runs += 1
    assert len(ids) == runs


def test_intervals_of_the_cpu_profile_are_the_papers_in_proportion() -> None:
    paper, _ = PROFILES["paper"]
    for part, expected in ((CPU, 210), (paper, 4850)):
        run = composed_run(part.settings(part.cells[0], part.report, {"regime.lr": 1}))
        limit, regime = run["data"]["train_limit"] or 50_000, run["regime"]
        assert limit // regime["batch_size"] * regime["epochs"] == expected
    assert [cell.sync for cell in CPU.cells if cell.method == "full"] == [4, 21, 105]
    assert [cell.sync for cell in paper.cells if cell.method == "full"] == [100, 500, 2500]


def test_june_runs_at_the_rates_of_the_logs_and_their_share_of_an_epoch() -> None:
    """Half as large a batch, half the rate; 100 of 97 steps is the end of the epoch, which counts as a step there."""
    _, gpu = PROFILES["gpu"]
    assert len(gpu.cells) == len(gpu.known) == 21
    assert gpu.known[Cell("fish", 0.005, 30)] == 0.2
    assert gpu.known[Cell("fish", 0.02, 98)] == 0.04
    assert gpu.known[Cell("full", 1.0, 10)] == 0.4
    assert {cell.sync for cell in gpu.cells} == {10, 30, 98}
    assert {cell.sync for cell in JUNE.cells} == {3, 31}
    assert JUNE.known[Cell("fish", 0.02, 3)] == pytest.approx(0.4 / 8)
    run = composed_run(JUNE.settings(JUNE.cells[0], JUNE.report, {"regime.lr": 1}))
    assert run["data"]["train_limit"] // run["regime"]["batch_size"] == 30
    assert (run["decay"], run["compat"], run["regime"]["merge"]) == ("all", "fish", "sum")


def test_rates_are_borrowed_from_one_keep_and_interval(tmp_path: Path) -> None:
    path = write_records(
        tmp_path,
        chosen(CPU, CPU.sources[FISH], RATES)
        + chosen(CPU, CPU.sources[FULL], {0.0025: 0.4, 0.01: 0.5, 0.04: 0.4, 0.16: 0.3}),
    )
    runs = recorded_runs(path)
    rates = {cell: result_of(CPU, cell, runs).lr for cell in CPU.cells}
    assert {rates[cell] for cell in CPU.cells if cell.method == "fish"} == {0.04}
    assert {rates[cell] for cell in CPU.cells if cell.method == "full"} == {0.01}
    assert {rates[cell] for cell in CPU.cells if cell.method == "random"} == {None}
    waiting = [command for command in plan([CPU], path) if command.waits]
    assert len(waiting) == 3 * 9
    assert all("method=random" in command.overrides for command in waiting)


def test_dry_counts_runs_and_starts_none(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys) -> None:
    monkeypatch.setattr(sweep, "_call", None)
    one_seed = replace(table3.EXPERIMENT, profiles={"cpu": [replace(CPU, seeds=(0,)), JUNE]})
    assert run_experiment(one_seed, {"DRY": "1"}, tmp_path / "records.jsonl", "outputs", tmp_path) == 0
    lines = [re.split(r"\s{2,}", row) for row in capsys.readouterr().out.splitlines()]
    assert lines[0] == ["step", "runs", "done", "to do", "hours to go"]
    assert [row[:4] for row in lines[1:5]] == [
        ["rates", "9", "0", "9"],
        ["table", "21", "0", "21"],
        ["june table", "6", "0", "6"],
        ["all", "36", "0", "36"],
    ]
    assert {row[4] for row in lines[1:5]} == {"not measured"}  # nothing is on record here
    assert list(tmp_path.iterdir()) == []


def written(path: Path) -> str:
    table3.EXPERIMENT.write_report(path.parent, sections(table3.EXPERIMENT, path))
    return (path.parent / "README.md").read_text()


def test_the_numbers_of_the_report(tmp_path: Path) -> None:
    lines = tuned() + reported(CPU, FISH, 0.04, [0.50, 0.52, 0.57], **SIZES)
    lines += reported(CPU, FISH, 0.16, [0.9])  # not the rate that was chosen
    lines += reported(CPU, FULL, 0.04, [0.6], per_merge=44_734_248, sent=402_608_232)
    lines += reported(CPU, RANDOM, 0.04, [0.55], per_merge=932_360, sent=223_671_240)
    text = written(write_records(tmp_path, lines))
    table = figures(text, "## Profile cpu")
    assert table[0] == [
        *("merge every", "keep", "FISH", "random", "FISH: lr", "random: lr", "FISH: MB a merge", "random: MB a merge"),
        *("FISH: MB sent", "random: MB sent", "FISH: of dense", "random: of dense"),
    ]
    assert [row[:2] for row in table[2:]] == [
        [f"{sync} steps", keep] for sync in (4, 21, 105) for keep in ("0.005", "0.02", "0.1")
    ]
    by_row = {(row[0], row[1]): row[2:] for row in table[2:]}
    assert by_row["21 steps", "0.02"] == [
        *("53.0 ± 3.6 (3 seeds)", "55.0 (one seed)", "0.04", "0.04", "0.93", "0.93", "229.5", "223.7", "57.0%", "55.6%")
    ]
    assert by_row["105 steps", "0.02"] == [*["missing"] * 2, "0.04", "0.04", *["missing"] * 6]
    dense = figures(text, "## Profile cpu", 1)
    assert dense[0] == [
        *("merge every", "dense training", "dense training: lr", "dense training: MB a merge"),
        *("dense training: MB sent", "dense training: of dense"),
    ]
    assert [row[0] for row in dense[2:]] == ["4 steps", "21 steps", "105 steps"]
    assert dense[3][1:] == ["60.0 (one seed)", "0.04", "44.73", "402.6", "100.0%"]
    assert text.count("60.0 (one seed)") == 1  # the dense runs are neither FISH nor random
    progress = "5 of the 63 runs of this table are on record; they took 2.5 hours. No interval over seeds can be given"
    assert f"{progress} of FISH" in text
    differences = [row[:4] for row in rows(text, "### Differences to random\n")[2:]]
    assert differences == [["fish", "0.02", "21 steps", "-5.00"]]  # of the seed that both have
    assert "A worker with FISH sends 57.0% of what it sends in dense training that merges as often." in text
    assert (tmp_path / "cpu.png").stat().st_size > 10_000
    assert "Profile gpu" not in text
    assert "in their log" not in text
    settings = {row[0]: row[1:] for row in rows(text, "## Profile cpu")}
    assert settings["steps between merges"] == ["4, 21, 105", "100, 500, 2500"]
    assert settings["training images"] == ["2,240", "50,000"]
    assert settings["merge"] == ["mean, same masks", "mean, same masks (random: disjoint)"]
    rates = rows(text, "### Learning rates")
    assert rates[0] == ["method", "keep", "merge every", "0.01", "0.04", "0.16"]
    assert rates[2] == ["fish", "0.02", "35 steps", "30.0", "**40.0**", "20.0"]


def test_figures_of_the_logs_stand_beside_what_matches_only(tmp_path: Path) -> None:
    _, gpu = PROFILES["gpu"]
    cell = Cell("fish", 0.005, 98)
    small = reported(JUNE, Cell("fish", 0.02, 31), 0.04 / 8, [0.3], **SIZES)
    text = written(write_records(tmp_path, small))
    assert "in their log" not in text
    assert "## Profile cpu: the setting of the authors' logs" in text
    text = written(write_records(tmp_path, small + reported(gpu, cell, gpu.known[cell], [0.7], **SIZES)))
    table = figures(text, "## Profile gpu")
    assert table[0][2:6] == ["FISH", "FISH: in their log", "random", "random: in their log"]
    by_row = {(row[0], row[1]): row[2:6] for row in table[2:]}
    assert by_row["98 steps", "0.005"] == ["70.0 (one seed)", "72.6", "missing", "70.0"]
    dense = figures(text, "## Profile gpu", 1)
    assert dense[0][1:3] == ["dense training", "dense training: in their log"]
    assert dense[2][:3] == ["10 steps", "missing", "93.0"]
    assert "one seed, fp16" in text
    assert "Not the paper's Table 3" in text


def test_the_picture_shows_means_against_bytes_sent(tmp_path: Path) -> None:
    few, rare = Cell("fish", 0.005, 21), Cell("fish", 0.02, 105)
    lines = tuned() + reported(CPU, FISH, 0.04, [0.5, 0.6], **SIZES)
    path = write_records(tmp_path, lines)
    assert report.draw(section_of(CPU, "cpu", recorded_runs(path))) is None  # one point is no picture
    lines += reported(CPU, few, 0.04, [0.4], **SIZES | {"sent": 10**8}) + reported(CPU, rare, 0.04, [0.3], **SIZES)
    for sync, size in ((4, 2 * 10**9), (21, 4 * 10**8)):
        lines += reported(CPU, replace(FULL, sync=sync), 0.04, [0.7], **SIZES | {"sent": size})
    fig = report.draw(section_of(CPU, "cpu", recorded_runs(write_records(tmp_path, lines))))
    assert fig is not None
    containers: Any = fig.axes[0].containers
    drawn = {bars.get_label(): bars.lines[0] for bars in containers}
    assert list(drawn) == ["FISH, a merge every 21 steps", "FISH, a merge every 105 steps", "dense training"]
    line = drawn["FISH, a merge every 21 steps"]
    assert list(line.get_xdata()) == [10**8, 229_490_683]
    assert list(line.get_ydata()) == pytest.approx([40, 55])
    assert line.get_marker() != drawn["FISH, a merge every 105 steps"].get_marker()
    assert list(drawn["dense training"].get_xdata()) == [4 * 10**8, 2 * 10**9]


@pytest.mark.slow
def test_real_runs_give_all_that_the_report_shows(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """On the digits, in this process: every field of a record that is read here is one that a run writes."""
    monkeypatch.setattr(sweep, "_call", lambda command: fishexp(*command[3:]).status)
    fish = Cell("fish", 0.05, 2)
    tiny = replace(
        CPU,
        common=CPU.common | {"data": "digits", "model": "resnet8", "data.train_limit": 128},
        methods=methods(1) | {"fish": methods(1)["fish"] | {"method.samples": 16}},
        choose=None,
        sources={fish: fish, Cell("random", 0.05, 2): fish, Cell("full", 1.0, 2): fish},
        report={"data.valid_limit": 64, "regime.epochs": 2, "regime.warmup": 0.5},
        seeds=(0,),
        known={fish: 0.1},
    )
    experiment, path = replace(table3.EXPERIMENT, profiles={"tiny": [tiny]}), tmp_path / "records.jsonl"
    assert run_experiment(experiment, {"PROFILE": "tiny"}, path, str(tmp_path / "outputs"), path.parent) == 0
    assert [(run["status"], run["bytes"]["merges"]) for run in record.read(path)] == [("finished", 2)] * 3
    text = (tmp_path / "README.md").read_text()
    assert "missing" not in text
    fewer, dense = figures(text, "## Profile tiny")[2], figures(text, "## Profile tiny", 1)[2]
    assert float(fewer[8]) < float(dense[4])
    assert dense[5] == "100.0%"
    assert (tmp_path / "tiny.png").stat().st_size > 10_000


def test_the_committed_report_is_that_of_the_committed_records(tmp_path: Path) -> None:
    if (HOME / "table3" / "records.jsonl").exists():
        for file in (HOME / "table3").glob("records*.jsonl"):
            shutil.copy(file, tmp_path)
        assert written(tmp_path / "records.jsonl") == (HOME / "table3" / "README.md").read_text(encoding="utf-8")
    else:
        assert not (HOME / "table3" / "README.md").exists()
