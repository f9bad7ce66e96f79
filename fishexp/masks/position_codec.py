"""Where the entries of a delta lie, in about as few bits as there is to know.

A coding's name says what is written, by :mod:`fishexp.masks.rice`, and in which order the tensor is walked through:

- ``gaps``: how many entries are left out before each stored one;
- ``holes``: the same of the entries that are *not* stored;
- ``runs``: the number of runs of stored entries, in as many bits as the number of stored entries has; how many entries,
  less one, are left out before each run (one more before the first); how many entries, less one, each run has;
- ``... by column``: not the tensor as it lies in memory but, as a matrix of its first dimension by all others, column
  after column.

The writer takes whichever is the shortest. Masks of real tasks keep whole columns, the inputs that matter.
"""

import math
from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from fishexp.errors import DeltaError
from fishexp.masks import rice
from fishexp.masks.rice import Bits, Numbers

MOST = 1 << 27  # entries of a tensor that may take less than a bit each: what a reader makes room for in good faith
LARGEST = (1 << 62) - 1  # entries of a tensor
BY_COLUMN = " by column"
NONE = np.zeros(0, np.uint8)


class Code(NamedTuple):
    """A way to write the positions, before they are written."""

    coding: str
    size: int  # bits
    bits: Callable[[], Bits]


def encode(positions: Tensor, shape: tuple[int, ...]) -> tuple[str, Tensor]:
    """The name of the shortest coding, and its bytes.

    Args:
        positions: (entries,) int64, strictly ascending, in the flattened tensor of ``shape``.

    Returns:
        The coding, and uint8 (bytes,). The same for the same positions, on any machine.
    """
    numel = _numel(shape)
    places = positions.numpy()
    if len(places) and (places[0] < 0 or places[-1] >= numel or (places[1:] <= places[:-1]).any()):
        raise DeltaError(f"positions have to ascend, from 0 on and below {numel}")
    best = _shortest(places, numel, "")
    if len(shape) > 1 and 0 < len(places) < numel:
        columns = np.sort(_transposed(places, shape[0], numel // shape[0]))
        best = min(best, _shortest(columns, numel, BY_COLUMN), key=lambda code: code.size)
    return best.coding, torch.from_numpy(np.packbits(best.bits()))


def decode(data: Tensor, coding: str, count: int, shape: tuple[int, ...]) -> Tensor:
    """The positions that :func:`encode` wrote; whatever ``data`` holds, they are in order and inside the tensor.

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
    way, by_column = coding.removesuffix(BY_COLUMN), coding.endswith(BY_COLUMN)
    if way not in READERS:
        raise DeltaError(f"positions are coded as {coding!r}, which this version cannot read; update fishexp")
    if not 0 <= count <= numel or (by_column and (len(shape) < 2 or not numel)):
        raise DeltaError(f"a tensor of shape {shape} has no {count} positions coded as {coding!r}")
    if count > (8 * len(data) if way == "gaps" else MOST):
        raise DeltaError(f"{count} positions cannot lie in {len(data)} bytes coded as {coding!r}")
    places = READERS[way](np.unpackbits(data.numpy()), count, numel)
    if by_column:
        places = np.sort(_transposed(places, numel // shape[0], shape[0]))
    return torch.from_numpy(places)


def _shortest(places: Numbers, numel: int, order: str) -> Code:
    """The best way to write places in one order."""
    count = len(places)
    gaps = np.diff(places, prepend=-1) - 1
    codes = [_code("gaps" + order, gaps, numel - count)]
    if count > MOST:
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
    widths, size = rice.choose(numbers, guess)
    return Code(coding, len(head) + size, lambda: np.append(head, rice.write(numbers, widths, guess)))


def _read_gaps(bits: Bits, count: int, numel: int) -> Numbers:
    gaps = rice.read(bits, count, (numel - count) // max(count, 1))
    if _total(gaps) > numel - count:
        raise DeltaError(f"a position is not below {numel}")
    return (gaps + 1).cumsum() - 1


def _read_holes(bits: Bits, count: int, numel: int) -> Numbers:
    return _others(_read_gaps(bits, numel - count, numel), numel)


def _read_runs(bits: Bits, count: int, numel: int) -> Numbers:
    runs = int("0" + "".join(map(str, bits[: count.bit_length()])), 2)
    if not 0 < runs <= count:
        raise DeltaError(f"{count} positions do not come in {runs} runs")
    pairs = rice.read(bits[count.bit_length() :], 2 * runs, (numel - count) // (2 * runs))
    before, lengths = pairs[:runs], pairs[runs:]
    if _total(lengths) != count - runs or _total(before) > numel - count - (runs - 1):
        raise DeltaError(f"the runs are not those of {count} positions below {numel}")
    before[1:] += 1
    return np.arange(count) + np.repeat(before.cumsum(), lengths + 1)


READERS = {"gaps": _read_gaps, "holes": _read_holes, "runs": _read_runs}


def _others(places: Numbers, numel: int) -> Numbers:
    """All places but these."""
    free = np.ones(numel, bool)
    free[places] = False
    return np.flatnonzero(free)


def _transposed(places: Numbers, rows: int, columns: int) -> Numbers:
    """Where the entries of a matrix lie in its transpose, in the order of ``places``."""
    row, column = np.divmod(places, columns)
    return column * rows + row


def _digits(number: int, most: int) -> Bits:
    """In as many bits as ``most`` takes, highest first."""
    return np.array([int(digit) for digit in f"{number:0{most.bit_length()}b}"], np.uint8)


def _total(numbers: Numbers) -> int:
    """The sum of numbers below 2**63, which may itself be more."""
    return (int((numbers >> 32).sum()) << 32) + int((numbers & 0xFFFFFFFF).sum())


def _numel(shape: tuple[int, ...]) -> int:
    if min(shape, default=0) < 0 or (numel := math.prod(shape)) > LARGEST:
        raise DeltaError(f"a tensor cannot have the shape {shape}")
    return numel
