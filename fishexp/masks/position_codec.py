"""Where the kept entries of a tensor lie, in about as few bits as there is to know.

A coding's name says what is written, and in which order the tensor is walked through:

- ``gaps``: how many entries are left out before each stored one;
- ``holes``: the same of the entries that are *not* stored;
- ``runs``: the number of runs of stored entries, in as many bits as the number of stored entries has; how many entries,
  less one, are left out before each run (one more before the first); how many entries, less one, each run has;
- ``... by column``: not the tensor as it lies in memory but, as a matrix of its first dimension by all others, column
  after column;
- ``... of rows``, ``... of columns``, ``... of channels``: not entries but lines, all entries of which are stored:
  those of a row share the first index, those of a channel the second, those of a column all but the first.

The writer takes whichever is the shortest. Masks of real tasks keep whole columns, the inputs that matter.

The numbers, non-negative and most of them small, are written as Rice codes. A number gives its low bits, ``width`` of
them, and what is above them, its quotient, in unary: that many zeros and a one. Every block of numbers has a width of
its own, so that the code follows what changes along the way. Three streams lie one behind the other:

- the widths, each as its difference to the one before, in unary: 0, -1, 1, -2, 2 ... are 0, 1, 2, 3, 4 zeros and a one;
- the low bits, highest first: those of the blocks of width 1, then 2, and so on;
- the quotients, to the end.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fishexp.errors import DeltaError

BLOCK = 32  # numbers that share a width
WIDEST = 62  # low bits of a number below 2**63
WORDS = (1, 2, 4, 8)  # bytes of the machine's integers

MOST = 1 << 27  # entries of a tensor that may take less than a bit each: what a reader makes room for in good faith
LARGEST = (1 << 62) - 1  # entries of a tensor at most
# what a coding's name ends with, unless single entries are written in the order of memory -> dimensions at least
BY_COLUMN, ROWS, COLUMNS, CHANNELS = " by column", " of rows", " of columns", " of channels"
ORDERS = {"": 0, BY_COLUMN: 2, ROWS: 2, COLUMNS: 2, CHANNELS: 3}

Bits = NDArray[np.uint8]  # a bit each
Numbers = NDArray[np.int64]

NONE = np.zeros(0, np.uint8)


class Code(NamedTuple):
    """Describe a way to write the positions, before they are written."""

    coding: str
    size: int  # bits
    bits: Callable[[], Bits]


def encode(positions: Tensor, shape: tuple[int, ...], most: int | None = None) -> tuple[str, Tensor]:
    """Write positions in the shortest coding.

    Args:
        positions: (entries,) int64, strictly ascending, in the flattened tensor of ``shape``.
        shape: Of the tensor.
        most: Entries that may take less than a bit each, :data:`MOST` if None; more of them are written as gaps.

    Returns:
        The name of the coding, and uint8 (bytes,). The same for the same positions, on any machine.
    """
    numel = _numel(shape)
    places = positions.numpy()
    if len(places) and (places[0] < 0 or places[-1] >= numel or (places[1:] <= places[:-1]).any()):
        raise DeltaError(f"positions have to ascend, from 0 on and below {numel}")
    most = MOST if most is None else most
    codes = [_shortest(places, numel, "", most)]
    if len(shape) > 1 and 0 < len(places) < numel:
        columns = np.sort(_transposed(places, shape[0], numel // shape[0]))
        codes.append(_shortest(columns, numel, BY_COLUMN, most))
        for order in (ROWS, COLUMNS, CHANNELS) if len(places) <= most else ():
            line = _line(order, shape)
            lines = _lines(places if order == ROWS else columns, line)
            if lines is not None:
                codes.append(_shortest(lines, numel // line, order, most))
    best = min(codes, key=lambda code: code.size)
    return best.coding, torch.from_numpy(np.packbits(best.bits()))


def decode(data: Tensor, coding: str, count: int, shape: tuple[int, ...]) -> Tensor:
    """Read the positions that :func:`encode` wrote; whatever ``data`` holds, they are in order and inside the tensor.

    Memory is at most some dozen times the bytes of ``data`` and of the result. A ``count`` that ``data`` does not
    justify is refused above :data:`MOST`; below it, ask for no more entries than there are values.

    Args:
        data: uint8 (bytes,).

    Returns:
        (count,) int64, strictly ascending, in the flattened tensor of ``shape``.

    Raises:
        DeltaError: If ``data`` are not ``count`` positions of such a tensor in ``coding``.
    """
    numel = _numel(shape)
    way = coding.split(" ")[0]
    order = coding.removeprefix(way)
    if way not in READERS or order not in ORDERS:
        raise DeltaError(f"positions are coded as {coding!r}, which this version cannot read; update fishexp")
    fits = len(shape) >= ORDERS[order] and (not order or numel > 0)
    line = _line(order, shape) if fits else 1
    if not 0 <= count <= numel or not fits or count % line:
        raise DeltaError(f"a tensor of shape {shape} has no {count} positions coded as {coding!r}")
    if count > (8 * len(data) if way == "gaps" and line == 1 else MOST):
        raise DeltaError(f"{count} positions cannot lie in {len(data)} bytes coded as {coding!r}")
    places = READERS[way](np.unpackbits(data.numpy()), count // line, numel // line)
    if line > 1:
        places = (line * places[:, None] + np.arange(line)).ravel()
    if order not in ("", ROWS):
        places = np.sort(_transposed(places, numel // shape[0], shape[0]))
    return torch.from_numpy(places)


def _line(order: str, shape: tuple[int, ...]) -> int:
    """Count the entries of a line; of a tensor that has enough dimensions and no empty one."""
    if order in ("", BY_COLUMN):
        return 1
    return shape[0] if order == COLUMNS else math.prod(shape) // shape[order == CHANNELS]


def _lines(places: Numbers, line: int) -> Numbers | None:
    """Return the numbers of the lines of so many entries that the ascending ``places`` fill; None if they do not."""
    if line < 2 or len(places) % line:
        return None
    lines = places.reshape(-1, line)
    number, offset = np.divmod(lines[:, 0], line)
    return None if offset.any() or (lines[:, -1] - lines[:, 0] >= line).any() else number


def _shortest(places: Numbers, numel: int, order: str, most: int) -> Code:
    """Find the best way to write positions in the order in which they are given."""
    count = len(places)
    gaps = np.diff(places, prepend=-1) - 1
    codes = [_code("gaps" + order, gaps, numel - count)]
    if count > most:
        return codes[0]
    if count > numel // 2:
        codes.append(_code("holes" + order, np.diff(_others(places, numel), prepend=-1) - 1, count))
    first = np.flatnonzero(gaps)  # of each run, but for one that begins the tensor
    if 2 * len(first) < count:
        first = np.union1d(first, [0])
        before = gaps[first]
        before[1:] -= 1
        lengths = np.diff(first, append=count)
        codes.append(_code("runs" + order, np.append(before, lengths - 1), numel - count, _digits(len(first), count)))
    return min(codes, key=lambda code: code.size)


def _code(coding: str, numbers: Numbers, total: int, head: Bits = NONE) -> Code:
    guess = total // max(len(numbers), 1)
    widths, size = rice_widths(numbers, guess)
    return Code(coding, len(head) + size, lambda: np.append(head, rice_encode(numbers, widths, guess)))


def _read_gaps(bits: Bits, count: int, numel: int) -> Numbers:
    gaps = rice_decode(bits, count, (numel - count) // max(count, 1))
    if _total(gaps) > numel - count:
        raise DeltaError(f"a position is not below {numel}")
    return (gaps + 1).cumsum() - 1


def _read_holes(bits: Bits, count: int, numel: int) -> Numbers:
    return _others(_read_gaps(bits, numel - count, numel), numel)


def _read_runs(bits: Bits, count: int, numel: int) -> Numbers:
    runs = int("0" + "".join(map(str, bits[: count.bit_length()])), 2)
    if not 0 < runs <= count:
        raise DeltaError(f"{count} positions do not come in {runs} runs")
    pairs = rice_decode(bits[count.bit_length() :], 2 * runs, (numel - count) // (2 * runs))
    before, lengths = pairs[:runs], pairs[runs:]
    if _total(lengths) != count - runs or _total(before) > numel - count - (runs - 1):
        raise DeltaError(f"the runs are not those of {count} positions below {numel}")
    before[1:] += 1
    return np.arange(count) + np.repeat(before.cumsum(), lengths + 1)


READERS = {"gaps": _read_gaps, "holes": _read_holes, "runs": _read_runs}


def _others(places: Numbers, numel: int) -> Numbers:
    """Return all places but these."""
    free = np.ones(numel, bool)
    free[places] = False
    return np.flatnonzero(free)


def _transposed(places: Numbers, rows: int, columns: int) -> Numbers:
    """Return where the entries of a matrix lie in its transpose, in the order of ``places``."""
    row, column = np.divmod(places, columns)
    return column * rows + row


def _digits(number: int, most: int) -> Bits:
    """Write a number in as many bits as ``most`` takes, highest first."""
    return np.array([int(digit) for digit in f"{number:0{most.bit_length()}b}"], np.uint8)


def _total(numbers: Numbers) -> int:
    """Sum up numbers below 2**63; the sum may itself be more."""
    return (int((numbers >> 32).sum()) << 32) + int((numbers & 0xFFFFFFFF).sum())


def _numel(shape: tuple[int, ...]) -> int:
    if min(shape, default=0) < 0 or (numel := math.prod(shape)) > LARGEST:
        raise DeltaError(f"a tensor cannot have the shape {shape}")
    return numel


def rice_widths(numbers: Numbers, guess: int) -> tuple[Numbers, int]:
    """Choose the width of each block, and count the bits that :func:`rice_encode` then needs.

    Args:
        numbers: (count,) non-negative, below 2**63 in sum.
        guess: What the reader takes for their mean.
    """
    blocks = -(-len(numbers) // BLOCK)
    sizes = np.full(blocks, BLOCK)
    sizes[-1:] -= blocks * BLOCK - len(numbers)
    rows = np.pad(numbers, (0, blocks * BLOCK - len(numbers))).reshape(blocks, BLOCK)
    # of a mean from 2**width to 2 * 2**width: the best of a geometric distribution, or as good within half a percent
    widths = np.maximum(np.frexp((rows.sum(1) // sizes).astype(np.float64))[1].astype(np.int64) - 1, 0)
    quotients = int((rows >> widths[:, None]).sum())
    changes = int(_changes(widths, guess).sum())
    return widths, changes + blocks + int((widths * sizes).sum()) + quotients + len(numbers)


def rice_encode(numbers: Numbers, widths: Numbers, guess: int) -> Bits:
    """Write ``numbers`` as bits, with the widths of :func:`rice_widths` and the same ``guess``."""
    each = np.repeat(widths, BLOCK)[: len(numbers)]
    low = [_low_bits(numbers[each == width], width) for width in _distinct(widths)]
    return np.concatenate([_unary(_changes(widths, guess)), *low, _unary(numbers >> each)])


def rice_decode(bits: Bits, count: int, guess: int) -> Numbers:
    """Read the ``count`` numbers that :func:`rice_encode` wrote.

    Raises:
        DeltaError: If ``bits`` are not those of ``count`` numbers below 2**63, and up to seven zeros.
    """
    if count > len(bits):
        raise DeltaError(f"{count} numbers cannot lie in {len(bits)} bits")
    blocks = -(-count // BLOCK)
    folded, place = _read_unary(bits, blocks)
    widths = _usual_width(guess) + np.where(folded % 2 == 1, -(folded // 2) - 1, folded // 2).cumsum()
    if ((widths < 0) | (widths > WIDEST)).any():
        raise DeltaError(f"a number has {widths.min()} or {widths.max()} low bits, of 0 to {WIDEST}")
    each = np.repeat(widths, BLOCK)[:count]
    if int(each.sum()) + count > len(bits) - place:
        raise DeltaError(f"the low bits of {count} numbers do not lie in {len(bits)} bits")
    low = np.zeros(count, np.int64)
    for width in _distinct(widths):
        these = each == width
        end = place + int(these.sum()) * width
        low[these] = _from_low_bits(bits[place:end], width)
        place = end
    quotients, used = _read_unary(bits[place:], count)
    behind = bits[place + used :]
    if len(behind) > 7 or behind.any():
        raise DeltaError(f"{len(behind)} bits follow the last of {count} numbers")
    if (quotients > np.iinfo(np.int64).max >> each).any():
        raise DeltaError("a number is 2**63 or more")
    return quotients << each | low


def _usual_width(mean: int) -> int:
    return max(mean.bit_length() - 1, 0)


def _changes(widths: Numbers, guess: int) -> Numbers:
    """Return how the width changes from block to block, folded to non-negative numbers."""
    change = np.diff(widths, prepend=_usual_width(guess))
    return 2 * np.abs(change) - (change < 0)


def _distinct(widths: Numbers) -> list[int]:
    return [int(width) for width in np.flatnonzero(np.bincount(widths, minlength=1)) if width]


def _unary(numbers: Numbers) -> Bits:
    ends = numbers.cumsum() + np.arange(len(numbers))
    bits = np.zeros(int(ends[-1]) + 1 if len(ends) else 0, np.uint8)
    bits[ends] = 1
    return bits


def _read_unary(bits: Bits, count: int) -> tuple[Numbers, int]:
    """Read ``count`` numbers, and count the bits that they took."""
    ends = np.flatnonzero(bits[: 8 * count])[:count]  # mostly enough; a look at all of ``bits`` costs memory
    if len(ends) < count:
        ends = np.flatnonzero(bits)[:count]
    if len(ends) < count:
        raise DeltaError(f"{count} numbers cannot lie in {len(bits)} bits")
    return np.diff(ends, prepend=-1) - 1, int(ends[-1]) + 1 if count else 0


def _low_bits(numbers: Numbers, width: int) -> Bits:
    word = next(word for word in WORDS if width <= 8 * word)
    low = (numbers & ((1 << width) - 1)).astype(f">u{word}")
    return np.unpackbits(low.view(np.uint8)).reshape(-1, 8 * word)[:, -width:].ravel()


def _from_low_bits(bits: Bits, width: int) -> Numbers:
    word = next(word for word in WORDS if width <= 8 * word)
    padded = np.zeros((len(bits) // width, 8 * word), np.uint8)
    padded[:, -width:] = bits.reshape(-1, width)
    return np.packbits(padded).view(f">u{word}").astype(np.int64)
