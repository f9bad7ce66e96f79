"""The cost of merges, against figures worked out by hand and against what a collectives counts."""

import pytest
import torch

from fishexp.distributed.cost import Cost, Link, Traffic, foretell
from fishexp.training.collectives import InProcessCollectives

LINK = Link(bandwidth=100, latency=1)
SAME = Traffic(weights=1_000_000, kept=10_000, head=1_000, buffers=0, disjoint=False, value_bytes=4)


def test_the_same_weights_everywhere() -> None:
    # 4 workers: 40 bytes to 3 others; 3 parts of 2,500 values of 4 bytes, twice
    # 3 latencies round a ring; all parts at once, and 3 more round a ring
    sent, seconds = SAME.cost(4, LINK)
    assert sent == 120 + 60_000
    assert seconds == pytest.approx(60_120 * 8 / 1e8 + 0.003 + 0.004)
    assert SAME._replace(value_bytes=2).cost(4, LINK).bytes == 120 + 30_000
    assert SAME._replace(kept=10_001).cost(4, LINK).bytes == 120 + 60_024  # parts of equal size


def test_weights_of_their_own() -> None:
    # the head: 3 parts of 250 values, twice, 6,000 bytes; 9,000 values to 3 others: 108,000 bytes and 3 latencies
    sent, seconds = SAME._replace(disjoint=True).cost(4, LINK)
    assert sent == 120 + 114_000
    assert seconds == pytest.approx(114_120 * 8 / 1e8 + 0.003 + 0.004 + 0.003)
    # no more than there are: 999,000 values for 1,000 workers, and a head of one value each
    assert SAME._replace(disjoint=True).cost(1000, LINK).bytes == 999 * (40 + 2 * 4 + 999 * 4)
    assert SAME._replace(disjoint=True, head=0).cost(2, LINK) == pytest.approx((40_040, 0.0032032 + 0.002))


def test_running_statistics_are_float32_and_wait_too() -> None:
    sent, seconds = SAME._replace(buffers=100, value_bytes=2).cost(4, LINK)
    assert sent == 120 + 30_000 + 600
    assert seconds == pytest.approx(30_720 * 8 / 1e8 + 0.003 + 0.008)
    assert SAME._replace(buffers=100, value_bytes=2).dense(4, LINK).bytes == 120 + 6_000_000 + 600


def test_all_weights() -> None:
    assert SAME._replace(value_bytes=2).dense(2, LINK) == pytest.approx((4_000_040, 0.3200032 + 0.003))
    # 10,000,000 are combined in three pieces
    assert SAME._replace(weights=10_000_000).dense(2, LINK).seconds == pytest.approx(3.2000032 + 0.007)
    assert SAME.dense(2, Link(1000, 0)).seconds == pytest.approx(0.03200032)


@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("disjoint", [False, True])
def test_it_is_what_collectives_count(workers: int, disjoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fishexp.training.collectives.PIECE", 64)
    merge = Traffic(weights=301, kept=83, head=11, buffers=7, disjoint=disjoint, value_bytes=2)
    shared, own = (11, min(72, 290 // workers)) if disjoint else (83, 0)
    collectives, everything = InProcessCollectives(workers), InProcessCollectives(workers)

    def combined(collectives: InProcessCollectives, entries: int, dtype: torch.dtype) -> None:
        collectives.ordered_all_reduce([torch.zeros(entries, dtype=dtype)] * workers, lambda values, piece: values[0])

    combined(collectives, shared, torch.bfloat16)
    collectives.all_gather([torch.zeros(own, dtype=torch.bfloat16)] * workers)
    combined(everything, 301, torch.float32)
    for each in (collectives, everything):
        each.all_gather([torch.zeros(5, dtype=torch.int64)] * workers)
        combined(each, 7, torch.float32)
    assert merge.cost(workers, LINK).bytes == collectives.bytes_sent
    assert merge.dense(workers, LINK).bytes == everything.bytes_sent


def test_what_is_told_before_a_run() -> None:
    bert = Traffic(weights=334_000_000, kept=1_670_000, head=2_050, buffers=0, disjoint=False, value_bytes=4)
    *table, says = foretell(bert, 2, 100, 0, LINK)
    # 6.68 MB in 0.5344 s and three latencies; all are 1,336 MB in 106.88 s, and two latencies for each of 80 pieces
    assert [line.split() for line in table[:2]] == [
        ["workers", "MB", "a", "merge", "seconds", "dense", "MB", "seconds"],
        ["2", "6.68", "0.537", "1,336", "107", "<-", "this", "run"],
    ]
    assert [line.split()[0] for line in table[1:]] == ["2", "4", "8", "16", "64", "256", "1,024"]
    assert len({len(line.removesuffix("  <- this run")) for line in table}) == 1  # in columns
    # 9 times 0.5374 s in 100 steps; 9 times 107.041 s; 199.2 times
    assert says == (
        "Worth it at 100 Mb/s and 1 ms if a step takes 0.0484 s or more (sync_every=100): then 90% of the time goes "
        "into training. Merges of all weights, 199 times slower, want steps of 9.63 s."
    )
    assert foretell(bert, 6, 100, 0, LINK)[3].endswith("<- this run")
    assert foretell(bert, 2, 100, 3, LINK)[-1].endswith(" Those of the first 3 epochs are of all weights.")


def test_where_merges_of_all_weights_take_no_longer() -> None:
    slow = Link(1000, 500)  # what takes time is that one waits for the other
    says = foretell(SAME, 2, 10, 2, slow)[-1]
    assert "if a step takes 1.35 s or more (sync_every=10)" in says
    assert says.endswith(" Merges of all weights take no longer. Those of the first 2 epochs are of all weights.")
    full = SAME._replace(kept=SAME.weights)
    assert foretell(full, 2, 10, 2, slow)[-1].endswith(": then 90% of the time goes into training.")


def test_nothing_takes_no_time() -> None:
    assert SAME.cost(1, Link(1, 0)) == Cost(0, 0)
    tiny = Traffic(weights=2, kept=1, head=0, buffers=0, disjoint=True, value_bytes=4)
    assert foretell(tiny, 2, 1, 0, Link(1e9, 0))[1].split()[1:5] == ["0.0000", "0.0000", "0.0000", "0.0000"]
