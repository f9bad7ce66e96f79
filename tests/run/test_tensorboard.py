"""TensorBoard: what its own reader finds in the files that runs leave behind."""

import json
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import QUICK, fishexp
from tests.support.resuming import SMALL, Cut, cut_after, run_folder

EVERY_STEP = ("snapshot_minutes=0", "resume=true")


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def points(folder: Path) -> dict[str, list[tuple[int, float]]]:
    """Read all that is shown of a run: name -> (step, value) of each point."""
    event_accumulator = pytest.importorskip(
        "tensorboard.backend.event_processing.event_accumulator", reason="needs the extra `tensorboard`"
    )
    reader = event_accumulator.EventAccumulator(str(folder / "tensorboard"))
    reader.Reload()
    return {tag: [(event.step, event.value) for event in reader.Scalars(tag)] for tag in reader.Tags()["scalars"]}


def logged(folder: Path) -> dict[str, Any]:
    """Read metrics.jsonl likewise."""
    lines = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    names = dict.fromkeys(name for line in lines for name in line if name != "epoch")
    return {
        name: [(line["epoch"], pytest.approx(line[name])) for line in lines if line.get(name) is not None]
        for name in names
    }


def test_a_resumed_run_has_the_points_of_metrics_jsonl_and_none_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    """It is cut in the third epoch, and resumes in the second, which is shown already."""
    options = (*SMALL, "regime.epochs=3", "tensorboard=true", "outputs=cut", "snapshot_keep=9")
    with monkeypatch.context() as patch:
        cut_after(22, patch)  # in the third epoch of 10 steps
        with pytest.raises(Cut):
            fishexp(*options, *EVERY_STEP)
    folder = run_folder("cut")
    assert [step for step, _ in points(folder)["accuracy"]] == [1, 2]
    for snapshot in folder.glob("snapshots/00000002*"):
        shutil.rmtree(snapshot)
    assert fishexp(*options, *EVERY_STEP).status == 0
    assert points(folder) == logged(folder)
    assert len(list(folder.glob("tensorboard/*"))) == 2


def test_a_run_that_begins_anew_shows_nothing_of_the_one_before(tmp_path: Path) -> None:
    for _ in range(2):
        assert fishexp(*QUICK, "tensorboard=true").status == 0
    folder = run_folder("outputs")
    assert points(folder) == logged(folder)
    assert len(list(folder.glob("tensorboard/*"))) == 1


def test_without_tensorboard_a_line_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("torch.utils.tensorboard")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "tensorboard", None)
    line = "tensorboard=true: tensorboard is not installed; pip install 'fishexp[tensorboard]'"
    assert fishexp(*QUICK, "tensorboard=true").mistake() == line
