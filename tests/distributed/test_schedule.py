"""When workers merge, end epochs and save."""

import pytest

from fishexp.distributed.schedule import Schedule


def merges(table: Schedule) -> list[int]:
    return [step for step in range(1, table.total + 1) if table.merges(step)]


def test_merges_come_at_the_interval_at_the_end_of_the_warm_up_and_at_the_end() -> None:
    assert merges(Schedule(10, 3, 4, 0, 100)) == [4, 8, 12, 16, 20, 24, 28, 30]
    assert merges(Schedule(10, 3, 7, 1, 100)) == [7, 10, 14, 21, 28, 30]
    assert merges(Schedule(10, 3, 100, 0, 100)) == [30]


@pytest.mark.parametrize(("sync", "count"), [(100, 49), (500, 10), (2500, 2)])
def test_the_original_counts_an_empty_batch_an_epoch(sync: int, count: int) -> None:
    """49, 9 and 1 merges, and one after the last epoch, of 50 epochs of 97 steps."""
    table = Schedule(97, 50, sync, 5, 10**6, as_original=True)
    found = merges(table)
    batches = [step for epoch in range(50) for step in [*range(97 * epoch + 1, 97 * epoch + 98), 97 * (epoch + 1)]]
    assert found == sorted({*batches[sync - 1 :: sync], 4850})
    assert len(found) == count
    assert found[-1] == table.total == 4850
    assert found[0] == sync - sync // 98  # the counter is ahead of the steps by one an epoch
    assert table.warmup == 485
    assert not table.merges(485)  # nobody merges because the warm-up ends


def test_every_stop_is_one_of_the_three() -> None:
    table = Schedule(10, 3, 7, 1, 4)
    step, stops = 0, []
    while step < table.total:
        step = table.next_stop(step)
        stops.append(step)
    assert stops == sorted({*merges(table), 10, 20, 30, *range(4, 30, 4)})
    assert [s for s in stops if table.saves(s)] == list(range(4, 30, 4))
    assert [s for s in stops if table.ends_epoch(s)] == [10, 20, 30]
