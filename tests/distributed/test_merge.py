"""What several workers' values become, and a digest that no single changed bit escapes."""

import pytest
import torch
from torch import Tensor

from fishexp.distributed.merge import Merge, digest, merge_changes, merge_values


def values(workers: int, entries: int, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    """Make values that workers have, and had: some entries unchanged, some changed by a worker, on many scales."""
    generator = torch.Generator().manual_seed(workers)
    before = torch.randn(entries, generator=generator) * 10.0 ** torch.randint(-6, 6, (entries,), generator=generator)
    rows = before.repeat(workers, 1)
    moved = torch.rand(workers, entries, generator=generator) < 0.4
    rows[moved] += torch.randn(int(moved.sum()), generator=generator)
    return rows.to(dtype), before.to(dtype)


@pytest.mark.parametrize("workers", [1, 2, 3, 7])
@pytest.mark.parametrize("how", ["mean", "sum"])
def test_the_sum_and_the_mean_are_rounded_once(how: Merge, workers: int) -> None:
    rows, before = values(workers, 4000)
    exact = rows.double().mean(0) if how == "mean" else before.double() + (rows.double() - before.double()).sum(0)
    found = merge_values(rows, before, how)
    assert found.dtype == torch.float32
    ulp = torch.nextafter(exact.float().abs(), torch.tensor(torch.inf)) - exact.float().abs()
    # half a unit in the last place, and a little for the order of additions in float64
    assert bool(((found.double() - exact).abs() <= 0.500001 * ulp.double() + 1e-13 * rows.abs().max(0).values).all())


@pytest.mark.parametrize("workers", [2, 3, 7])
def test_what_one_worker_moved_arrives_as_its_bits(workers: int) -> None:
    """Sums would round: before + (value - before) is another number where their scales are far apart."""
    rows, before = values(workers, 4000)
    rows[0, :4] = torch.tensor([1e-30, -0.0, 3e38, 1e-45])
    before[:4] = torch.tensor([1e8, 0.0, -3e38, 1.0])
    rows[1:, :4] = before[:4]
    only = (rows != before).sum(0) == 1
    only[:4] = True
    moved = torch.where(rows.view(torch.int32) != before.view(torch.int32), 1, 0)
    expected = rows.gather(0, moved.argmax(0, keepdim=True))[0]
    found = merge_values(rows, before, "sum")
    assert torch.equal(found.view(torch.int32)[only], expected.view(torch.int32)[only])
    naive = before + (rows - before).sum(0)
    assert not torch.equal(naive[only], expected[only])  # or this test could not fail


@pytest.mark.parametrize("how", ["mean", "sum"])
def test_what_nobody_moved_stays(how: Merge) -> None:
    rows, before = values(5, 4000)
    still = (rows == before).all(0)
    assert 100 < still.sum() < 1000
    assert torch.equal(merge_values(rows, before, how)[still].view(torch.int32), before[still].view(torch.int32))


def test_changes_combine_in_their_own_type() -> None:
    rows, _ = values(3, 100, torch.bfloat16)
    assert torch.equal(merge_changes(rows, "mean"), (rows.double().sum(0) / 3).bfloat16())
    assert torch.equal(merge_changes(rows, "sum"), rows.double().sum(0).bfloat16())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.int64, torch.bool])
def test_a_digest_differs_with_any_bit(dtype: torch.dtype) -> None:
    generator = torch.Generator().manual_seed(0)
    first = torch.randint(0, 2 if dtype == torch.bool else 100, (50,), generator=generator).to(dtype)
    second = torch.randn(7)
    known = digest([first, second])
    assert known == digest([first.clone(), second.clone()])
    assert -(2**63) <= known < 2**63
    size = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}[first.element_size()]
    found = set()
    for entry in range(50):
        for bit in range(8 * first.element_size() if dtype != torch.bool else 1):
            changed = first.clone()
            changed.view(size)[entry] ^= 1 << bit if bit < 8 * first.element_size() - 1 else torch.iinfo(size).min
            found.add(digest([changed, second]))
    assert known not in found
    assert digest([second, first]) != known
    assert digest([first[:-1], second]) != known


def test_a_digest_of_many_entries_sees_the_last_piece() -> None:
    many = torch.zeros((1 << 20) + 3)
    known = digest([many])
    many[-1] = 1
    assert digest([many]) != known
