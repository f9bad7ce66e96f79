"""How long runs take: by records, corrected by steps timed here; what of a sweep fits into some hours."""

import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest

from experiments.lib import costs, durations
from experiments.lib.durations import Durations
from experiments.lib.plan import Command
from experiments.lib.settings import composed_runs
from fishexp.run.identity import run_id

DIGITS = ("data=digits", "data.train_limit=640", "regime.epochs=5", "regime.batch_size=32", "threads=1", "device=cpu")
SEEDS = ("method=random", "keep=0.1", "seed=0,1")


def command(*overrides: str, step: str = "table", waits: bool = False) -> Command:
    return Command(step, (*DIGITS, *overrides), waits)


def records(*took: tuple[str, Mapping[str, float]], further: Sequence[str] = ()) -> dict[str, dict[str, Any]]:
    """Finished runs: of a method, with the seconds of its parts."""
    runs = [composed_runs((*DIGITS, *further, f"method={method}"))[0] for method, _ in took]
    return {str(number): {"config": run, "seconds": took[number][1]} for number, run in enumerate(runs)}


@pytest.fixture
def timed(monkeypatch: pytest.MonkeyPatch) -> Callable[[Mapping[str, float] | None], list[Sequence[str]]]:
    """Let a short run take these seconds; returns the overrides that it is asked for with."""

    def stand_in(seconds: Mapping[str, float] | None) -> list[Sequence[str]]:
        asked: list[Sequence[str]] = []

        def carried_out(overrides: Sequence[str], python: str) -> Mapping[str, float] | None:
            asked.append(overrides)
            return seconds

        monkeypatch.setattr(durations, "_carried_out", carried_out)
        return asked

    return stand_in


def seconds(found: Durations, *overrides: str) -> float | None:
    return found.seconds(composed_runs((*DIGITS, *overrides))[0])


def test_a_run_takes_as_long_as_those_of_its_method_else_as_all_that_are_alike() -> None:
    took = [("full", {"train": 30.0, "data": 10.0}), ("full", {"train": 50.0}), ("full", {"train": 70.0})]
    found = Durations(records(*took, ("random", {"train": 5.0, "evaluate": 2.0})))
    assert seconds(found, "method=full", "seed=3", "regime.lr=0.3") == 50
    assert seconds(found, "method=random", "keep=0.5") == 7
    assert seconds(found, "method=fish") == 45  # of 7, 40, 50, 70
    for other in ("regime.epochs=6", "data.train_limit=100", "precision=bf16", "threads=2", "model=resnet9"):
        assert seconds(found, "method=full", other) is None


def test_steps_timed_here_correct_what_is_on_record(timed) -> None:
    """100 steps took 40 s there: 0.4 s each. 16 of them take 3.2 s here: half as long."""
    asked = timed({"train": 3.2, "evaluate": 1.0, "data": 9.0})
    found = Durations(records(("full", {"train": 40.0, "data": 10.0}), ("random", {"train": 24.0})))
    kinds = [command("method=fish", "keep=0.1", "method.unit=row"), command(*SEEDS)]
    (line,) = found.time(kinds, "python")
    assert line == "resnet8 on digits, transfer: 0.2 s a step, 0.50 times what runs on record took"
    assert seconds(found, "method=full") == pytest.approx(25)
    assert seconds(found, "method=random") == pytest.approx(12)
    (short,) = composed_runs(tuple(asked[0]))
    assert (short["method"]["name"], short["regime"]["epochs"], short["data"]["train_limit"]) == ("full", 1, 16 * 32)
    assert (short["regime"]["batch_size"], short["threads"]) == (32, 1)


def test_what_is_not_on_record_takes_its_steps_and_an_evaluation_every_epoch(timed) -> None:
    timed({"train": 3.2, "evaluate": 1.5})
    found = Durations(records(("full", {"train": 40.0}), further=["regime.epochs=6"]))
    (line,) = found.time([command(*SEEDS)], "python")
    assert line == "resnet8 on digits, transfer: 0.2 s a step, no run on record; counted as dense training"
    assert seconds(found, "method=random") == pytest.approx(100 * 0.2 + 5 * 1.5)


def test_a_short_run_that_fails_tells_nothing(timed) -> None:
    timed(None)
    found = Durations(records(("random", {"train": 24.0})))
    assert list(found.time([command(*SEEDS)], "python")) == [
        "resnet8 on digits, transfer: its steps could not be timed"
    ]
    assert seconds(found, "method=random") == 24


def test_a_short_run_is_one_of_fishexp_and_leaves_nothing(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(durations.tempfile, "tempdir", str(tmp_path))
    regime = ("regime=distributed", "regime.backend=simulated", "regime.warmup_epochs=1", "regime.workers=2")
    found = Durations({})
    asked = command("method=fish", "keep=0.1", "method.unit=row", *regime)
    (line,) = found.time([asked], sys.executable)
    assert line.startswith("resnet8 on digits, distributed: 0.")
    assert line.endswith(" s a step, no run on record; counted as dense training")
    taken = found.seconds(composed_runs(asked.overrides)[0])
    assert taken is not None
    assert taken > 0
    assert not list(tmp_path.iterdir())


def test_what_fits_is_counted_run_by_run_and_what_is_whole_command_by_command() -> None:
    """Runs of 40 s, one of them done: two seeds of one command, and one that waits for the second rate."""
    found = Durations(records(("random", {"train": 40.0})))
    plan = [
        command(*SEEDS[:2], "seed=0", "regime.lr=0.1,0.2", step="rates"),
        command(*SEEDS),
        command(*SEEDS[:2], "seed=2", waits=True),
    ]
    done = {run_id(composed_runs(plan[0].overrides)[0])}
    said = costs.fitting(170 / 3600, plan, done, found)
    assert said.endswith("is enough for about 4 of 4 runs to do; whole then: rates (seed 0); table (seeds 0, 1, 2)")
    said = costs.fitting(150 / 3600, plan, done, found)
    assert said.endswith("is enough for about 3 of 4 runs to do; whole then: rates (seed 0); table (seeds 0, 1)")
    said = costs.fitting(90 / 3600, plan, done, found)
    assert said.endswith("is enough for about 2 of 4 runs to do; whole then: rates (seed 0)")
    assert costs.fitting(9, plan, done, Durations({})).endswith("about 0 of 4 runs to do; whole then: nothing")


def test_a_seed_is_whole_if_all_its_commands_are() -> None:
    first, second = command("seed=0", "keep=0.1"), command("seed=0,1", "keep=0.2")
    assert costs.whole([first, second], [first]) == "nothing"
    assert costs.whole([first, second], [second]) == "table (seed 1)"
    assert costs.whole([first, second], [first, second]) == "table (seeds 0, 1)"


def test_hours_are_written_or_not_measured() -> None:
    assert costs.hours([None, 1]) == "not measured"
    assert costs.hours([1800, 3600]) == "1.5"
