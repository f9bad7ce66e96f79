"""Grids of learning rates that grow until the best rate is inside, decided from the records alone."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import pytest

from experiments.lib.learning_rates import rates_tried
from experiments.lib.plan import plan
from experiments.lib.records import recorded_runs
from experiments.lib.results import means, result_of, section_of
from experiments.units.profiles import PROFILES, Cell
from fishexp.run.tuning import MOST_GROWN, best_rate
from tests.support.tables import chosen, write_records

RATES = (0.002, 0.008, 0.032)
CELL = Cell("row")
GROWING = replace(PROFILES["cpu"][0], rates={"fish": RATES}, sources={CELL: CELL}, grow=4)


def carry_out(scores: Mapping[float, float | None], folder: Path, study=GROWING) -> list[tuple[float, ...]]:
    """Run what the plan says until nothing is left of the rates: lr -> accuracy; others fail. Returns the commands."""
    lines, commands = [], []
    while True:
        path = write_records(folder, lines)
        found = [command for command in plan([study], path) if command.step.endswith("rates")]
        new = [command for command in found if command not in commands]
        if not new:
            return [rates_of(command.overrides) for command in commands]
        commands.append(new[0])
        for lr in rates_of(new[0].overrides):
            score = scores.get(lr)
            lines += chosen(study, CELL, {lr: score}, status="failed" if score is None else "finished")


def rates_of(overrides: tuple[str, ...]) -> tuple[float, ...]:
    text = next(text for text in overrides if text.startswith("regime.lr="))
    return tuple(float(value) for value in text.partition("=")[2].split(","))


@pytest.mark.parametrize(
    ("scores", "beyond", "taken"),
    [
        ({0.002: 0.5, 0.008: 0.6, 0.032: 0.5}, [], 0.008),
        ({0.002: 0.5, 0.008: 0.6, 0.032: 0.7, 0.128: 0.8, 0.512: 0.7}, [0.128, 0.512], 0.128),
        ({0.002: 0.5, 0.008: 0.4, 0.032: 0.3, 0.0005: 0.4}, [0.0005], 0.002),
        ({0.002: 0.5, 0.008: 0.6, 0.032: 0.7}, [0.128], 0.032),  # the rate beyond diverges
        ({0.008: 0.6, 0.032: 0.5}, [], 0.008),  # the smallest fails
        ({0.008: 0.5, 0.032: 0.6, 0.128: 0.5}, [0.128], 0.032),
        ({0.002: 0.5, 0.008: 0.6, 0.032: 0.6, 0.128: 0.1}, [0.128], 0.008),  # of equals any may be at the edge
        ({0.002: 0.5, 0.008: 0.5, 0.032: 0.5, 0.128: 0.6, 0.0005: 0.5, 0.512: 0.4}, [0.128, 0.0005, 0.512], 0.128),
        ({}, [], None),
        ({0.002 * 4**step: 0.1 * step for step in range(9)}, [0.128, 0.512, 2.048], 2.048),
        ({0.032 / 4**step: 0.1 * step for step in range(9)}, [0.0005, 0.000125, 0.00003125], 0.00003125),
    ],
)
def test_the_grid_grows_until_the_best_is_inside(
    scores: Mapping[float, float | None], beyond: list[float], taken: float | None, tmp_path: Path
) -> None:
    scores = {float(f"{lr:.12g}"): score for lr, score in scores.items()}
    assert carry_out(scores, tmp_path) == [RATES, *((lr,) for lr in beyond)]
    found = result_of(GROWING, CELL, recorded_runs(tmp_path / "records.jsonl"))
    assert (found.lr, found.beyond) == (taken, beyond)
    assert found.lr == best_rate(means(found.tried))
    assert len(beyond) <= 2 * MOST_GROWN


def test_a_grid_that_does_not_grow_is_what_it_was(tmp_path: Path) -> None:
    fixed = replace(GROWING, grow=None)
    assert carry_out({0.002: 0.5, 0.008: 0.6, 0.032: 0.7}, tmp_path, fixed) == [RATES]
    assert result_of(fixed, CELL, recorded_runs(tmp_path / "records.jsonl")).lr == 0.032


def test_the_table_waits_while_the_grid_grows(tmp_path: Path) -> None:
    lines = chosen(GROWING, CELL, {0.002: 0.5, 0.008: 0.6, 0.032: 0.7})
    for more, waits in (([], {True}), (chosen(GROWING, CELL, {0.128: 0.6}), {False})):
        lines += more
        path = write_records(tmp_path, lines)
        assert {command.waits for command in plan([GROWING], path) if command.step.endswith("table")} == waits


def test_rates_have_no_digits_of_binary_fractions(tmp_path: Path) -> None:
    study = replace(GROWING, rates={"fish": (0.0001, 0.0003)})
    assert carry_out({0.0001: 0.5, 0.0003: 0.6, 0.0012: 0.5}, tmp_path, study) == [(0.0001, 0.0003), (0.0012,)]


def test_the_report_has_the_rates_beyond_and_says_where_the_limit_was_reached(tmp_path: Path) -> None:
    carry_out({float(f"{0.002 * 4**step:.12g}"): 0.1 * step for step in range(9)}, tmp_path)
    section = section_of(GROWING, "cpu", recorded_runs(tmp_path / "records.jsonl"))
    parts = rates_tried(section, score="Accuracy", columns=lambda cell: {"unit": cell.unit},
                        name=lambda cell: cell.unit, shared="")  # fmt: skip
    assert parts[1].endswith(
        "At the edge of those tried (a grid grows at most 3 times at each end), so that a better one may lie beyond: "
        "row (largest)."
    )
    assert [cell.strip() for cell in parts[2].splitlines()[0].strip("|").split("|")] == [
        "unit", "0.002", "0.008", "0.032", "0.128", "0.512", "2.048",
    ]  # fmt: skip
    assert "**50.0**" in parts[2]
