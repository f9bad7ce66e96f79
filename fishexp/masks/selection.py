"""Selection of the highest among scores of any types: no score is rounded, and nothing is sorted or put together.

A score ranks by its value as a float. That of an integer of 64 bits is rounded to a float64, and a second number, what
rounding took away, ranks those that have the same value.
"""

from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from fishexp.errors import FishexpError

DIGIT = 16  # bits of a score that are decided by one pass over all scores
CHUNK = 1 << 22  # scores looked at together

# types whose numbers are all exact in float32, in float64, and in float64 together with what rounding took away
_SINGLE = {
    torch.bool, torch.int8, torch.uint8, torch.int16, torch.uint16, torch.float32, torch.float16, torch.bfloat16,
    torch.float8_e4m3fn, torch.float8_e4m3fnuz, torch.float8_e5m2, torch.float8_e5m2fnuz, torch.float8_e8m0fnu,
}  # fmt: skip
_DOUBLE = {torch.float64, torch.int32, torch.uint32}
_LONG = {torch.int64, torch.uint64}
DTYPES = _SINGLE | _DOUBLE | _LONG

# low bits of an integer of 64 bits without which it is exact in float64
_LOW_BITS = 11
# what rounding to float64 takes away from an integer of 64 bits, at most
_LARGEST_REST = 1 << (_LOW_BITS - 1)


class Cut(NamedTuple):
    """Say where the selected scores end.

    Attributes:
        value: The lowest selected score, as a float.
        rest: What rounding took away from it.
        ties: How many scores equal to it are selected.
    """

    value: float
    rest: int
    ties: int


class Selection(NamedTuple):
    """Hold what was selected.

    Attributes:
        mask: name -> bool tensor, true where a score is selected.
        cut: Where the selected scores end.
        equal: How many scores equal the lowest selected one, selected or not.
    """

    mask: dict[str, Tensor]
    cut: Cut
    equal: int


def select_largest(scores: Mapping[str, Tensor], k: int) -> Selection:
    """Select exactly ``k`` scores: all above the k-th largest, then the first that equal it.

    Raises:
        FishexpError: If a score is NaN.
    """
    refuse_nan(scores, scores)
    mask = {name: torch.zeros(score.shape, dtype=torch.bool, device=score.device) for name, score in scores.items()}
    if k == 0:
        return Selection(mask, Cut(torch.inf, 0, 0), 0)
    single = all(score.dtype in _SINGLE for score in scores.values())
    dtype, exact = torch.float32 if single else torch.float64, not any(s.dtype in _LONG for s in scores.values())
    cut = _kth_largest(scores, k, dtype, exact)
    left, equal = cut.ties, 0
    for name, score in scores.items():
        for chunk, chosen in zip(_chunks(score), mask[name].view(-1).split(CHUNK), strict=True):
            value = _value(chunk, dtype)
            above, same = value > cut.value, value == cut.value
            if not exact:
                rest = _rest(chunk)
                above |= same & (rest > cut.rest)
                same &= rest == cut.rest
            count = int(same.count_nonzero())  # summing up bools is slow
            if count > left:
                same[same.nonzero()[left:]] = False
            chosen.copy_(above.logical_or_(same))
            left -= min(left, count)
            equal += count
    return Selection(mask, cut, equal)


def ranking(scores: Sequence[Tensor]) -> Tensor:
    """Return the order, from the highest on, of (entries,) scores one behind the other; equal ones stay as they are."""
    values = torch.cat([_value(score, torch.float64).cpu() for score in scores])
    order = torch.cat([_rest(score).cpu() for score in scores]).argsort(descending=True, stable=True)
    return order[values[order].argsort(descending=True, stable=True)]


def orders(rows: Tensor) -> Tensor:
    """Return the order of each row of (rows, entries) scores, from the highest on; equal ones stay as they are."""
    if rows.dtype not in _LONG:
        values = _value(rows, torch.float32 if rows.dtype in _SINGLE else torch.float64)
        return (values + 0.0).argsort(dim=1, descending=True, stable=True)  # -0.0 is 0.0
    order = _rest(rows).argsort(dim=1, descending=True, stable=True)
    values = _value(rows, torch.float64).gather(1, order)
    return order.gather(1, values.argsort(dim=1, descending=True, stable=True))


def refuse_nan(scores: Mapping[str, Tensor], names: Collection[str]) -> None:
    """Refuse scores of these names that hold NaN.

    Raises:
        FishexpError: If one does.
    """
    for name in names:
        score = scores[name].detach()
        if not score.is_floating_point() or not score.sum(dtype=torch.float32).isnan():
            continue
        if any(chunk.isnan().any() for chunk in _chunks(score)):  # or there are inf and -inf
            raise nan_error(name)


def nan_error(name: str) -> FishexpError:
    """Make the error that says whose scores hold NaN."""
    return FishexpError(f"the scores of {name} hold NaN: the model or its loss is broken on the scoring examples")


# `torch.kthvalue` is faster, but takes 16 bytes a score (all in one tensor, a copy, indices): 5 GB for BERT-large
def _kth_largest(scores: Mapping[str, Tensor], k: int, dtype: torch.dtype, exact: bool) -> Cut:
    """Find the k-th largest score, and how many equal to it are among the k largest.

    Radix selection: of the scores, read as integers of the same order, the 16 highest bits of the k-th largest are
    found by counting, then the next 16 among the scores that share these, and at last what rounding took away. The
    working memory is that of a chunk.

    Args:
        dtype: Of the scores' values.
        exact: Whether all values are exact, and rounding took nothing away.
    """
    bits = dtype.itemsize * 8
    known: int | None = None  # the highest bits of the k-th largest, as far as they are found
    # the least value of the known bits and the next digit together; the first digit has the sign
    lowest = -(1 << (DIGIT - 1))
    for shift in range(bits - DIGIT, -1, -DIGIT):
        counts = torch.zeros(1 << DIGIT, dtype=torch.int64, device="cpu")
        for keys in _keys(scores, dtype):
            candidates = keys if known is None else keys[keys >> (shift + DIGIT) == known]
            counts += torch.bincount((candidates >> shift) - lowest, minlength=1 << DIGIT).cpu()
        digit, k = _digit_of(counts, k)
        known = lowest + digit
        lowest = known << DIGIT
    key = torch.tensor(known, dtype=torch.int64 if bits == 64 else torch.int32, device="cpu")
    value, rest = _flipped(key).view(dtype).item(), 0
    if not exact:
        counts = torch.zeros(2 * _LARGEST_REST + 1, dtype=torch.int64, device="cpu")
        for score in scores.values():
            for chunk in _chunks(score):
                rests = _rest(chunk[_value(chunk, dtype) == value])
                counts += torch.bincount(rests + _LARGEST_REST, minlength=len(counts)).cpu()
        digit, k = _digit_of(counts, k)
        rest = digit - _LARGEST_REST
    return Cut(value, rest, k)


def _digit_of(counts: Tensor, k: int) -> tuple[int, int]:
    """Find the digit of the k-th largest from how many have which digit, and its rank among those with this digit."""
    at_least = counts.flip(0).cumsum(0)  # candidates with this digit or a higher one, from the highest digit on
    higher = int((at_least < k).sum())  # digits that are above the k-th largest's
    return len(counts) - 1 - higher, k - (int(at_least[higher - 1]) if higher else 0)


def _chunks(score: Tensor) -> tuple[Tensor, ...]:
    return score.detach().flatten().split(CHUNK)


def _keys(scores: Mapping[str, Tensor], dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the scores' values as integers of the same order, a chunk at a time; -0.0 is 0.0."""
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    for score in scores.values():
        for chunk in _chunks(score):
            yield _flipped((_value(chunk, dtype) + 0.0).view(integer))


def _flipped(number: Tensor) -> Tensor:
    """Turn a float's bits into an integer of the same order, and back: below zero all bits but the sign flip."""
    return torch.where(number < 0, number ^ torch.iinfo(number.dtype).max, number)


def _value(chunk: Tensor, dtype: torch.dtype) -> Tensor:
    """Return the scores as floats, rounded to the nearest only if they are integers of 64 bits."""
    if chunk.dtype not in _LONG:
        return chunk.to(dtype)
    high, low = _halves(chunk)
    return high + low


def _rest(chunk: Tensor) -> Tensor:
    """Return what rounding took away from the scores, as int64."""
    if chunk.dtype not in _LONG:
        return torch.zeros(chunk.shape, dtype=torch.int64, device=chunk.device)
    high, low = _halves(chunk)
    return ((high - (high + low)) + low).long()  # each step is exact


def _halves(chunk: Tensor) -> tuple[Tensor, Tensor]:
    """Return two float64 whose sum is an integer of 64 bits; its conversion back from float64 may overflow."""
    bits = chunk.view(torch.int64)
    high = bits >> _LOW_BITS
    if chunk.dtype == torch.uint64:
        high &= (1 << (64 - _LOW_BITS)) - 1
    return high.double() * (1 << _LOW_BITS), (bits & ((1 << _LOW_BITS) - 1)).double()
