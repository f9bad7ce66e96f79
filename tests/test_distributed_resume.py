"""Runs of several workers that are cut short, and continued, end as those that were not."""

from pathlib import Path

import pytest

from tests.cli import fishexp
from tests.test_resume import SMALL, Cut, assert_alike, cut_after

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
        pytest.param((), id="random"),
        pytest.param(("method=fish", "method.samples=8", "regime.masks=disjoint", "regime.wire=bf16"), id="disjoint"),
        pytest.param(("regime.warmup_epochs=1", "regime.merge=sum"), id="warm-up"),
        pytest.param(("method=full", "regime.optimiser=adamw", "regime.lr=0.01", "regime.shard=false"), id="full"),
        pytest.param(("method=fish", "method.samples=8", "decay=all", "compat=fish"), id="all-compat"),
        pytest.param(("compat=fish", "regime.warmup_epochs=1", "regime.workers=3"), id="stale"),
        pytest.param(("regime.workers=1",), id="alone"),
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
