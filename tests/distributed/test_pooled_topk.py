"""Scores of all workers together, against the plain mean of all of them."""

import threading
from collections.abc import Callable, Sequence
from itertools import product
from pathlib import Path
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fishexp.distributed.pooled_topk import PooledScores, pooled_scores
from fishexp.errors import FishexpError
from fishexp.masks import top_k
from fishexp.masks.topk import Mask, Scores, split
from fishexp.masks.units import Unit
from fishexp.training.collectives import Collectives, InProcessCollectives, Reduction
from tests.support.checks import refusal
from tests.support.workers import Workers

UNITS = get_args(Unit)
TINY = 2.0**-149  # the smallest float32
DRAWS: dict[str, Callable[[int, torch.Generator], Tensor]] = {
    "heavy tails": lambda n, g: torch.randn(n, generator=g).mul(3).exp(),
    "uniform": lambda n, g: torch.rand(n, generator=g),
    "ties": lambda n, g: torch.randint(0, 3, (n,), generator=g).float(),
    "ties by rounding": lambda n, g: 1 + torch.randint(0, 4, (n,), generator=g) * 2.0**-23,
    "ties by rounding, of the smallest": lambda n, g: torch.randint(0, 4, (n,), generator=g) * TINY,
    "rounded below one": lambda n, g: 1 - torch.randint(0, 4, (n,), generator=g) * 2.0**-24,
    "few above zero": lambda n, g: torch.rand(n, generator=g) * (torch.rand(n, generator=g) > 0.9),
    "infinite": lambda n, g: (torch.randn(n, generator=g) * 60).exp(),
    "zeros": lambda n, g: torch.zeros(n) * torch.tensor([-1.0, 1.0]).repeat(n)[:n],
    "negative": lambda n, g: torch.randn(n, generator=g),
}


def drawn(kind: str, shapes: Sequence[tuple[int, ...]], workers: int, seed: int) -> list[dict[str, Tensor]]:
    g = torch.Generator().manual_seed(seed)
    return [
        {f"p{i}": DRAWS[kind](torch.Size(shape).numel(), g).view(shape) for i, shape in enumerate(shapes)}
        for _ in range(workers)
    ]


def dense(scores: Sequence[Scores], examples: Sequence[int]) -> dict[str, Tensor]:
    """The definition: float64, one worker after the other, rounded once."""
    means = {}
    for name in scores[0]:
        total = torch.zeros(scores[0][name].shape, dtype=torch.float64)
        for own, number in zip(scores, examples, strict=True):
            total += number * own[name].double() if number else 0
        means[name] = (total / sum(examples)).float()
    return means


def means_of_best(
    collectives: Collectives, scores: Sequence[Scores], examples: Sequence[int], best: int, always: Sequence[str] = ()
) -> Scores:
    """Compute what the best of the workers' scores are taken from."""
    pooled = pooled_scores(collectives, scores, examples)
    return pooled._means_of_best(best, always) if isinstance(pooled, PooledScores) else pooled


def assert_same_masks(found: Scores, expected: Scores, best: int, always: Sequence[str] = ()) -> None:
    total = sum(score.numel() for score in expected.values())
    head = sum(expected[name].numel() for name in always)
    for k in range(head or 1, min(head + best, total) + 1):
        keep = min((k + 0.5) / total, 1)
        mask, expected_mask = top_k(found, keep, always), top_k(expected, keep, always)
        assert all(torch.equal(mask[name], expected_mask[name]) for name in expected)


class Apart(InProcessCollectives):
    """One worker among several threads: what they hand in is put together, and each gets what all get."""

    def __init__(self, rank: int, table: dict[int, object], barrier: threading.Barrier) -> None:
        super().__init__(barrier.parties)
        self.local_ranks, self.table, self.barrier = range(rank, rank + 1), table, barrier

    def all(self, mine: Sequence[object]) -> list:
        (self.table[self.local_ranks[0]],) = mine
        self.barrier.wait()
        everything = [self.table[rank] for rank in range(self.world_size)]
        self.barrier.wait()
        return everything

    def all_gather(self, rows: Sequence[Tensor]) -> Tensor:
        return super().all_gather(self.all(rows))

    def ordered_all_reduce(self, rows: Sequence[Tensor], reduction: Reduction) -> Tensor:
        return super().ordered_all_reduce(self.all(rows), reduction)

    def all_gather_text(self, texts: Sequence[str]) -> list[str]:
        return super().all_gather_text(self.all(texts))


def apart(
    scores: Sequence[Scores], examples: Sequence[int], best: int, always: Sequence[str]
) -> list[tuple[Scores, int]]:
    """What each of several workers gets, and how many bytes it sent."""
    barrier, results = threading.Barrier(len(scores), timeout=30), {}
    table: dict[int, object] = {}

    def work(rank: int) -> None:
        collectives: Collectives = Apart(rank, table, barrier)
        results[rank] = (
            means_of_best(collectives, [scores[rank]], [examples[rank]], best, always),
            collectives.bytes_sent,
        )

    threads = [threading.Thread(target=work, args=(rank,)) for rank in range(len(scores))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return [results[rank] for rank in range(len(scores))]


@given(
    kind=st.sampled_from(sorted(DRAWS)),
    shapes=st.lists(st.sampled_from([(), (0,), (1,), (7,), (5, 8), (40,), (3, 2, 9)]), min_size=1, max_size=4),
    examples=st.sampled_from([1, 2, 3, 5]).flatmap(
        lambda workers: st.lists(st.integers(0, 9), min_size=workers, max_size=workers).filter(any)
    ),
    share=st.floats(0, 1),
    head=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_the_masks_are_those_of_the_mean_of_everything(
    kind: str, shapes: list[tuple[int, ...]], examples: list[int], share: float, head: bool, seed: int
) -> None:
    scores = drawn(kind, shapes, len(examples), seed)
    always = ["p0"] if head else []
    total = sum(score.numel() for name, score in scores[0].items() if name not in always)
    best = int(share**2 * total)
    collectives = InProcessCollectives(len(examples))
    found, expected = means_of_best(collectives, scores, examples, best, always), dense(scores, examples)

    assert_same_masks(found, expected, best, always)
    assert_same_masks(pooled_scores(InProcessCollectives(len(examples)), scores, examples), expected, best, always)
    assert list(found) == list(expected)
    row, mean = (
        torch.cat([s[n].flatten() for n in expected if n not in always] or [torch.zeros(0)]) for s in (found, expected)
    )
    assert row.dtype == torch.float32
    assert ((row == mean) | (row == 0)).all()
    if best:
        assert row[mean >= mean.topk(best).values[-1]].equal(mean[mean >= mean.topk(best).values[-1]] + 0.0)
    if collectives.world_size > 1:
        assert not any(found[name].any() for name in always)
        for other, sent in apart(scores, examples, best, always):
            assert all(found[name].equal(other[name]) for name in expected)
            assert sent == collectives.bytes_sent
        assert collectives.bytes_sent <= (collectives.world_size - 1) * (
            2 * 8 * (total / collectives.world_size + len(shapes)) + 60
        )  # twice that of all


@pytest.mark.parametrize("kind", ["heavy tails", "uniform", "ties by rounding", "few above zero"])
@pytest.mark.parametrize("workers", [2, 3, 5])
def test_many_scores(kind: str, workers: int) -> None:
    examples = [100 + 7 * rank for rank in range(workers)]
    scores = drawn(kind, [(300, 50), (5000,)], workers, seed=workers)
    for own in scores:
        own["p0"] = own["p0"].T.contiguous().T  # not in the order of memory
    collectives = InProcessCollectives(workers)
    found, expected = means_of_best(collectives, scores, examples, 100), dense(scores, examples)
    for k in (1, 37, 100):
        mask, other = (top_k(s, (k + 0.5) / 20_000) for s in (found, expected))
        assert all(mask[name].equal(other[name]) for name in expected)
    if kind == "heavy tails":
        assert (found["p0"] == 0).float().mean() > 0.9  # nothing is sent of most


def test_what_is_among_the_best_of_all_but_of_no_worker() -> None:
    """High scores of one worker each, and others, in the middle everywhere, whose mean is about as high."""
    g = torch.Generator().manual_seed(0)
    for workers in [2, 3, 5] * 30:
        examples = torch.randint(1, 9, (workers,), generator=g).tolist()
        scores = [{"p": torch.rand(200, generator=g) / 1000} for _ in range(workers)]
        middle = torch.randperm(200, generator=g)[:3]
        heights = torch.rand(3, generator=g) + 0.5
        for own, number in zip(scores, examples, strict=True):
            own["p"][middle] = heights * torch.empty(3).uniform_(0.99, 1.01, generator=g)
            free = torch.tensor([entry for entry in range(200) if entry not in middle])
            spikes = free[torch.randperm(197, generator=g)[:4]]
            own["p"][spikes] = (torch.rand(4, generator=g) + 1.5) * sum(examples) / number / 2
        found, expected = means_of_best(InProcessCollectives(workers), scores, examples, 4), dense(scores, examples)
        assert (found["p"] == 0).any()
        assert_same_masks(found, expected, 4)


def test_the_bound_is_the_last_of_the_best() -> None:
    """Each worker's two best have means of 5, 2, 1.8 and 1.7: the bound is 2. The third of each has a mean of 3."""
    scores = [{"p": torch.zeros(40)}, {"p": torch.zeros(40)}]
    scores[0]["p"][:5] = torch.tensor([3.0, 10, 4, 0, 0])
    scores[1]["p"][:5] = torch.tensor([3.0, 0, 0, 3.6, 3.4])
    assert means_of_best(InProcessCollectives(2), scores, [1, 1], 2)["p"][:3].tolist() == [3, 5, 2]


@pytest.mark.parametrize(
    ("examples", "bound"), [([4, 3, 4], 1 + 31 * 2.0**-23), ([1, 2, 8], 1 + 5 * 2.0**-23), ([14, 1, 2], TINY)]
)
def test_what_rounding_makes_as_high_as_the_best(examples: list[int], bound: float) -> None:
    """The first entry is a little less than its part of the bound on every worker, and its mean is rounded to it."""
    parts = torch.tensor([bound * sum(examples) / len(examples) / number for number in examples])
    lower = parts.nextafter(torch.zeros(()))
    scores = [{"p": torch.zeros(50)} for _ in examples]
    for rank, own in enumerate(scores):
        own["p"][0], own["p"][1] = lower[rank], bound
        own["p"][2 + rank] = lower[rank] * 1.5 if lower[rank] >= bound else 0  # higher, and on no other worker
    expected = dense(scores, examples)
    assert expected["p"][0] == expected["p"][1] == expected["p"].max()
    found = means_of_best(InProcessCollectives(3), scores, examples, 1)
    assert found["p"][:2].equal(expected["p"][:2])


def test_equal_scores_are_all_among_the_best() -> None:
    scores = [{"p": torch.ones(40)}, {"p": torch.ones(40)}]
    assert means_of_best(InProcessCollectives(2), scores, [1, 1], 3)["p"].equal(torch.ones(40))


def test_positions_are_not_sent_where_they_cost_more_than_scores() -> None:
    collectives, everything = InProcessCollectives(40), InProcessCollectives(40)
    scores = drawn("heavy tails", [(1000,)], 40, seed=0)
    expected = dense(scores, [1] * 40)
    assert means_of_best(collectives, scores, [1] * 40, 450)["p0"].equal(expected["p0"])
    everything.ordered_all_reduce([own["p0"] for own in scores], lambda values, piece: values.mean(0))
    assert collectives.bytes_sent < 1.2 * everything.bytes_sent


def mine(collectives: Collectives) -> list[tuple[dict[str, Any], int]]:
    """What a process gets of some scores, and the bytes that it has sent by then."""
    results = []
    for kind in ("heavy tails", "uniform", "negative", "zeros"):
        scores = drawn(kind, [(70, 50), (3000,), (10,)], collectives.world_size, seed=1)
        found = means_of_best(
            collectives,
            [scores[rank] for rank in collectives.local_ranks],
            [1 + rank for rank in collectives.local_ranks],
            50,
            ["p2"],
        )
        results.append(({name: mean.numpy() for name, mean in found.items()}, collectives.bytes_sent))
    return results


def test_processes_get_what_workers_in_one_process_get(tmp_path: Path) -> None:
    expected = mine(InProcessCollectives(3))
    with Workers(3, tmp_path, mine) as workers:
        for results in workers.results():
            for (found, sent), (together, bytes_) in zip(results, expected, strict=True):
                assert sent == bytes_
                assert all(mean.tobytes() == together[name].tobytes() for name, mean in found.items())


@pytest.mark.parametrize(("workers", "factor"), [(2, 100), (3, 75), (5, 50)])
def test_scores_with_heavy_tails_take_a_hundredth_of_all_their_bytes(workers: int, factor: int) -> None:
    """Like Fisher information on different examples: twenty powers of ten, and mostly the same weights matter."""
    g = torch.Generator().manual_seed(0)
    weights = 3 * torch.randn(200_000, generator=g)
    scores = [{"p": (weights + 0.7 * torch.randn(200_000, generator=g)).exp()} for _ in range(workers)]
    collectives, everything = InProcessCollectives(workers), InProcessCollectives(workers)
    means_of_best(collectives, scores, [128] + [64] * (workers - 1), 1000)
    everything.ordered_all_reduce([own["p"] for own in scores], lambda values, piece: values.mean(0))
    assert factor < everything.bytes_sent / collectives.bytes_sent < 2 * factor


def test_negative_scores_are_all_exact() -> None:
    scores = drawn("heavy tails", [(30,), (4, 4)], 3, seed=0)
    scores[1]["p1"][2, 2] = -1e-30
    found, expected = means_of_best(InProcessCollectives(3), scores, [1, 2, 3], 2), dense(scores, [1, 2, 3])
    assert all(found[name].equal(expected[name]) for name in expected)


def test_a_nan_is_refused_where_the_mask_is_made() -> None:
    scores = drawn("heavy tails", [(30,), (4, 4)], 2, seed=0)
    scores[1]["p1"][0, 0] = torch.nan
    with pytest.raises(FishexpError, match="the scores of p1 hold NaN"):
        top_k(pooled_scores(InProcessCollectives(2), scores, [1, 1]), 0.1)
    for always in (["p1"], ["p0", "p1"]):  # kept whatever they are, and still a sign that something is broken
        for select in (top_k, lambda scores, keep, always: split(scores, keep, 1, always)):
            pooled = pooled_scores(InProcessCollectives(2), scores, [1, 1])
            assert refusal(select, pooled, 1, always).startswith("the scores of p1 hold NaN")
    assert top_k(pooled_scores(InProcessCollectives(2), scores, [1, 0]), 0.5, ["p1"])["p1"].all()
    assert_same_masks(means_of_best(InProcessCollectives(2), scores, [1, 0], 3), scores[0], 3)


@pytest.mark.parametrize("dtype", [torch.int64, torch.bool, torch.complex64])
def test_only_floats_are_pooled(dtype: torch.dtype) -> None:
    """A mean in float32 would round integers above 2**24."""
    scores = [{"p": torch.ones(4, dtype=dtype)}] * 2
    assert refusal(pooled_scores, InProcessCollectives(2), scores, [1, 1]).startswith("the scores of p are ")


def test_pooled_scores_of_zero_at_the_cut_are_said(caplog: pytest.LogCaptureFixture) -> None:
    scores = [
        {"p": torch.zeros(9), "q": torch.tensor([0.0, 1.0])},
        {"p": torch.zeros(9), "q": torch.tensor([0.5, 0.0])},
    ]
    top_k(pooled_scores(InProcessCollectives(2), scores, [1, 1]), 0.3)
    assert [message[:62] for message in caplog.messages] == [
        "only 2 of the 3 entries to select score above 0; of the 9 that"
    ]
    top_k(pooled_scores(InProcessCollectives(2), scores, [1, 1]), 0.2)
    assert len(caplog.messages) == 1


def best_of_each_row(scores: Scores) -> Mask:
    """Select three entries of each row: the edit that whoever wants masks with as many entries everywhere makes."""
    rows = {name: score.flatten(1) for name, score in scores.items()}
    return {
        name: torch.zeros_like(row, dtype=torch.bool).scatter_(1, row.topk(3).indices, True)
        for name, row in rows.items()
    }


def best_of_each_layer(scores: Scores) -> Mask:
    """Select a tenth of each layer."""
    return {name: top_k({name: score}, 0.1)[name] for name, score in scores.items()}


@pytest.mark.parametrize("kind", ["heavy tails", "few above zero", "negative"])
@pytest.mark.parametrize("select", [best_of_each_row, best_of_each_layer])
def test_whoever_looks_at_all_scores_finds_all_of_them_exact(select: Callable[[Scores], Mask], kind: str) -> None:
    """Also where most of them are far below the best of all: a layer may have none of these."""
    scores, examples = drawn(kind, [(8, 30), (5, 4, 9), (20, 20)], 3, seed=3), [2, 5, 3]
    for own in scores:
        own["p1"] *= 1e-6
        own["p2"] = own["p2"].abs() + torch.linspace(1e-6, 1e-3, 400).view(20, 20)
    means = {
        name: torch.stack([own[name].double() * n for own, n in zip(scores, examples, strict=True)]).sum(0) / 10
        for name in scores[0]
    }
    collectives = InProcessCollectives(3)
    pooled = pooled_scores(collectives, scores, examples)
    assert "p1" in pooled
    assert (list(pooled), len(pooled)) == (["p0", "p1", "p2"], 3)
    unused = collectives.bytes_sent
    mask = top_k(pooled, 0.01)  # sends what this needs, and leaves nothing behind that others take for scores
    few = collectives.bytes_sent
    found, expected = select(pooled), select(means)
    assert all(found[name].equal(expected[name]) for name in expected)
    everything = collectives.bytes_sent
    assert unused < few < everything
    assert all(pooled[name].dtype == torch.float32 for name in pooled)
    again = top_k(pooled, 0.01)
    assert all(again[name].equal(mask[name]) for name in mask)
    assert collectives.bytes_sent == everything  # all were computed once


def test_the_best_are_as_many_as_were_asked_for_and_no_other_score_is_given_away() -> None:
    scores, examples = drawn("heavy tails", [(8, 30), (5, 4)], 3, seed=4), [1, 1, 1]
    pooled = pooled_scores(InProcessCollectives(3), scores, examples)
    assert isinstance(pooled, PooledScores)
    best = pooled.best(7, ["p1"])
    assert list(best.entries()) == ["p0"]
    positions, values = best.entries()["p0"]
    mean = dense(scores, examples)["p0"].flatten()
    assert sorted(positions.tolist()) == positions.tolist() == sorted(mean.topk(7).indices.tolist())
    assert values.equal(mean[positions])


@pytest.mark.parametrize("workers", [1, 2, 3, 5])
def test_workers_in_turns_take_what_they_take_of_the_mean_of_everything(workers: int) -> None:
    scores, examples = drawn("ties by rounding", [(40, 5), (30,), (7,)], workers, seed=5), list(range(1, workers + 1))
    pooled, expected = pooled_scores(InProcessCollectives(workers), scores, examples), dense(scores, examples)
    for number in (1, 3):
        for mask, other in zip(split(pooled, 0.2, number, ["p2"]), split(expected, 0.2, number, ["p2"]), strict=True):
            assert all(mask[name].equal(other[name]) for name in expected)


def test_one_worker_sends_nothing() -> None:
    collectives, (scores,) = InProcessCollectives(), drawn("negative", [(9,)], 1, seed=0)
    assert pooled_scores(collectives, [scores], [5]) is scores
    assert collectives.bytes_sent == 0


def test_no_examples_at_all() -> None:
    with pytest.raises(FishexpError, match="no worker has an example to score; take at least as many as there are"):
        pooled_scores(InProcessCollectives(2), drawn("ties", [(9,)], 2, seed=0), [0, 0])


class Lying(InProcessCollectives):
    """Worker 1's words and bytes are not its own."""

    def __init__(self, old: str, new: str, bytes_: int | None = None) -> None:
        super().__init__(2)
        self.old, self.new, self.bytes_ = old, new, bytes_

    def all_gather_text(self, texts: Sequence[str]) -> list[str]:
        return [texts[0], self.new if texts[1] == self.old else texts[1]]

    def all_gather(self, rows: Sequence[Tensor]) -> Tensor:
        return (
            torch.stack([rows[0], torch.full_like(rows[1], self.bytes_)])
            if self.bytes_ is not None
            else super().all_gather(rows)
        )


@pytest.mark.parametrize(
    ("collectives", "message"),
    [
        (Lying("7", "-7"), "worker 1 sent '-7' instead of its scores; does it run the same version"),
        (Lying("7", "9" * 5000), "worker 1 sent '9999"),
        (Lying("2 2 gaps", "2 2"), "worker 1 sent '2 2' instead"),
        (Lying("2 2 gaps", "-2 2 gaps"), "worker 1 sent '-2 2 gaps' instead"),
        (Lying("2 2 gaps", "2 2 zip"), "positions are coded as 'zip'"),
        (Lying("2 2 gaps", "30 2 gaps"), "30 positions cannot lie in 2 bytes"),
        (Lying("2 2 gaps", "2 1 gaps"), "2 numbers do not lie in|of 2 numbers"),
        (Lying("7", "7", 0), "1 numbers cannot lie in 16 bits"),
        (Lying("7", "7", 255), "bits follow the last of 2 numbers"),
    ],
)
def test_what_others_send_is_checked(collectives: Lying, message: str) -> None:
    scores = [{"p": torch.arange(100.0)}, {"p": torch.arange(100.0)}]
    with pytest.raises(FishexpError, match=message):
        means_of_best(collectives, scores, [7, 7], 2)


def pooled_units(collectives: Collectives) -> list[tuple[list[dict[str, Any]], int]]:
    """What a process selects of units by pooled scores, and the bytes that it has sent by then."""
    results, ranks = [], collectives.local_ranks
    for kind, unit in product(("heavy tails", "ties", "negative"), UNITS):
        scores = drawn(kind, [(7, 50), (6, 4, 3, 3), (30,), (10,)], collectives.world_size, seed=1)
        own = pooled_scores(collectives, [scores[rank] for rank in ranks], [1 + rank for rank in ranks])
        masks = [top_k(own, 0.2, ["p3"], unit), *split(own, 0.2, 2, ["p3"], unit)]
        results.append(
            ([{name: kept.numpy() for name, kept in mask.items()} for mask in masks], collectives.bytes_sent)
        )
    return results


def test_processes_select_the_units_that_workers_in_one_process_do(tmp_path: Path) -> None:
    expected = pooled_units(InProcessCollectives(3))
    with Workers(3, tmp_path, pooled_units) as workers:
        for results in workers.results():
            for (found, sent), (together, bytes_) in zip(results, expected, strict=True):
                assert sent == bytes_
                assert all(f[n].tobytes() == t[n].tobytes() for f, t in zip(found, together, strict=True) for n in t)


@pytest.mark.parametrize("unit", UNITS[1:])
@pytest.mark.parametrize("head", [(), ("p3",)])
def test_the_units_are_those_of_the_mean_of_everything_for_few_bytes(unit: Unit, head: tuple[str, ...]) -> None:
    """Sums of small numbers are exact in any order, so that ties are ties."""
    scores, examples = drawn("ties", [(64, 50), (8, 4, 3, 3), (30,), (10,)], 3, seed=4), [1, 3, 4]
    expected = dense(scores, examples)
    for keep in (0.05, 0.2, 0.6):
        collectives = InProcessCollectives(3)
        found = top_k(pooled_scores(collectives, scores, examples), keep, head, unit)
        mask = top_k(expected, keep, head, unit)
        assert all(torch.equal(found[name], mask[name]) for name in mask)
        assert collectives.bytes_sent < 0.2 * 8 * sum(score.numel() for score in expected.values())


def test_a_nan_is_refused_where_a_mask_of_units_is_made() -> None:
    scores = drawn("heavy tails", [(30, 2), (4, 4)], 2, seed=0)
    scores[1]["p1"][0, 0] = torch.nan
    for always in ((), ("p1",)):
        pooled = pooled_scores(InProcessCollectives(2), scores, [1, 1])
        assert refusal(top_k, pooled, 0.5, always, "row").startswith("the scores of p1 hold NaN")
    assert top_k(pooled_scores(InProcessCollectives(2), scores, [1, 0]), 0.5, ["p1"], "row")["p1"].all()
