"""Positions: exact, about as short as the entropy, and safe to read from anywhere."""

import contextlib
import math
import random
import tracemalloc
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fishexp.errors import DeltaError
from fishexp.masks import position_codec

BIG = (1024, 1024)
LINES = [" of rows", " of columns", " of channels"]
CODINGS = [way + order for way in ("gaps", "holes", "runs") for order in ("", " by column", *LINES)]
SHAPES = st.lists(st.integers(0, 9), max_size=4).map(tuple)


def entropy(numel: int, count: int) -> float:
    """Bits that name one of all subsets of ``count``: log2 of the binomial coefficient, exact to the last digits."""
    return math.log2(math.comb(numel, count)) if numel < 2**16 else _long_entropy(numel, count)


def _long_entropy(numel: int, count: int) -> float:
    return (math.lgamma(numel + 1) - math.lgamma(count + 1) - math.lgamma(numel - count + 1)) / math.log(2)


def at_random(shape: tuple[int, ...], density: float, seed: int = 0) -> Tensor:
    """Positions of exactly that share of the entries."""
    numel = math.prod(shape)
    chosen = torch.randperm(numel, generator=torch.Generator().manual_seed(seed))[: round(density * numel)]
    return chosen.sort().values


def size(places: Tensor, shape: tuple[int, ...]) -> int:
    """Bits, after a check that they come back."""
    coding, data = position_codec.encode(places, shape)
    assert data.dtype == torch.uint8
    assert torch.equal(position_codec.decode(data, coding, len(places), shape), places)
    return 8 * len(data)


@pytest.mark.parametrize("density", [1e-4, 1e-3, 0.0031, 0.005, 0.0077, 0.01, 0.0149, 0.02, 0.0296, 0.035, 0.04, 0.05])
@pytest.mark.parametrize("shape", [BIG, (2**18,)])
def test_random_masks_take_at_most_2_percent_more_than_their_entropy(shape: tuple[int, ...], density: float) -> None:
    places = at_random(shape, density)
    assert size(places, shape) <= 1.02 * entropy(math.prod(shape), len(places)) + 7


@pytest.mark.parametrize(
    "density", [0.0584, 0.1, 0.11, 0.2, 0.3, 0.382, 0.45, 0.5, 0.55, 0.618, 0.7, 0.8, 0.9, 0.99, 0.9999]
)
def test_dense_random_masks_take_at_most_4_and_a_half_percent_more(density: float) -> None:
    places = at_random(BIG, density)
    assert size(places, BIG) <= 1.045 * entropy(2**20, len(places)) + 7


def test_the_mask_of_a_model_with_many_small_tensors() -> None:
    """Biases hold a handful of entries each: what one costs beside them counts 240 times."""
    shapes = [(384, 384), (384,), (384,), (1536, 384), (1536,), (10,), (7,), (1,), ()] * 40
    places = [at_random(shape, 0.005, seed) for seed, shape in enumerate(shapes)]
    places[5] = torch.tensor([3])
    total = sum(entropy(math.prod(shape), len(p)) for shape, p in zip(shapes, places, strict=True))
    assert sum(size(p, shape) for p, shape in zip(places, shapes, strict=True)) <= 1.02 * total


def test_none_and_all_take_nothing() -> None:
    for shape in [BIG, (5,), (), (0,), (3, 0)]:
        assert size(torch.arange(0), shape) == 0
        assert size(torch.arange(math.prod(shape)), shape) == 0


def in_columns(shape: tuple[int, int], columns: int, density: float) -> Tensor:
    """The first so many columns of a matrix, at random, hold entries, of that share."""
    generator = torch.Generator().manual_seed(1)
    mask = torch.zeros(shape, dtype=torch.bool)
    chosen = torch.randperm(shape[1], generator=generator)[:columns]
    mask[:, chosen] = torch.rand(shape[0], columns, generator=generator) < density
    return mask


@pytest.mark.parametrize(("density", "share"), [(1.0, 0.02), (0.8, 0.3), (0.3, 0.6), (0.1, 0.9)])
@pytest.mark.parametrize("turned", [False, True])
def test_masks_in_whole_columns_or_rows_take_less_than_their_entropy(
    density: float, share: float, turned: bool
) -> None:
    mask = in_columns((1024, 512), 26, density)
    mask = mask.T.contiguous() if turned else mask
    places = mask.flatten().nonzero().flatten()
    assert size(places, tuple(mask.shape)) <= share * entropy(mask.numel(), len(places))


def in_lines(shape: tuple[int, ...], order: str, chosen: list[int]) -> Tensor:
    """Positions of whole rows, columns or channels."""
    mask = torch.zeros(shape, dtype=torch.bool)
    if order == " of rows":
        mask[chosen] = True
    elif order == " of channels":
        mask[:, chosen] = True
    else:
        mask.view(shape[0], -1)[:, chosen] = True
    return mask.flatten().nonzero().flatten()


@pytest.mark.parametrize("shape", [(384, 1536), (1536, 384), (64, 128, 3, 3), (7, 5), (3, 2, 1, 1), (2, 3, 4)])
@pytest.mark.parametrize("order", LINES)
@pytest.mark.parametrize("share", [0.02, 0.3, 0.9])
def test_a_line_costs_its_bits_once(shape: tuple[int, ...], order: str, share: float) -> None:
    lines = shape[0] if order == " of rows" else shape[1] if order == " of channels" else math.prod(shape[1:])
    chosen = at_random((lines,), max(share, 1 / lines)).tolist()
    places = in_lines(shape, order, chosen)
    coding, data = position_codec.encode(places, shape)
    assert torch.equal(position_codec.decode(data, coding, len(places), shape), places)
    if len(places) < math.prod(shape):
        assert coding.partition(" ")[2] in (order[1:], "of columns")  # which are a matrix's channels
        assert 8 * len(data) <= 1.06 * entropy(lines, len(chosen)) + 16


def test_lines_that_are_not_whole_are_entries() -> None:
    for order in LINES:
        places = in_lines((64, 12, 3, 3), order, [3, 4, 9])
        for spoilt in (places[1:], places[:-1], places[places != places[len(places) // 2]]):
            coding, data = position_codec.encode(spoilt, (64, 12, 3, 3))
            assert " of " not in coding
            assert torch.equal(position_codec.decode(data, coding, len(spoilt), (64, 12, 3, 3)), spoilt)


def test_lines_that_a_tensor_does_not_have_are_refused() -> None:
    for coding, count, shape in [
        ("gaps of rows", 3, (9,)), ("gaps of channels", 3, (3, 3)), ("gaps of columns", 4, (3, 5)),
        ("runs of rows", 4, (3, 5)), ("gaps of rows", 0, (0, 5)), ("gaps of rows", 0, (5, 0)),
    ]:  # fmt: skip
        refused([0], coding, count, shape, "has no ")
    refused([0], "gaps of lines", 3, (3, 3), "cannot read; update fishexp")
    refused([0b10000000], "gaps of rows", 1 << 40, (2, 1 << 40), "cannot lie in 1 bytes")


@given(shape=SHAPES, data=st.data())
def test_any_positions_come_back(shape: tuple[int, ...], data: st.DataObject) -> None:
    numel = math.prod(shape)
    dense = data.draw(st.booleans())
    some = data.draw(st.sets(st.integers(0, max(numel - 1, 0)), max_size=numel))
    places = sorted(set(range(numel)) - some if dense else some & set(range(numel)))
    size(torch.tensor(places, dtype=torch.int64), shape)


@given(
    shape=st.sampled_from([(2**40,), (2**20, 2**20), (2**61 - 1,), (3, 2**59)]),
    data=st.data(),
)
def test_few_positions_in_huge_tensors(shape: tuple[int, ...], data: st.DataObject) -> None:
    places = sorted(data.draw(st.sets(st.integers(0, math.prod(shape) - 1), max_size=200)))
    size(torch.tensor(places, dtype=torch.int64), shape)


@given(
    runs=st.lists(st.tuples(st.integers(0, 300), st.integers(1, 300)), min_size=1, max_size=40), rows=st.integers(1, 5)
)
def test_runs_of_any_length_come_back(runs: list[tuple[int, int]], rows: int) -> None:
    mask = torch.cat([torch.cat([torch.zeros(gap), torch.ones(length)]) for gap, length in runs])
    mask = torch.cat([mask, torch.zeros(-len(mask) % rows)]).bool()
    size(mask.nonzero().flatten(), (rows, len(mask) // rows))


@given(
    numbers=st.lists(st.integers(0, 2**54) | st.integers(0, 9), max_size=300),
    guess=st.integers(0, 2**62),
    tail=st.integers(0, 7),
)
def test_numbers_come_back_in_as_many_bits_as_were_said(numbers: list[int], guess: int, tail: int) -> None:
    array = torch.tensor(numbers, dtype=torch.int64).numpy()
    widths, bits = position_codec.rice_widths(array, guess)
    written = position_codec.rice_encode(array, widths, guess)
    assert len(written) == bits
    padded = torch.cat([torch.from_numpy(written), torch.zeros(tail, dtype=torch.uint8)]).numpy()
    assert position_codec.rice_decode(padded, len(numbers), guess).tolist() == numbers


def test_every_coding_is_the_best_somewhere() -> None:
    found = set()
    for mask in (at_mask(0.1, 1), at_mask(0.8, 1), at_mask(0.5, 16)):
        for turned in (mask, mask.T.contiguous()):
            found.add(position_codec.encode(turned.flatten().nonzero().flatten(), tuple(turned.shape))[0])
    for order in LINES:
        number = 256 if order == " of columns" else 64
        for lines in (at_random((number,), 0.1), at_random((number,), 0.8), torch.arange(9, 41)):
            found.add(position_codec.encode(in_lines((64, 64, 2, 2), order, lines.tolist()), (64, 64, 2, 2))[0])
    assert found == set(CODINGS)


def at_mask(density: float, run: int) -> Tensor:
    """Rows of different densities, in runs along the row."""
    generator = torch.Generator().manual_seed(2)
    odds = (torch.arange(64) % 2)[:, None] * 0.3 + density - 0.15
    return (torch.rand(64, 512 // run, generator=generator) < odds).repeat_interleave(run, 1)


def test_the_bytes_are_the_documented_ones() -> None:
    """By hand: what a name means must never change."""
    for places, shape, coding, bits in [
        # left out: 1, 0, 5 of 7, so 2 are expected and width 1; no change 1, low bits 1 0 1, quotients 0, 0, 2
        ([1, 2, 8], (10,), "gaps", "1 101 1 1 001"),
        # the second of five columns of four: 4, 5, 6 of the transpose; of 17, 5 are expected, width 2, by -2 to 0
        ([1, 6, 11], (4, 5), "gaps by column", "0001 00001 1 1"),
        # 3 is left out of 10: before it 3, 9 are expected, width 3, by -2; low bit 1, quotient 1
        ([0, 1, 2, 4, 5, 6, 7, 8, 9], (10,), "holes", "0001 1 01"),
        # one run, in six bits; 2 before and 31 more than one; of 8 left out, 4 are expected, width 2, by +2 to 4
        (range(2, 34), (40,), "runs", "000001 00001 0010 1111 1 01"),
        # the rows 1, 2 and 8 of 10, as above; the first of two columns of four, in one bit; the second of two channels
        ([3, 4, 5, 6, 7, 8, 24, 25, 26], (10, 3), "gaps of rows", "1 101 1 1 001"),
        ([0, 2, 4, 6], (4, 2), "gaps of columns", "1 1"),
        ([3, 4, 5, 9, 10, 11], (2, 2, 3), "gaps of channels", "1 01"),
    ]:
        found, data = position_codec.encode(torch.tensor(places), shape)
        assert found == coding
        assert data.tolist() == as_bytes(bits.replace(" ", ""))


def test_positions_out_of_order_or_outside_are_refused() -> None:
    for places in ([3, 3], [4, 2], [-1, 2], [0, 10]):
        with pytest.raises(DeltaError, match="positions have to ascend, from 0 on and below 10"):
            position_codec.encode(torch.tensor(places), (2, 5))


def test_what_does_not_fit_is_refused_in_one_line() -> None:
    data = torch.zeros(4, dtype=torch.uint8)
    for coding, count, shape, words in [
        ("zstd", 1, (9,), "'zstd', which this version cannot read; update fishexp"),
        ("gaps", 33, (99,), "33 positions cannot lie in 4 bytes"),
        ("gaps", 5, (4,), "has no 5 positions"),
        ("gaps", -1, (4,), "has no -1 positions"),
        ("gaps by column", 1, (9,), "has no 1 positions"),
        ("runs", 1 << 40, (1 << 41,), "cannot lie in 4 bytes"),
        ("holes", 1 << 40, (1 << 41,), "cannot lie in 4 bytes"),
        ("gaps", 1, (-3, -3), r"cannot have the shape \(-3, -3\)"),
        ("gaps", 1, (1 << 40, 1 << 40), "cannot have the shape"),
    ]:
        with pytest.raises(DeltaError, match=words):
            position_codec.decode(data, coding, count, shape)


def refused(data: list[int], coding: str, count: int, shape: tuple[int, ...], words: str) -> None:
    with pytest.raises(DeltaError, match=words):
        position_codec.decode(torch.tensor(data, dtype=torch.uint8), coding, count, shape)


def test_nothing_may_follow_the_last_position() -> None:
    for shape, places in [((10,), [1, 2, 8]), ((9, 4), range(3, 30)), ((9, 4), []), ((9, 4), range(36))]:
        coding, encoded = position_codec.encode(torch.tensor(places, dtype=torch.int64), shape)
        data = encoded.tolist()
        refused([*data, 0], coding, len(places), shape, "bits follow the last of")
        refused([*data, 128], coding, len(places), shape, "bits follow the last of")
    assert position_codec.encode(torch.tensor([1, 2, 8]), (10,))[1].tolist() == [0b11011100, 0b10000000]
    refused([0b11011100, 0b10000001], "gaps", 3, (10,), "7 bits follow the last of 3 numbers")


def packed(numbers: list[int], widths: list[int], guess: int, head: str = "") -> list[int]:
    bits = position_codec.rice_encode(np.array(numbers, np.int64), np.array(widths, np.int64), guess).tolist()
    return as_bytes(head + "".join(map(str, bits)))


def as_bytes(bits: str) -> list[int]:
    return [int(bits[i : i + 8].ljust(8, "0"), 2) for i in range(0, len(bits), 8)]


def test_numbers_too_large_are_refused_before_they_overflow() -> None:
    shape, numel = (2**62 - 1,), 2**62 - 1
    most = numel - 1  # the position of the last entry
    assert position_codec.decode(torch.tensor(packed([most], [61], most), dtype=torch.uint8), "gaps", 1, shape) == most
    refused(packed([most + 1], [61], most), "gaps", 1, shape, "a position is not below")
    refused(packed([2**61] * 4, [61], (numel - 4) // 4), "gaps", 4, shape, "a position is not below")  # 2**63 in sum
    for widen, width, quotient, words in [(4, 63, 0, "63 low bits"), (2, 62, 2, r"2\*\*63 or more")]:  # 61 is usual
        refused(as_bytes("0" * widen + "1" + "0" * width + "0" * quotient + "1"), "gaps", 1, shape, words)


def test_runs_that_do_not_fit_are_refused() -> None:
    """Six entries of 20: before, less one (but of the first), and length less one; the number of runs in 3 bits."""
    shape, guess = (20,), 14 // 4
    good = packed([2, 0, 3, 1], [1], guess, "010")
    assert position_codec.decode(torch.tensor(good, dtype=torch.uint8), "runs", 6, shape).tolist() == [2, 3, 4, 5, 7, 8]
    last = packed([2, 11, 3, 1], [1], guess, "010")
    assert position_codec.decode(torch.tensor(last, dtype=torch.uint8), "runs", 6, shape)[-1] == 19
    refused(packed([2, 12, 3, 1], [1], guess, "010"), "runs", 6, shape, "the runs are not those of 6 positions")
    refused(packed([2, 0, 3, 2], [1], guess, "010"), "runs", 6, shape, "the runs are not those of 6 positions")
    refused(packed([2, 0, 3, 0], [1], guess, "010"), "runs", 6, shape, "the runs are not those of 6 positions")
    refused(packed([], [], 0, "000"), "runs", 6, shape, "6 positions do not come in 0 runs")
    refused(packed([0] * 14, [0], 1, "111"), "runs", 6, shape, "6 positions do not come in 7 runs")
    refused([], "runs", 6, shape, "6 positions do not come in 0 runs")


def test_nothing_by_column_has_no_columns() -> None:
    refused([], "gaps by column", 0, (0, 3), "has no 0 positions coded as 'gaps by column'")


def test_many_entries_take_a_bit_each_so_that_a_reader_can_trust_their_number() -> None:
    places = torch.arange(1, 101)
    for shape in [(101,), (10, 20)]:
        with mock.patch.object(position_codec, "MOST", 99):
            coding, data = position_codec.encode(places, shape)
            assert position_codec.decode(data, coding, 100, shape).equal(places)
            refused(
                position_codec.encode(torch.arange(100), (100,))[1].tolist()[:12],
                "gaps",
                100,
                (100,),
                "cannot lie in 12",
            )
        assert coding.startswith("gaps")
        assert len(data) >= 100 / 8
        assert len(position_codec.encode(places, shape)[1]) <= 3


@pytest.mark.parametrize("mean", [0.4, 1, 3, 100, 128, 135, 150, 200, 255])
def test_the_widths_are_the_best(mean: float) -> None:
    """Against all widths, block by block."""
    uniform = torch.rand(3200, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    numbers = (uniform.log() / math.log(mean / (mean + 1))).long()
    costs = [((numbers >> width) + 1 + width).view(-1, 32).sum(1) for width in range(12)]
    least = int(torch.stack(costs).min(0).values.sum())
    widths, _ = position_codec.rice_widths(numbers.numpy(), int(mean))
    chosen = int(((numbers >> torch.from_numpy(widths).repeat_interleave(32)) + 1).sum()) + 32 * int(widths.sum())
    assert chosen <= 1.0025 * least


def hostile(rng: random.Random) -> tuple[Tensor, str, int, tuple[int, ...]]:
    """Random bytes, or true ones with some bits, the count, the coding or the shape changed."""
    shape = tuple(rng.choice([0, 1, 2, 3, 7, 64, 2**10, 2**30, 2**62]) for _ in range(rng.randrange(4)))
    coding, count = rng.choice(CODINGS), rng.choice([0, 1, 2, 9, 64, 65, 500, 2**20, 2**26, 2**40, 2**62])
    data = torch.tensor(
        [rng.choice([0, 1, 255, rng.randrange(256)]) for _ in range(rng.randrange(80))], dtype=torch.uint8
    )
    if rng.random() < 0.7:
        shape = rng.choice([(64, 64), (4096,), (8, 4, 3, 3), (2**40, 4), (5,)])
        places = torch.tensor(sorted(rng.sample(range(math.prod(shape)), rng.randrange(1, 5 * len(shape) + 1))))
        if rng.random() < 0.3:
            places = torch.arange(rng.randrange(5), math.prod(shape) if math.prod(shape) < 2**20 else 300)
        coding, data = position_codec.encode(places, shape)
        count = len(places)
        for _ in range(rng.randrange(3)):
            kind = rng.randrange(5)
            if kind == 0 and len(data):
                data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
            elif kind == 1:
                data = data[: rng.randrange(len(data) + 1)]
            elif kind == 2:
                data = torch.cat([data, torch.tensor([rng.choice([0, 255])], dtype=torch.uint8)])
            elif kind == 3:
                count = max(count + rng.choice([-1, 1, 64, -64]), 0)
            else:
                coding = rng.choice(CODINGS)
    return data, coding, count, shape


def test_whatever_is_read_is_refused_or_in_order_and_inside() -> None:
    rng, accepted, refused = random.Random(0), 0, 0
    for _ in range(3000):
        data, coding, count, shape = hostile(rng)
        try:
            with mock.patch.object(position_codec, "MOST", 2**20):
                places = position_codec.decode(data, coding, count, shape)
        except DeltaError:
            refused += 1
            continue
        accepted += 1
        assert places.dtype == torch.int64
        assert places.shape == (count,)
        assert (places.diff() > 0).all()
        assert not count or (places[0] >= 0 and places[-1] < math.prod(shape))
    assert min(accepted, refused) > 300


def test_reading_takes_memory_for_what_is_there_only() -> None:
    """Neither a large shape nor a count nor wide numbers make the reader allocate before the bytes justify it."""
    rng = random.Random(1)
    for _ in range(300):
        data = torch.tensor([rng.choice([0, 255, rng.randrange(256)]) for _ in range(2000)], dtype=torch.uint8)
        count = rng.choice([0, 1, 1000, 16000, 2**27, 2**40])
        way = rng.choice(["gaps", "gaps by column", "runs", "holes"])
        assert peak_of(data, way, count, (2**30, 2**20)) < 150 * 2000 + 100 * min(count, 16000) + 2**16
    ones = torch.full((2000,), 255, dtype=torch.uint8)  # widths of 32 numbers each
    assert peak_of(ones, "holes", 1, (1 + 16000 * 31,)) < 150 * 2000 + 2**16


def peak_of(data: Tensor, coding: str, count: int, shape: tuple[int, ...]) -> int:
    tracemalloc.start()
    with contextlib.suppress(DeltaError):
        position_codec.decode(data, coding, count, shape)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    return peak
