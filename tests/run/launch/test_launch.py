"""Runs of several processes: started by us or by torchrun, they leave one run behind, and agree before they train."""

import json
import pickle
import threading
import time
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from fishexp.errors import BusyError, FishexpError, RunFailed, WorkerLost
from fishexp.run.launch import failures, torchrun
from fishexp.run.launch.context import RECORDED, Context
from fishexp.run.launch.local import LOST, _who
from fishexp.run.record import commit
from fishexp.system import hardware
from tests.support import launched
from tests.support.checks import refusal
from tests.support.cli import QUICK, fishexp
from tests.support.launched import ended, lay_out, listening, records, run_folder, started, wait_for
from tests.support.workers import Workers

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
    assert lines[0].endswith(f", {cores} threads each, fp32")
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
        *("config.yaml", "record.json", "metrics.jsonl", "log.txt", "workers", "wandb", ".lock"),
        *("preprocessing.json", "model.safetensors"),
    }


def test_two_machines_of_torchrun_run_a_sweep_until_they_differ(tmp_path: Path) -> None:
    """Two runs: the first is the same on both machines, the second is not."""
    lay_out(tmp_path)
    port = launched.free_port()
    told = [(*launched.torchrun(node, port), "-m") for node in (0, 1)]
    with (
        started(tmp_path, "regime.lr=0.05,0.1", command=told[0]) as first,
        started(tmp_path, "regime.lr=0.05,0.2", command=told[1]) as second,
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
        ((), "torchrun started 2 workers, and this run has one process; take regime=distributed"),
        (("-m", "seed=0,1", "hydra/launcher=joblib"), "hydra/launcher= starts processes of its own"),
    ],
)
def test_what_torchrun_cannot_start(
    arguments: tuple[str, ...], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    for name, value in {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "2"}.items():
        monkeypatch.setenv(name, value)
    assert fishexp(*arguments[:1], *QUICK, *arguments[1:]).mistake().startswith(line)


def test_torchrun_says_how_many_there_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "5")
    assert "workers: 5\n" in fishexp("regime=distributed", "--cfg=job", "--resolve").out


def said(facts: dict[str, Any], error: BaseException | None = None) -> str:
    return json.dumps({"error": error and failures.note_of(error), "facts": facts})


OURS = {"commit": "abc", "torch": "2.15", "resume": False, "regime": {"lr": 0.2, "workers": 2}, "seed": 0}


@pytest.mark.parametrize(
    ("theirs", "line"),
    [
        ({**OURS}, None),
        ({**OURS, "commit": "abd"}, "worker 1 has commit=abd, worker 0 has abc; all need the same code and command"),
        ({**OURS, "commit": None}, "worker 1 has commit=None, worker 0 has abc"),
        ({**OURS, "torch": "2.11"}, "worker 1 has torch=2.11, worker 0 has 2.15"),
        ({**OURS, "resume": True}, "worker 1 has resume=True, worker 0 has False"),
        ({**OURS, "regime": {"lr": 0.1, "workers": 2}}, "worker 1 has regime.lr=0.1, worker 0 has 0.2"),
        ({**OURS, "regime": {"lr": 0.2}}, "worker 1 has regime.workers=None, worker 0 has 2"),
        ({**OURS, "more": 1}, "worker 1 has more=1, worker 0 has None"),
    ],
)
def test_the_first_fact_that_is_not_the_same_everywhere(theirs: dict[str, Any], line: str | None) -> None:
    note = failures.verdict([said(OURS), said(theirs), said(OURS)])
    if line is None:
        assert note is None
    else:
        assert note is not None
        error = failures.error_of(note)
        assert isinstance(error, FishexpError)
        assert str(error).startswith(line)


def test_an_error_counts_before_facts_and_says_whose_it_is() -> None:
    verdict = failures.verdict([said({}), said(OURS, RunFailed("broken")), said({}, FishexpError("wrong"))])
    assert verdict is not None
    error = failures.error_of(verdict)
    assert (type(error), str(error)) == (RunFailed, "worker 1: broken")
    verdict = failures.verdict([said({}, BusyError("busy")), said({})])
    assert verdict is not None
    error = failures.error_of(verdict)
    assert (type(error), str(error)) == (BusyError, "busy")


@pytest.mark.parametrize("strange", ["", "[]", "{}", '{"error": {"kind": 1}, "facts": {}}', '{"error": null}', "null"])
def test_what_makes_no_sense_is_an_answer_too(strange: str) -> None:
    verdict = failures.verdict([said(OURS), strange])
    assert verdict is not None
    assert "different versions of fishexp" in verdict["text"]


def test_a_note_gives_one_line_of_a_known_kind() -> None:
    note = failures.note_of(ZeroDivisionError("over\nnought"), rank=2)
    error = failures.error_of(note)
    assert (type(error), str(error)) == (
        RunFailed,
        "worker 2: ZeroDivisionError: over; debug=true shows where",
    )
    assert "over\nnought" in error.__notes__[0]  # the traceback
    assert isinstance(failures.error_of(failures.note_of(KeyboardInterrupt())), KeyboardInterrupt)
    strange = failures.error_of({"kind": "SystemExit", "text": "a\nb" * 9999, "trace": ""})
    assert type(strange) is RunFailed
    assert len(str(strange)) == 2000
    assert "\n" not in str(strange)


def test_the_first_note_stays(tmp_path: Path) -> None:
    store = FileStore(str(tmp_path / "notes"))
    assert failures.find(store) is None
    first, second = failures.note_of(FishexpError("first")), failures.note_of(RunFailed("second"))
    assert failures.leave(store, first) == first
    assert failures.leave(store, second) == first
    assert failures.find(store) == first


@pytest.mark.parametrize(
    ("codes", "then", "line"),
    [
        ([LOST, -9], [LOST, -9], "worker 1 was lost (signal 9)"),
        ([None, -9], [-15, -9], "worker 1 was lost (signal 9)"),
        ([None, LOST, 3], [-15, LOST, 3], "worker 2 was lost (exit status 3)"),
        ([LOST, None, None], [LOST, None, LOST], "worker 1 was silent for 7 s"),
        ([LOST, None, None], [LOST, None, None], "worker 1 and 2 was silent for 7 s"),
        ([LOST, None], [LOST, LOST], "the workers lost each other"),
    ],
)
def test_who_was_lost(codes: list[int | None], then: list[int | None], line: str) -> None:
    assert _who(codes, then, 7.0) == line


def test_workers_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fishexp.run.launch.context._cores", lambda: 7)
    assert Context().threads(None, usual=5) == 5
    assert Context(local_size=2).threads(None, usual=5) == 3
    assert Context(local_size=9).threads(None, usual=5) == 1
    assert Context(local_size=2).threads(4, usual=5) == 4


def test_each_worker_has_a_gpu_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    chosen: list[int] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 3)
    monkeypatch.setattr(torch.cuda, "set_device", chosen.append)
    with hardware.device("auto", 2, 3) as device:
        assert (device, chosen) == (torch.device("cuda", 2), [2])
    line = refusal(hardware.device("cuda", 0, 4).__enter__)
    assert line.startswith("4 workers on a machine with 3 GPUs: each needs one of its own; take fewer workers")
    with hardware.device("cpu", 0, 4) as device:
        assert device.type == "cpu"


def test_workers_meet_whatever_those_before_them_left(tmp_path: Path) -> None:
    """Three times in one store; the second time one of them had died before anybody answered it."""
    path = str(tmp_path / "store")
    FileStore(path).set("hello1", "of a worker that is gone")
    for expected in (1, 2, 3):
        found: dict[int, int] = {}

        def follow(rank: int, found: dict[int, int] = found) -> None:
            limit = torchrun.timedelta(seconds=20)
            found[rank] = torchrun._follow(FileStore(path), rank, limit)

        threads = [threading.Thread(target=follow, args=(rank,)) for rank in (1, 2)]
        threads[0].start()
        leader = threading.Thread(target=lambda: found.update({0: torchrun._lead(FileStore(path), 3, 20)}))  # noqa: B023
        leader.start()
        time.sleep(0.3)  # it answers the word that is there before the worker comes
        threads[1].start()
        for thread in (*threads, leader):
            thread.join(30)
        assert found == {0: expected, 1: expected, 2: expected}
        FileStore(path).set("hello2", f"of another that is gone {expected}")


def test_waiting_for_workers_has_an_end(tmp_path: Path) -> None:
    with pytest.raises(RuntimeError, match="0 came beside worker 0"):
        torchrun._lead(FileStore(str(tmp_path / "store")), 2, 0.3)


def act(collectives: Any, folder: Path, case: str) -> str:
    """A worker that meets the others, is set up and trains, as :func:`fishexp.run.runner.run` would have it."""
    collectives.all_gather([torch.zeros(1)])  # all are connected
    dist.destroy_process_group()
    pickle.loads = pickle.load = pickle.Unpickler = None  # type: ignore[assignment]  # what others send is no pickle
    rank, size = collectives.local_ranks[0], collectives.world_size
    store, met = FileStore(str(folder / "notes")), FileStore(str(folder / "met"))
    member = Context(rank, size, rank, size, store=store, met=met, launched=True, retried=True, timeout=5)
    done: list[str] = []
    try:
        with member.meeting("cpu"):
            with member.agreeing() as facts:
                facts |= {"commit": "other" if (case, rank) == ("commit", 1) else commit()}
                with member.first_here():
                    met.set(f"order{met.add('number', 1)}", str(rank))
                if (case, rank) == ("set-up", 1):
                    raise FishexpError("no such file")
                if (case, rank) == ("bug", 0):
                    raise TypeError("of ours")
            done.append("set up")
            together = member.collectives(size)
            together.all_gather([torch.zeros(3)])
            if (case, rank) == ("nan", 1):
                raise RunFailed("the loss is not finite")
            if (case, rank) == ("lost", 1):
                raise WorkerLost("somebody is gone")
            if (case, rank) == ("signal", 1):
                raise KeyboardInterrupt
            if case == "decided":
                return str(member.decided(rank == 0))
            together.all_gather([torch.zeros(3)])
            if member.leads:
                member.tell_recorded("finished")
            return f"{member.is_recorded()} {store.get(RECORDED).decode()} {met.get('order1').decode()}"
    except (Exception, KeyboardInterrupt) as error:
        return f"{'; '.join(done)} {type(error).__name__}: {error}"


@pytest.mark.parametrize(
    ("case", "first", "second"),
    [
        ("none", "True finished 0", "True finished 0"),
        ("decided", "True", "True"),
        ("commit", f" FishexpError: worker 1 has commit=other, worker 0 has {commit()}", None),
        ("set-up", " FishexpError: worker 1: no such file", None),
        ("bug", " RunFailed: TypeError: of ours; debug=true shows where", None),
        ("nan", "set up RunFailed: worker 1: the loss is not finite", None),
        ("lost", "set up WorkerLost: another worker of the run is gone", "set up WorkerLost: somebody is gone"),
        ("signal", "set up WorkerLost: another worker of the run is gone", "set up WorkerLost: another worker"),
    ],
)
def test_what_ends_one_worker_ends_all_with_the_same_word(
    case: str, first: str, second: str | None, tmp_path: Path
) -> None:
    with Workers(2, tmp_path, act, tmp_path, case) as workers:
        found = workers.results()
    assert found[0].startswith(first)
    assert found[1].startswith(second or first)


def test_a_worker_that_does_not_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fishexp.run.launch.context.longest_start", lambda timeout: timeout)
    store = FileStore(str(tmp_path / "store"))
    member = Context(0, 2, store=store, met=store, retried=True, timeout=0.5)
    with pytest.raises(WorkerLost, match=r"not all of 2 workers came within 0\.5 s"), member.meeting("cpu"):
        pass
    assert failures.find(store) is None  # the next may come


def test_workers_that_are_started_after_the_end_end(tmp_path: Path) -> None:
    """As torchrun does with those that ended by an error."""
    store = FileStore(str(tmp_path / "store"))
    failures.leave(store, failures.note_of(RunFailed("the loss is not finite")))
    member = Context(0, 2, store=store, met=store, timeout=5)
    with pytest.raises(RunFailed, match=r"^the loss is not finite\n"), member.meeting("cpu"):
        raise AssertionError("it should not come so far")
    assert not store.check(["came0"])  # nor wait for anybody
