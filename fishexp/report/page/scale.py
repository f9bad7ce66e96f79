"""Scales of a picture: from values to places, with ticks at round values that have room."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

# a logarithmic scale is for values that differ by at least this factor
_WIDE = 3.0
# room beside the outermost values, as a share of their distance
_MARGIN = 0.06


@dataclass(frozen=True)
class Scale:
    """Map values to places.

    Attributes:
        low: Value at ``start``.
        high: Value at ``end``.
        start: Place, in units of the picture.
        end: Likewise; smaller than ``start`` where values grow upwards.
        log: Whether equal distances are equal ratios.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def at(self, value: float) -> float:
        """Return the place of a value."""
        low, high, value = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return self.start + (self.end - self.start) * (value - low) / (high - low)

    def ticks(self, most: int) -> list[float]:
        """Return at most so many round values within the scale."""
        return (_log_ticks if self.log else _linear_ticks)(self.low, self.high, most)


def scale(values: Sequence[float], start: float, end: float, *, may_be_log: bool) -> Scale:
    """Make a scale on which all values have room; a logarithmic one for a wide range, if it may be."""
    low, high = min(values), max(values)
    if may_be_log and low > 0 and high / low >= _WIDE:
        room = (high / low) ** _MARGIN
        return Scale(low / room, high * room, start, end, log=True)
    room = (high - low) * _MARGIN or abs(high) * _MARGIN or 1.0
    return Scale(low - room, high + room, start, end)


def _linear_ticks(low: float, high: float, most: int) -> list[float]:
    step = 10.0 ** math.floor(math.log10((high - low) / most))
    step *= next(factor for factor in (1, 2, 5, 10, 20) if (high - low) / (step * factor) <= most)
    first, last = math.ceil(low / step), math.floor(high / step)
    return [round(number * step, 12) for number in range(first, last + 1)]


def _log_ticks(low: float, high: float, most: int) -> list[float]:
    """Return powers of ten with what lies between where there is room, else every so many powers."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    choices: list[Sequence[float]] = [(1, 2, 5), (1, 3), (1,)]
    found: list[float] = []
    for factors in choices:
        found = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]
