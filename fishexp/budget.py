"""How many weights a fraction pays for."""

from decimal import Decimal

from fishexp.errors import FishexpError


def check_keep(keep: float) -> float:
    """``keep`` itself.

    Raises:
        FishexpError: If it is not in (0, 1].
    """
    if not 0 < keep <= 1:
        hint = f"; did you mean {keep / 100:g}?" if 1 < keep <= 100 else ""
        raise FishexpError(f"keep is a fraction in (0, 1], got {keep:g}{hint}")
    return keep


def budget(keep: float, total: int) -> int:
    """``floor(keep * total)`` with ``keep`` read as a decimal: 0.29 of 100 is 29, not 28.

    Raises:
        FishexpError: If ``keep`` is not in (0, 1].
    """
    return int(Decimal(str(check_keep(keep))) * total)
