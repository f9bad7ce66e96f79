"""Workers that meet, agree before they train, and end together."""

import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch.distributed import FileStore  # pyright: ignore[reportPrivateImportUsage]

from fishexp.distributed import failures
from fishexp.distributed.context import STATUS_KEY, Context
from fishexp.errors import FishexpError, RunFailed, WorkerLost
from fishexp.run.record import commit
from tests.support.workers import Workers


def test_workers_of_a_machine_share_its_cores(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fishexp.distributed.context._cores", lambda: 7)
    assert Context().threads(None, usual=5) == 5
    assert Context(local_world_size=2).threads(None, usual=5) == 3
    assert Context(local_world_size=9).threads(None, usual=5) == 1
    assert Context(local_world_size=2).threads(4, usual=5) == 4


def set_up(context: Context, met: FileStore, case: str) -> None:
    with context.local_main_first():
        met.set(f"order{met.add('number', 1)}", str(context.rank))
    if (case, context.rank) == ("set-up", 1):
        raise FishexpError("no such file")
    if (case, context.rank) == ("bug", 0):
        raise TypeError("of ours")


def act(collectives: Any, folder: Path, case: str) -> str:
    """A worker that meets the others, is set up and trains, as :func:`fishexp.run.runner.run` would have it."""
    collectives.all_gather([torch.zeros(1)])  # all are connected
    dist.destroy_process_group()
    pickle.loads = pickle.load = pickle.Unpickler = None  # type: ignore[assignment]  # what others send is no pickle
    rank, size = collectives.local_ranks[0], collectives.world_size
    store, met = FileStore(str(folder / "failures")), FileStore(str(folder / "met"))
    context = Context(rank, size, rank, size, store=store, start_store=met, has_agent=True, may_restart=True, timeout=5)
    done: list[str] = []
    try:
        with context.process_group("cpu"):
            context.together(set_up, context, met, case)
            context.check_same({"commit": "other" if (case, rank) == ("commit", 1) else commit()})
            done.append("set up")
            together = context.collectives(size)
            together.all_gather([torch.zeros(3)])
            if (case, rank) == ("nan", 1):
                raise RunFailed("the loss is not finite")
            if (case, rank) == ("lost", 1):
                raise WorkerLost("somebody is gone")
            if (case, rank) == ("signal", 1):
                raise KeyboardInterrupt
            if case == "decided":
                return str(context.broadcast_decision(rank == 0))
            together.all_gather([torch.zeros(3)])
            if context.is_main:
                context.announce_record("finished")
            return f"{context.await_record()} {store.get(STATUS_KEY).decode()} {met.get('order1').decode()}"
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
    monkeypatch.setattr("fishexp.distributed.context.longest_start", lambda timeout: timeout)
    store = FileStore(str(tmp_path / "store"))
    context = Context(0, 2, store=store, start_store=store, may_restart=True, timeout=0.5)
    with pytest.raises(WorkerLost, match=r"not all of 2 workers came within 0\.5 s"), context.process_group("cpu"):
        pass
    assert failures.find(store) is None  # the next may come


def test_workers_that_are_started_after_the_end_end(tmp_path: Path) -> None:
    """As torchrun does with those that ended by an error."""
    store = FileStore(str(tmp_path / "store"))
    failures.report(store, failures.from_error(RunFailed("the loss is not finite")))
    context = Context(0, 2, store=store, start_store=store, timeout=5)
    with pytest.raises(RunFailed, match=r"^the loss is not finite\n"), context.process_group("cpu"):
        raise AssertionError("it should not come so far")
    assert not store.check(["came0"])  # nor wait for anybody
