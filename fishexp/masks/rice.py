"""Rice codes: non-negative whole numbers, most of them small, in few bits.

A number gives its low bits, ``width`` of them, and what is above them, its quotient, in unary: that many zeros and a
one. Every block of numbers has a width of its own, so that the code follows what changes along the way. Three streams
lie one behind the other:

- the widths, each as its difference to the one before, in unary: 0, -1, 1, -2, 2 ... are 0, 1, 2, 3, 4 zeros and a one;
- the low bits, highest first: those of the blocks of width 1, then 2, and so on;
- the quotients, to the end.
"""

import numpy as np
from numpy.typing import NDArray

from fishexp.errors import DeltaError

BLOCK = 32  # numbers that share a width
WIDEST = 62  # low bits of a number below 2**63
WORDS = (1, 2, 4, 8)  # bytes of the machine's integers

Bits = NDArray[np.uint8]  # one bit each
Numbers = NDArray[np.int64]


def choose(numbers: Numbers, guess: int) -> tuple[Numbers, int]:
    """The width of each block, and how many bits :func:`write` then needs.

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


def write(numbers: Numbers, widths: Numbers, guess: int) -> Bits:
    """The bits of ``numbers``, with what :func:`choose` said of them."""
    each = np.repeat(widths, BLOCK)[: len(numbers)]
    low = [_low_bits(numbers[each == width], width) for width in _distinct(widths)]
    return np.concatenate([_unary(_changes(widths, guess)), *low, _unary(numbers >> each)])


def read(bits: Bits, count: int, guess: int) -> Numbers:
    """``count`` numbers, as :func:`write` got them.

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
    """From block to block, folded to non-negative numbers."""
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
    """``count`` numbers and how many bits they took."""
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
