"""Workers that we start on this machine leave one run behind, and whoever was lost is named."""

import json
from pathlib import Path

import pytest

from fishexp.run.launch.local import EXIT_WORKER_LOST, describe_loss
from tests.support import launched
from tests.support.launched import ended, lay_out, listening, records, run_folder, started, wait_for

LOOPBACK = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}


def test_two_workers_leave_one_run_behind(tmp_path: Path) -> None:
    lay_out(tmp_path)
    with started(tmp_path, "model.pause=0.1", "wandb=offline", "threads=null") as process:
        assert wait_for(lambda: launched.has_snapshot(tmp_path))
        workers = launched.workers(process.pid)
        assert set(workers) == {0, 1}
        assert listening([process.pid]) == set()
        for pid in workers.values():
            assert listening([pid]) <= LOOPBACK
        assert any(listening([pid]) for pid in workers.values())  # or the look was in vain
        status, out, err = ended(process)
    assert (status, err) == (0, "")
    (record,) = records(tmp_path)
    folder = run_folder(tmp_path)
    assert json.loads((folder / "record.json").read_text()) == record
    assert (record["status"], record["error"], record["config"]["regime"]["workers"]) == ("finished", None, 2)
    cores = max(1, len(launched.os.sched_getaffinity(0)) // 2)
    assert record["threads"] == cores
    assert record["bytes"]["sent"] > 0
    lines = out.splitlines()
    assert lines[0].startswith(f"tiny/tiny/random-0.2/seed0-{record['run_id']}, 2 workers on ")
    assert lines[0].endswith(f", {cores} thread{'s' * (cores > 1)} each, fp32")
    assert [line.partition(":")[0] for line in lines if line.startswith("epoch")] == ["epoch 1", "epoch 2", "epoch 3"]
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    assert [line["epoch"] for line in metrics] == [1, 2, 3]
    assert metrics[-1]["accuracy"] == record["metrics"]["accuracy"]
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1
    of_0, of_1 = (folder / "log.txt").read_text(), (folder / "workers" / "1.txt").read_text()
    assert "has something to say to worker 0" in of_0  # and not on the screen
    assert "has something to say to worker 1" in of_1
    own = [next(line for line in text.splitlines() if "epoch 3: train_loss" in line) for text in (of_0, of_1)]
    assert own[0].partition("train_loss")[2] != own[1].partition("train_loss")[2]  # each has its own part of the data
    assert {file.name for file in folder.iterdir()} == {
        *("config.yaml", "record.json", "predictions.json", "metrics.jsonl", "log.txt", "workers", "wandb", ".lock"),
        *("preprocessing.json", "model.safetensors"),
    }


@pytest.mark.parametrize(
    ("codes", "then", "line"),
    [
        ([EXIT_WORKER_LOST, -9], [EXIT_WORKER_LOST, -9], "worker 1 was lost (signal 9)"),
        ([None, -9], [-15, -9], "worker 1 was lost (signal 9)"),
        ([None, EXIT_WORKER_LOST, 3], [-15, EXIT_WORKER_LOST, 3], "worker 2 was lost (exit status 3)"),
        ([EXIT_WORKER_LOST, None, None], [EXIT_WORKER_LOST, None, EXIT_WORKER_LOST], "worker 1 was silent for 7 s"),
        ([EXIT_WORKER_LOST, None, None], [EXIT_WORKER_LOST, None, None], "worker 1 and 2 was silent for 7 s"),
        ([EXIT_WORKER_LOST, None], [EXIT_WORKER_LOST, EXIT_WORKER_LOST], "the workers lost each other"),
    ],
)
def test_who_was_lost(codes: list[int | None], then: list[int | None], line: str) -> None:
    assert describe_loss(codes, then, 7.0) == line
