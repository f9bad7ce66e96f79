"""Values as people type them: ``keep=0.5%`` and ``seed=0-2``."""

import re
from collections.abc import Sequence
from decimal import Decimal, InvalidOperation

from fishexp.errors import FishexpError


def typed_values(key: str, text: str) -> Sequence[float | int] | None:
    """Return what a percentage of ``keep`` or a range of ``seed`` stands for; None if it is neither.

    Raises:
        FishexpError: If a range counts down.
    """
    if key == "keep" and text.endswith("%"):
        try:
            return [float(Decimal(text.removesuffix("%").strip()) / 100)]
        except InvalidOperation:
            return None
    if key != "seed" or not (match := re.fullmatch(r"(\d+)-(\d+)", text)):
        return None
    first, last = int(match[1]), int(match[2])
    if first > last:
        raise FishexpError(f"seed={text} counts down; write seed={last}-{first}")
    return range(first, last + 1)
