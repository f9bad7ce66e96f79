"""Workers in processes do what those in one process do, to the bit and to the byte, and notice when one is lost."""

import os
import re
import signal
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from fishexp.errors import RunFailed, WorkerLost
from fishexp.training import collectives as crews
from fishexp.training.collectives import LONGEST, Collectives, InProcessCollectives, pieces
from tests.support.workers import Workers, bytes_on_loopback, isolated

FLOATS = (torch.float32, torch.float64, torch.float16, torch.bfloat16)
OTHERS = (torch.int8, torch.int16, torch.int32, torch.int64, torch.uint8, torch.uint16, torch.bool)
PIECE = 64  # few, so that there are several
LENGTHS = (0, 1, 2, 3, 5, PIECE - 1, PIECE, PIECE + 1, 3 * PIECE + 7)
TEXTS = ("", "a", "naïve ∑", "x" * 5000, "{}")


def noise(workers: int, entries: int, dtype: torch.dtype) -> Tensor:
    """(workers, entries) of any bits that the type can have, NaN among them; the same in each process."""
    generator = torch.Generator().manual_seed(entries)
    below = 2 if dtype == torch.bool else 256
    count = workers * entries * dtype.itemsize
    bits = torch.randint(below, (count,), generator=generator, dtype=torch.uint8)
    return bits.view(dtype).view(workers, entries)


def ordered(values: Tensor, entries: slice) -> Tensor:
    """The sum in the order of the ranks, to the same bits however many entries come together."""
    total = values[0].clone()
    for row in values[1:]:
        total += row
    return total


def ordered_mean(values: Tensor, entries: slice) -> Tensor:
    """In another type."""
    return ordered(values.double(), entries) / len(values)


def picked(values: Tensor, entries: slice) -> Tensor:
    """Entry i of worker i modulo the number of workers."""
    places = torch.arange(entries.start, entries.stop)
    return values[places % len(values), places - entries.start]


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert torch.equal(*(tensor.unsqueeze(-1).contiguous().view(torch.uint8) for tensor in (ours, theirs)))


def as_together(crew: Collectives) -> None:
    """All that a crew does, beside workers that are together."""
    crews.PIECE = PIECE
    together = InProcessCollectives(crew.size)
    (rank,) = crew.local
    for dtype in FLOATS + OTHERS:
        for entries in LENGTHS:
            rows = list(noise(crew.size, entries, dtype))
            assert_same(crew.gather([rows[rank]]), together.gather(rows))
            assert_same(crew.combine([rows[rank]], picked), together.combine(rows, picked))
            assert crew.sent == together.sent
    for dtype in FLOATS:
        for entries in LENGTHS:
            whole = torch.randn(crew.size, 2 * entries, generator=torch.Generator().manual_seed(entries)).to(dtype)
            rows = list(whole[:, ::2])  # not contiguous
            before = rows[rank].clone()
            assert_same(crew.gather([rows[rank]]), together.gather(rows))
            for reduction in (ordered, ordered_mean):
                assert_same(crew.combine([rows[rank]], reduction), together.combine(rows, reduction))
            ours, theirs = crew.add([rows[rank]]), together.add(rows)
            if crew.size == 2:
                assert_same(ours, theirs)
            error = crew.size * torch.finfo(dtype).eps * whole.abs().sum(0)[::2]
            assert ((ours - theirs).abs() <= error).all()
            assert crew.sent == together.sent
            assert_same(rows[rank], before)
    for texts in (TEXTS[: crew.size], TEXTS[1 : 1 + crew.size], [""] * crew.size, ["é" * (LONGEST // 2)] * crew.size):
        assert crew.messages([texts[rank]]) == together.messages(texts) == list(texts)
        assert crew.sent == together.sent


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_processes_do_what_workers_together_do(size: int, tmp_path: Path) -> None:
    with Workers(size, tmp_path, as_together) as workers:
        workers.results()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_cover_all_entries_once_and_parts_a_piece(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(crews, "PIECE", PIECE)
    for entries in LENGTHS:
        found = list(pieces(entries, size))
        assert [place for piece, _ in found for place in range(entries)[piece]] == list(range(entries))
        for piece, part in found:
            length = piece.stop - piece.start
            assert length <= PIECE
            assert length <= size * part < length + size


def bad_messages(crew: Collectives) -> list[str]:
    """What worker 0 says of messages that no worker of ours sends."""
    said = []
    for length in (LONGEST + 1, 1 << 50, -1):
        if crew.local.start:
            crew.gather([torch.tensor([length])])
            continue
        with pytest.raises(RunFailed) as raised:
            crew.messages(["fine"])
        said.append(str(raised.value))
    if crew.local.start:
        crew.gather([torch.tensor([3])])
        crew.gather([torch.tensor([65, 255, 66], dtype=torch.uint8)])
    else:
        said += crew.messages(["abc"])
    return said


def test_sizes_of_messages_are_checked_and_so_is_their_text(tmp_path: Path) -> None:
    with Workers(2, tmp_path, bad_messages) as workers:
        said = workers.results()[0]
    lengths = (LONGEST + 1, 1 << 50, -1)
    assert said[:3] == [f"worker 1 has a message of {n} bytes, and the limit is 1048576" for n in lengths]
    assert said[3:] == ["abc", "A\N{REPLACEMENT CHARACTER}B"]
    with pytest.raises(RunFailed, match=f"worker 1 has a message of {LONGEST + 1} bytes"):
        InProcessCollectives(2).messages(["", "x" * (LONGEST + 1)])


OPERATIONS: dict[str, Callable[[Collectives], object]] = {
    "combine": lambda crew: crew.combine([torch.ones(1000)], ordered),
    "gather": lambda crew: crew.gather([torch.ones(1000)]),
    "add": lambda crew: crew.add([torch.ones(1000)]),
    "messages": lambda crew: crew.messages(["hello"]),
}


def lose_the_last(crew: Collectives, operation: str, name: str) -> tuple[str, float]:
    """The others' message, and the seconds until they have it."""
    OPERATIONS[operation](crew)
    if crew.local.start == crew.size - 1:
        os.kill(os.getpid(), getattr(signal, name))
    start = time.monotonic()
    with pytest.raises(WorkerLost) as raised:
        OPERATIONS[operation](crew)
    return str(raised.value), time.monotonic() - start


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_worker_that_was_killed_is_noticed_at_once(operation: str, tmp_path: Path) -> None:
    with Workers(2, tmp_path, lose_the_last, operation, "SIGKILL") as workers:
        message, seconds = workers.result(0)
        assert re.fullmatch(r"another worker of the run is gone: .*\[127\.0\.0\.1\]:\d+.*", message)
        assert seconds < 5
        workers.processes[0].join(10)
        assert workers.processes[0].exitcode == 0


@pytest.mark.parametrize("operation", ["combine", "messages"])
def test_a_worker_that_hangs_is_noticed_when_the_time_is_over(operation: str, tmp_path: Path) -> None:
    with Workers(3, tmp_path, lose_the_last, operation, "SIGSTOP", seconds=1.5) as workers:
        found = [workers.result(rank) for rank in (0, 1)]
        assert "another worker of the run was silent for 1.5 s (regime.timeout)" in [message for message, _ in found]
        assert all(1 < seconds < 4 for _, seconds in found)
        workers.processes[0].join(10)
        assert workers.processes[0].exitcode == 0


def combine_for_ever(crew: Collectives) -> None:
    while True:
        crew.combine([torch.ones(100_000)], ordered)


def test_a_worker_killed_in_the_midst_of_its_work(tmp_path: Path) -> None:
    with Workers(3, tmp_path, combine_for_ever) as workers:
        assert not any(connection.poll(0.5) for connection in workers.connections)
        workers.processes[1].kill()
        for rank in (0, 2):
            assert isinstance(workers.result(rank, within=10), WorkerLost)


def traffic(crew: Collectives, entries: int, dtype: torch.dtype, times: int) -> tuple[int, int]:
    """Bytes on the network of all workers' combines, and what this one counts."""
    row = torch.ones(entries, dtype=dtype)
    crew.combine([row], ordered)
    crew.gather([row[:1]])  # all are here
    before, sent = bytes_on_loopback(), crew.sent
    crew.gather([row[:1]])  # nobody is ahead
    for _ in range(times):
        crew.combine([row], ordered)
    crew.gather([row[:1]])
    return bytes_on_loopback() - before, crew.sent - sent


def traffic_of(size: int, folder: Path, *arguments: object) -> tuple[int, int]:
    folder.mkdir()
    with Workers(size, folder, traffic, *arguments) as workers:
        return workers.results()[0]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("entries", [100_000, 1_000_000])
def test_bytes_on_the_wire_are_those_of_a_ring(size: int, dtype: torch.dtype, entries: int, tmp_path: Path) -> None:
    """By the operating system's count, in a network without others: values there and back, and nothing else."""
    times = 5_000_000 // entries
    found = isolated(traffic_of, size, tmp_path / "group", entries, dtype, times)
    if found is None:
        pytest.skip("this user may not make a network namespace")
    wire, sent = found
    values = times * 2 * (size - 1) * entries * dtype.itemsize  # of all workers: size * 2 (size - 1) / size
    assert wire == pytest.approx(values, rel=0.02)
    assert wire == pytest.approx(size * sent, rel=0.02)
