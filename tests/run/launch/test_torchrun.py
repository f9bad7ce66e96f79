"""Workers that torchrun starts: they agree before they train, and find each other whatever earlier workers left."""

import threading
import time
from pathlib import Path

import pytest
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from fishexp.run.launch import torchrun
from tests.support import launched
from tests.support.cli import QUICK, fishexp
from tests.support.launched import ended, lay_out, records, started


@pytest.mark.slow
def test_two_machines_of_torchrun_run_a_sweep_until_they_differ(tmp_path: Path) -> None:
    """Two runs: the first is the same on both machines, the second is not."""
    lay_out(tmp_path)
    port = launched.free_port()
    commands = [(*launched.torchrun(node, port), "-m") for node in (0, 1)]
    with (
        started(tmp_path, "regime.lr=0.05,0.1", command=commands[0]) as first,
        started(tmp_path, "regime.lr=0.05,0.2", command=commands[1]) as second,
    ):
        (_, out, err), (_, quiet, other_err) = ended(first), ended(second)
    finished, failed = records(tmp_path)
    assert (finished["status"], finished["config"]["regime"]["lr"]) == ("finished", 0.05)
    assert failed["status"] == "failed"
    difference = "worker 1 has regime.lr=0.2, worker 0 has 0.1; all need the same code and command"
    assert failed["error"] == difference
    assert [line for line in err.splitlines() if line.startswith("fishexp:")] == [
        f"fishexp: tiny/tiny/random-0.2/seed0-{failed['run_id']}: {difference}",
        "fishexp: 1 of 2 runs failed",
    ]
    assert out.count("epoch 3:") == 1
    assert quiet == ""
    assert "fishexp:" not in other_err
    assert "FAILED" in err  # torchrun's own words for a status that is not 0
    done = next((tmp_path / "outputs").glob(f"tiny/*/*/seed0-{finished['run_id']}"))
    assert "67 of 338 weights may move" in (done / "workers" / "1.txt").read_text()


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        (("regime=distributed", "regime.workers=3"), "regime.workers=3: torchrun started 2; leave regime.workers away"),
        (("regime=distributed", "regime.backend=simulated"), "torchrun started 2 workers, and this run has one"),
        (("regime=checkpointing",), "torchrun started 2 workers, and this run has one process; take regime=transfer"),
        (("-m", "seed=0,1", "hydra/launcher=joblib"), "hydra/launcher= starts processes of its own"),
    ],
)
def test_what_torchrun_cannot_start(
    arguments: tuple[str, ...], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    monkeypatch.setenv("MASTER_PORT", "1")
    assert fishexp(*arguments[:1], *QUICK, *arguments[1:]).mistake().startswith(line)


def test_torchrun_says_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert "workers: 5\n" in fishexp("regime=distributed", "--cfg=job", "--resolve").out


def test_workers_meet_whatever_those_before_them_left(tmp_path: Path) -> None:
    """Three times in one store; the second time one of them had died before anybody answered it."""
    path = str(tmp_path / "store")
    FileStore(path).set("hello1", "of a worker that is gone")
    for expected in (1, 2, 3):
        found: dict[int, int] = {}

        def follow(rank: int, found: dict[int, int] = found) -> None:
            limit = torchrun.timedelta(seconds=20)
            found[rank] = torchrun._await_number(FileStore(path), rank, limit)

        threads = [threading.Thread(target=follow, args=(rank,)) for rank in (1, 2)]
        threads[0].start()
        leader = threading.Thread(target=lambda: found.update({0: torchrun._number_start(FileStore(path), 3, 20)}))  # noqa: B023
        leader.start()
        time.sleep(0.3)  # it answers the word that is there before the worker comes
        threads[1].start()
        for thread in (*threads, leader):
            thread.join(30)
        assert found == {0: expected, 1: expected, 2: expected}
        FileStore(path).set("hello2", f"of another that is gone {expected}")


def test_waiting_for_workers_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="0 came beside worker 0"):
        torchrun._number_start(FileStore(str(tmp_path / "store")), 2, 0.3)
