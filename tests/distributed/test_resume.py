"""Runs of several workers that are cut short, and continued, end as those that were not."""

from pathlib import Path

import pytest

from fishexp.delta import Delta
from fishexp.distributed.local_sgd import LocalSGDState
from fishexp.training.collectives import InProcessCollectives
from fishexp.training.snapshots import Snapshot, Snapshots
from tests.support.cli import fishexp
from tests.support.resuming import SMALL, Cut, assert_alike, cut_after, run_folder

TWO = (
    "regime=distributed",
    "regime.backend=simulated",
    "regime.sync_every=3",
    "regime.refresh_every=2",
    "regime.snapshot_steps=1",
    "regime.epochs=3",
)


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize(
    "options",
    [
        pytest.param((), id="random", marks=pytest.mark.slow),
        pytest.param(("method=fish", "method.samples=8", "regime.masks=disjoint", "regime.wire=bf16"), id="disjoint"),
        pytest.param(
            ("method.unit=row", "regime.masks=disjoint", "regime.merge=sum"),
            id="disjoint-rows",
            marks=pytest.mark.slow,
        ),
        pytest.param(("regime.warmup_epochs=1", "regime.merge=sum"), id="warm-up", marks=pytest.mark.slow),
        pytest.param(
            ("method=full", "regime.optimiser=adamw", "regime.lr=0.01", "regime.shard=false"),
            id="full",
            marks=pytest.mark.slow,
        ),
        pytest.param(
            ("method=fish", "method.samples=8", "decay=all", "compat=fish"), id="all-compat", marks=pytest.mark.slow
        ),
        pytest.param(("compat=fish", "regime.warmup_epochs=1", "regime.workers=3"), id="stale", marks=pytest.mark.slow),
        pytest.param(("regime.workers=1",), id="alone", marks=pytest.mark.slow),
        pytest.param(("snapshot_keep=1", "regime.sync_every=1"), id="one-snapshot", marks=pytest.mark.slow),
    ],
)
def test_a_run_cut_anywhere_ends_as_one_that_was_not(options: tuple[str, ...], monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where only some of the workers have written the last snapshot."""
    assert fishexp(*SMALL, *TWO, *options, "outputs=whole").status == 0
    for saves in (7, 2, 5, 4):
        with monkeypatch.context() as patch:
            cut_after(saves, patch)
            with pytest.raises(Cut):
                fishexp(*SMALL, *TWO, *options, "outputs=cut", "resume=true")
    assert fishexp(*SMALL, *TWO, *options, "outputs=cut", "resume=true").status == 0
    assert_alike("whole", "cut")


def test_a_snapshot_has_the_state_of_local_sgd_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """After seven steps of both workers, with merges after the third and the sixth."""
    with monkeypatch.context() as patch:
        cut_after(14, patch)
        with pytest.raises(Cut):
            fishexp(*SMALL, *TWO, "outputs=cut", "resume=true")
    found = Snapshots(run_folder("cut") / "snapshots", 1, collectives=InProcessCollectives(2)).load()
    assert [snapshot.about["steps"] for snapshot in found] == [7, 7]
    first, second = (LocalSGDState(**snapshot.about["local_sgd"]) for snapshot in found)
    assert first == second
    assert (first.merges, first.masked_merges, first.last_merge, first.settled) == (2, 2, 6, 6)
    assert (first.merges_dense, first.shared_metrics) == (False, None)
    assert 2 * (first.sparse_merge_bytes or 0) < first.bytes_sent  # and a check as the first epoch ended


def test_snapshots_of_another_version_are_refused_in_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr("fishexp.distributed.local_sgd.asdict", lambda state: {"merges": 2, "moons": 1})
        cut_after(4, patch)
        with pytest.raises(Cut):
            fishexp(*SMALL, *TWO, "resume=true")
    message = "the snapshots are of another version of fishexp; resume=false begins anew"
    assert message in fishexp(*SMALL, *TWO, "resume=true").mistake()


def test_snapshots_that_only_some_workers_have_are_forgotten(tmp_path: Path) -> None:
    """Or those of two attempts would count as one."""
    collectives = InProcessCollectives(2)
    state = Snapshot(Delta({}, {}), {}, {"steps": 0})
    both = Snapshots(tmp_path, 1, collectives=collectives)
    for rank, steps in (0, (4, 8, 12)), (1, (4, 8)):
        for step in steps:
            both.workers[rank].save(step, state, settled=4)
    (tmp_path / "worker0" / "000000008" / "state.safetensors").write_bytes(b"damaged")
    again = Snapshots(tmp_path, 1, collectives=collectives)
    assert len(again.load()) == 2
    assert sorted(str(file.relative_to(tmp_path)) for file in tmp_path.glob("*/0*")) == [
        "worker0/000000004",
        "worker1/000000004",
    ]
    again.clear()
    assert not tmp_path.exists()


def test_a_snapshot_stays_until_all_workers_have_a_younger_one(tmp_path: Path) -> None:
    store = Snapshots(tmp_path, 1, keep=1)
    state = Snapshot(Delta({}, {}), {}, {})
    for step, settled, left in (10, 0, [10]), (20, 10, [10, 20]), (30, 30, [20, 30]), (40, 30, [20, 30, 40]):
        store.save(step, state, settled)
        assert [int(folder.name) for folder in store._folders()] == left
