"""The cost of merges, against figures worked out by hand and against what a merge sends."""

import pytest
import torch
from torch import nn

from fishexp.distributed.cost import Cost, Link, MergeVolume, predict_cost
from fishexp.distributed.shared_state import SharedState
from fishexp.distributed.synchronizer import Synchronizer, Wire
from fishexp.training.collectives import InProcessCollectives

LINK = Link(bandwidth=100, latency=1)
SAME = MergeVolume(
    weights=1_000_000, kept=10_000, head=1_000, buffer_tensors=1, buffer_entries=0, disjoint=False, value_bytes=4
)


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
    sent, seconds = SAME._replace(buffer_entries=100, value_bytes=2).cost(4, LINK)
    assert sent == 120 + 30_000 + 600
    assert seconds == pytest.approx(30_720 * 8 / 1e8 + 0.003 + 0.008)
    assert SAME._replace(buffer_entries=100, value_bytes=2).dense_cost(4, LINK).bytes == 120 + 6_000_000 + 600


def test_all_weights() -> None:
    assert SAME._replace(value_bytes=2).dense_cost(2, LINK) == pytest.approx((4_000_040, 0.3200032 + 0.003))
    # 10,000,000 are combined in three pieces
    assert SAME._replace(weights=10_000_000).dense_cost(2, LINK).seconds == pytest.approx(3.2000032 + 0.007)
    assert SAME.dense_cost(2, Link(1000, 0)).seconds == pytest.approx(0.03200032)


@pytest.mark.parametrize("workers", [2, 3, 5])
@pytest.mark.parametrize("disjoint", [False, True])
def test_it_is_what_collectives_count(workers: int, disjoint: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("fishexp.training.collectives.PIECE", 64)
    merge = MergeVolume(
        weights=301, kept=83, head=11, buffer_tensors=1, buffer_entries=7, disjoint=disjoint, value_bytes=2
    )
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
    assert merge.dense_cost(workers, LINK).bytes == everything.bytes_sent


@pytest.mark.parametrize("norms", [0, 1, 31, 32, 36, 63])
@pytest.mark.parametrize("wire", ["fp32", "bf16"])
def test_it_is_what_a_merge_sends_however_many_buffers_there_are(norms: int, wire: Wire) -> None:
    """A header has 8 bytes more for each 62 buffers, and each norm has two buffers; ResNet-34 has 36 norms."""
    models = [nn.Sequential(nn.Linear(3, 3), *(nn.BatchNorm1d(3) for _ in range(norms))) for _ in range(3)]
    for model in models:
        model.load_state_dict(models[0].state_dict())
    collectives = InProcessCollectives(3)
    shared_state = SharedState(models, collectives.local_ranks, ())
    synchronizer = Synchronizer(collectives, shared_state, "mean", wire, "ordered")
    for rank, model in enumerate(models):
        model(torch.randn(5, 3, generator=torch.Generator().manual_seed(rank)))  # changes all running statistics
    synchronizer.merge(1, [""] * 3)
    weights = sum(p.numel() for p in models[0].parameters())
    volume = MergeVolume(
        weights, weights, 0, 2 * norms, 6 * norms, disjoint=False, value_bytes=2 if wire == "bf16" else 4
    )
    assert volume.cost(3, LINK).bytes == synchronizer.merge_bytes
    if wire == "fp32":
        assert volume.dense_cost(3, LINK).bytes == synchronizer.merge_bytes


def test_what_is_predicted_before_a_run() -> None:
    bert = MergeVolume(
        weights=334_000_000,
        kept=1_670_000,
        head=2_050,
        buffer_tensors=1,
        buffer_entries=0,
        disjoint=False,
        value_bytes=4,
    )
    *table, verdict = predict_cost(bert, 2, 100, 0, LINK)
    # 6.68 MB in 0.5344 s and three latencies; all are 1,336 MB in 106.88 s, and two latencies for each of 80 pieces
    assert [line.split() for line in table[:2]] == [
        ["workers", "MB", "a", "merge", "seconds", "dense", "MB", "seconds"],
        ["2", "6.68", "0.537", "1,336", "107", "<-", "this", "run"],
    ]
    assert [line.split()[0] for line in table[1:]] == ["2", "4", "8", "16", "64", "256", "1,024"]
    assert len({len(line.removesuffix("  <- this run")) for line in table}) == 1  # in columns
    # 9 times 0.5374 s in 100 steps; 9 times 107.041 s; 199.2 times
    assert verdict == (
        "Worth it at 100 Mb/s and 1 ms if a step takes 0.0484 s or more (sync_every=100): then 90% of the time goes "
        "into training. Merges of all weights, 199 times slower, want steps of 9.63 s."
    )
    assert predict_cost(bert, 6, 100, 0, LINK)[3].endswith("<- this run")
    assert predict_cost(bert, 2, 100, 3, LINK)[-1].endswith(" Those of the first 3 epochs are of all weights.")


def test_where_merges_of_all_weights_take_no_longer() -> None:
    slow = Link(1000, 500)  # what takes time is that one waits for the other
    verdict = predict_cost(SAME, 2, 10, 2, slow)[-1]
    assert "if a step takes 1.35 s or more (sync_every=10)" in verdict
    assert verdict.endswith(" Merges of all weights take no longer. Those of the first 2 epochs are of all weights.")
    full = SAME._replace(kept=SAME.weights)
    assert predict_cost(full, 2, 10, 2, slow)[-1].endswith(": then 90% of the time goes into training.")


def test_nothing_takes_no_time() -> None:
    assert SAME.cost(1, Link(1, 0)) == Cost(0, 0)
    tiny = MergeVolume(weights=2, kept=1, head=0, buffer_tensors=1, buffer_entries=0, disjoint=True, value_bytes=4)
    assert predict_cost(tiny, 2, 1, 0, Link(1e9, 0))[1].split()[1:5] == ["0.0000", "0.0000", "0.0000", "0.0000"]
