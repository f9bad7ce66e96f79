"""Runs that differ in nothing but the seed are pooled; of each run the latest finished record counts."""

import numpy as np
import pytest

from fishexp.errors import FishexpError
from fishexp.report.pool import details, differing, pool
from fishexp.report.reproduce import command_of
from tests.support.records import above, column, record


def test_std_is_the_sample_standard_deviation_and_seconds_the_median():
    group = pool([record(score, seed=seed) for seed, score in enumerate([0.70, 0.74, 0.81, 0.9])]).reported[0]
    assert group.mean == pytest.approx(100 * np.mean([0.70, 0.74, 0.81, 0.9]))
    assert group.std == pytest.approx(100 * np.std([0.70, 0.74, 0.81, 0.9], ddof=1))
    assert group.seconds == 4.5


@pytest.mark.parametrize(
    "other",
    [
        {"regime__epochs": 11},
        {"data__train_limit": 100},
        {"keep": 0.006},
        {"precision": "bf16"},
        {"metric": "f1"},
        {"new": 1},
        {"streams": None},  # of before there were versions
        {"streams": 1},
    ],
)
def test_runs_that_differ_in_more_than_the_seed_do_not_pool(other):
    assert [len(group.runs) for group in pool([record(), record(seed=1), record(seed=2, **other)]).reported] in (
        [1, 2],
        [2, 1],
    )


def test_runs_on_other_examples_do_not_pool_whatever_their_settings():
    runs = [record(seed=seed) | {"inputs": {"examples": digest}} for seed, digest in enumerate("aab")]
    assert [len(group.runs) for group in pool(runs).reported] == [2, 1]
    assert column(runs, "data.examples") == ["a", "b"]
    assert "; examples a" not in above(runs[:2])
    limited = record(data__train_limit=9) | {"inputs": {"examples": "c"}}  # of which the limit tells enough
    assert differing(pool([*runs[:2], limited]).reported) == ["data.train_limit"]


def test_records_without_a_version_of_the_random_streams_are_of_version_1():
    (group,) = pool([record(streams=None), record(seed=1, streams=1), record(seed=2, streams=None)]).reported
    assert (group.settings["streams"], len(group.runs)) == (1, 3)


def test_runs_that_several_processes_trained_do_not_pool_with_others():
    runs = [record(), record(seed=1) | {"processes": 1}, record(seed=2) | {"processes": 2}]
    assert sorted(len(group.runs) for group in pool(runs).reported) == [1, 2]
    assert sorted(column(runs, "processes")) == ["", "2"]
    assert command_of(pool(runs[2:]).reported[0]).text.startswith("torchrun --nproc-per-node=2 -m fishexp data=")


def test_the_latest_record_of_a_run_counts():
    again = pool([record(status="failed"), record(0.5), record(0.6, seed=1), record(0.7)])
    assert [group.values for group in again.reported] == [pytest.approx([70, 60])]
    assert not again.unfinished
    failed_later = pool([record(0.5), record(0.6, seed=1), record(status="failed")])
    assert failed_later.reported[0].values == pytest.approx([50, 60])  # the result is not taken away
    assert not failed_later.unfinished


def test_of_two_runs_with_equal_settings_the_later_counts():
    first, second = record(0.5, run_id="a"), record(0.6, run_id="b")
    assert pool([first, second]).reported[0].values == [60]
    assert pool([second, first]).reported[0].values == [50]
    assert pool([first, second, first]).reported[0].values == [50]


def test_uncommitted_code_is_refused():
    dirty = [record(seed=seed, run_id=f"run{seed}", commit="abc+") for seed in (0, 1)]
    with pytest.raises(
        FishexpError, match=r"^runs run0, run1 are of uncommitted code; commit .* or pass --uncommitted$"
    ):
        pool([*dirty, record(seed=2)])
    with pytest.raises(FishexpError, match=r"^run run0 is of"):
        pool(dirty[:1])


def test_uncommitted_code_is_no_matter_once_it_ran_again_or_did_not_finish():
    dirty = record(run_id="a", commit="abc+")
    for records in (
        [dirty, record(0.7, run_id="a")],
        [record(0.7), record(seed=1, commit="abc+", status="failed")],
        [record(0.7, commit=None)],
    ):
        assert pool(records).reported[0].score == "70.0"


def test_the_share_of_the_weights_is_the_mean_over_the_seeds() -> None:
    (group,) = pool([record(seed=seed, kept=kept) for seed, kept in enumerate((100, 100, 400))]).reported
    assert group.kept == [100, 400]
    assert group.share == pytest.approx(200 / 307466)


def test_settings_that_end_alike_are_told_with_their_groups() -> None:
    runs = [record(data__path="x", model__path="a", regime__steps=1), record(data__path="y", model__path="b")]
    (first, second) = pool(runs).reported
    keys = differing([first, second])
    assert details(first, ["data.path", "model.path", "regime.steps"]) == [
        ("data.path", "x"), ("model.path", "a"), ("steps", "1"),
    ]  # fmt: skip
    assert details(second, keys) == [("model.path", "b"), ("data.path", "y")]
    assert details(second, ["data.path"]) == [("path", "y")]
