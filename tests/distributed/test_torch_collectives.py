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
from fishexp.training import collectives as module
from fishexp.training.collectives import LONGEST_TEXT, Collectives, InProcessCollectives, pieces
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
    entry_numbers = torch.arange(entries.start, entries.stop)
    return values[entry_numbers % len(values), entry_numbers - entries.start]


def assert_same(ours: Tensor, theirs: Tensor) -> None:
    assert (ours.dtype, ours.shape) == (theirs.dtype, theirs.shape)
    assert torch.equal(*(tensor.unsqueeze(-1).contiguous().view(torch.uint8) for tensor in (ours, theirs)))


def compare_with_one_process(collectives: Collectives) -> None:
    """Compare every operation of a process with that of workers in one process."""
    module.PIECE = PIECE
    together = InProcessCollectives(collectives.world_size)
    (rank,) = collectives.local_ranks
    for dtype in FLOATS + OTHERS:
        for entries in LENGTHS:
            rows = list(noise(collectives.world_size, entries, dtype))
            assert_same(collectives.all_gather([rows[rank]]), together.all_gather(rows))
            assert_same(collectives.ordered_all_reduce([rows[rank]], picked), together.ordered_all_reduce(rows, picked))
            assert collectives.bytes_sent == together.bytes_sent
    for dtype in FLOATS:
        for entries in LENGTHS:
            whole = torch.randn(
                collectives.world_size, 2 * entries, generator=torch.Generator().manual_seed(entries)
            ).to(dtype)
            rows = list(whole[:, ::2])  # not contiguous
            before = rows[rank].clone()
            assert_same(collectives.all_gather([rows[rank]]), together.all_gather(rows))
            for reduction in (ordered, ordered_mean):
                assert_same(
                    collectives.ordered_all_reduce([rows[rank]], reduction),
                    together.ordered_all_reduce(rows, reduction),
                )
            ours, theirs = collectives.all_reduce([rows[rank]]), together.all_reduce(rows)
            if collectives.world_size == 2:
                assert_same(ours, theirs)
            error = collectives.world_size * torch.finfo(dtype).eps * whole.abs().sum(0)[::2]
            assert ((ours - theirs).abs() <= error).all()
            assert collectives.bytes_sent == together.bytes_sent
            assert_same(rows[rank], before)
    for texts in (
        TEXTS[: collectives.world_size],
        TEXTS[1 : 1 + collectives.world_size],
        [""] * collectives.world_size,
        ["é" * (LONGEST_TEXT // 2)] * collectives.world_size,
    ):
        assert collectives.all_gather_text([texts[rank]]) == together.all_gather_text(texts) == list(texts)
        assert collectives.bytes_sent == together.bytes_sent


@pytest.mark.parametrize("size", [1, 2, 3, 4])
def test_processes_do_what_workers_together_do(size: int, tmp_path: Path) -> None:
    with Workers(size, tmp_path, compare_with_one_process) as workers:
        workers.results()


@pytest.mark.parametrize("size", [1, 2, 3, 7])
def test_pieces_cover_all_entries_once_and_parts_a_piece(size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "PIECE", PIECE)
    for entries in LENGTHS:
        found = list(pieces(entries, size))
        assert [entry for piece, _ in found for entry in range(entries)[piece]] == list(range(entries))
        for piece, part in found:
            length = piece.stop - piece.start
            assert length <= PIECE
            assert length <= size * part < length + size


def bad_messages(collectives: Collectives) -> list[str]:
    """What worker 0 says of messages that no worker of ours sends."""
    texts = []
    for length in (LONGEST_TEXT + 1, 1 << 50, -1):
        if collectives.local_ranks.start:
            collectives.all_gather([torch.tensor([length])])
            continue
        with pytest.raises(RunFailed) as raised:
            collectives.all_gather_text(["fine"])
        texts.append(str(raised.value))
    if collectives.local_ranks.start:
        collectives.all_gather([torch.tensor([3])])
        collectives.all_gather([torch.tensor([65, 255, 66], dtype=torch.uint8)])
    else:
        texts += collectives.all_gather_text(["abc"])
    return texts


def test_sizes_of_messages_are_checked_and_so_is_their_text(tmp_path: Path) -> None:
    with Workers(2, tmp_path, bad_messages) as workers:
        texts = workers.results()[0]
    lengths = (LONGEST_TEXT + 1, 1 << 50, -1)
    assert texts[:3] == [f"worker 1 has a message of {n} bytes, and the limit is 1048576" for n in lengths]
    assert texts[3:] == ["abc", "A\N{REPLACEMENT CHARACTER}B"]
    with pytest.raises(RunFailed, match=f"worker 1 has a message of {LONGEST_TEXT + 1} bytes"):
        InProcessCollectives(2).all_gather_text(["", "x" * (LONGEST_TEXT + 1)])


OPERATIONS: dict[str, Callable[[Collectives], object]] = {
    "ordered_all_reduce": lambda collectives: collectives.ordered_all_reduce([torch.ones(1000)], ordered),
    "all_gather": lambda collectives: collectives.all_gather([torch.ones(1000)]),
    "all_reduce": lambda collectives: collectives.all_reduce([torch.ones(1000)]),
    "all_gather_text": lambda collectives: collectives.all_gather_text(["hello"]),
}


def lose_the_last(collectives: Collectives, operation: str, name: str) -> tuple[str, float]:
    """The others' message, and the seconds until they have it."""
    OPERATIONS[operation](collectives)
    if collectives.local_ranks.start == collectives.world_size - 1:
        os.kill(os.getpid(), getattr(signal, name))
    start = time.monotonic()
    with pytest.raises(WorkerLost) as raised:
        OPERATIONS[operation](collectives)
    return str(raised.value), time.monotonic() - start


@pytest.mark.parametrize("operation", OPERATIONS)
def test_a_worker_that_was_killed_is_noticed_at_once(operation: str, tmp_path: Path) -> None:
    with Workers(2, tmp_path, lose_the_last, operation, "SIGKILL") as workers:
        message, seconds = workers.result(0)
        assert re.fullmatch(r"another worker of the run is gone: .*\[127\.0\.0\.1\]:\d+.*", message)
        assert seconds < 5
        workers.processes[0].join(10)
        assert workers.processes[0].exitcode == 0


@pytest.mark.alone
@pytest.mark.parametrize("operation", ["ordered_all_reduce", "all_gather_text"])
def test_a_worker_that_hangs_is_noticed_when_the_time_is_over(operation: str, tmp_path: Path) -> None:
    with Workers(3, tmp_path, lose_the_last, operation, "SIGSTOP", seconds=1.5) as workers:
        found = [workers.result(rank) for rank in (0, 1)]
        assert "another worker of the run was silent for 1.5 s" in [message for message, _ in found]
        assert all(1 < seconds < 4 for _, seconds in found)
        workers.processes[0].join(10)
        assert workers.processes[0].exitcode == 0


def reduce_for_ever(collectives: Collectives) -> None:
    while True:
        collectives.ordered_all_reduce([torch.ones(100_000)], ordered)


def test_a_worker_killed_in_the_midst_of_its_work(tmp_path: Path) -> None:
    with Workers(3, tmp_path, reduce_for_ever) as workers:
        assert not any(connection.poll(0.5) for connection in workers.connections)
        workers.processes[1].kill()
        for rank in (0, 2):
            assert isinstance(workers.result(rank, within=10), WorkerLost)


def bytes_of_reductions(collectives: Collectives, entries: int, dtype: torch.dtype, times: int) -> tuple[int, int]:
    """Bytes on the network of all workers' reductions, and what this one counts."""
    row = torch.ones(entries, dtype=dtype)
    collectives.ordered_all_reduce([row], ordered)
    collectives.all_gather([row[:1]])  # all are here
    before, sent = bytes_on_loopback(), collectives.bytes_sent
    collectives.all_gather([row[:1]])  # nobody is ahead
    for _ in range(times):
        collectives.ordered_all_reduce([row], ordered)
    collectives.all_gather([row[:1]])
    return bytes_on_loopback() - before, collectives.bytes_sent - sent


def bytes_in_group(size: int, folder: Path, *arguments: object) -> tuple[int, int]:
    folder.mkdir()
    with Workers(size, folder, bytes_of_reductions, *arguments) as workers:
        return workers.results()[0]


@pytest.mark.parametrize("size", [2, 3])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["fp32", "bf16"])
@pytest.mark.parametrize("entries", [100_000, 1_000_000])
def test_bytes_on_the_wire_are_those_of_a_ring(size: int, dtype: torch.dtype, entries: int, tmp_path: Path) -> None:
    """By the operating system's count, in a network without others: values there and back, and nothing else."""
    times = 5_000_000 // entries
    found = isolated(bytes_in_group, size, tmp_path / "group", entries, dtype, times)
    if found is None:
        pytest.skip("this user may not make a network namespace")
    wire, sent = found
    values = times * 2 * (size - 1) * entries * dtype.itemsize  # of all workers: size * 2 (size - 1) / size
    assert wire == pytest.approx(values, rel=0.02)
    assert wire == pytest.approx(size * sent, rel=0.02)
