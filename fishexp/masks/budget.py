"""The budget of a mask: how many weights a fraction of all pays for."""

from collections.abc import Collection
from decimal import Decimal
from fractions import Fraction
from numbers import Real

from fishexp.errors import FishexpError


def check_keep(keep: float) -> float:
    """Return ``keep`` itself, a fraction in (0, 1].

    Raises:
        FishexpError: If it is no number, or not in (0, 1].
    """
    if isinstance(keep, bool) or not isinstance(keep, Real | Decimal):
        shown = repr(keep) if isinstance(keep, bool | str) else f"a {type(keep).__name__}"
        raise FishexpError(f"keep is a number, a fraction in (0, 1], got {shown}; give a float such as 0.005")
    if not 0 < (number := float(keep)) <= 1:
        hint = f"; did you mean {number / 100:g}?" if 1 < number <= 100 else ""
        raise FishexpError(f"keep is a fraction in (0, 1], got {number:g}{hint}")
    return keep


def budget(keep: float, total: int) -> int:
    """Return ``floor(keep * total)`` with ``keep`` read as a decimal: 0.29 of 100 is 29, not 28.

    Raises:
        FishexpError: If ``keep`` is no number in (0, 1].
    """
    return int(Fraction(str(check_keep(keep))) * total)


def left(keep: float, total: int, head: int, always: Collection[str], workers: int = 1) -> int:
    """Return how many entries ``keep`` pays for after the ``head`` that is always kept, on each worker.

    Raises:
        FishexpError: If it does not pay for them, or not all workers can have entries of their own.
    """
    kept = budget(keep, total)
    if kept < max(head, 1):
        needs = f"fewer than the {head} of {', '.join(always)}, which are always kept" if head else "less than one"
        raise FishexpError(f"keep={keep} pays for {kept} of {total} weights, {needs}; raise keep")
    if workers * (kept - head) > total - head:
        raise FishexpError(
            f"keep={keep} gives each of {workers} workers {kept - head} weights of its own, of {total - head}; "
            "lower keep or workers"
        )
    return kept - head
