"""Times relative to a baseline's: the result of a contender, and the table of all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

from benchmarks.records import Record
from benchmarks.timing import Times, quartiles, ratios
from fishexp.system.text_table import markdown_table

Row: TypeAlias = tuple[str, str, dict[str, Record]]  # a setting's title, its precision, contender -> record


@dataclass(frozen=True)
class RelativeTime:
    """Hold the time of a contender and its ratio to a baseline's.

    Attributes:
        seconds: Lower quartile, median and upper quartile.
        ratio: The same three, of the time as a fraction of the baseline's in the same round.
        total: Number of the model's weights.
    """

    contender: str
    baseline: str
    precision: str
    seconds: list[float]
    ratio: list[float]
    rounds: int
    total: int

    def __str__(self) -> str:
        low, middle, high = self.ratio
        return (
            f"{self.contender:12} {self.seconds[1]:9.4f} s, "
            f"{middle:.3f} ({low:.3f} to {high:.3f}) of {self.baseline}, {self.rounds} rounds"
        )


def summary(times: Times, contender: str, baseline: str) -> dict[str, Any]:
    """Return the fields of a :class:`RelativeTime` that come from the timing."""
    return {
        "contender": contender,
        "baseline": baseline,
        "seconds": quartiles(times[contender]),
        "ratio": ratios(times, contender, baseline),
        "rounds": len(times[contender]),
    }


def rows(records: Sequence[Record], title: Callable[[Record], str]) -> list[Row]:
    """Group records by setting and precision, in the order they ran, the precisions of a setting next to each other."""
    settings: dict[str, dict[str, dict[str, Record]]] = {}
    for record in records:
        precisions = settings.setdefault(title(record), {})
        precisions.setdefault(record["precision"], {})[record["contender"]] = record
    return [(name, precision, row) for name, precisions in settings.items() for precision, row in precisions.items()]


def table(rows: Sequence[Row], contenders: Sequence[str]) -> str:
    """Format a row for each setting and precision: seconds of the baseline, and ratios of the other contenders.

    Args:
        contenders: Their order, the baseline first; those without any record are left out.
    """
    baseline, *others = [name for name in contenders if any(name in row for _, _, row in rows)]
    columns = {
        "setting": [name for name, _, _ in rows],
        "precision": [precision for _, precision, _ in rows],
        f"{baseline}, s": [f"{row[baseline]['seconds'][1]:.3g}" for _, _, row in rows],
    }
    columns |= {name: [_ratio(row.get(name)) for _, _, row in rows] for name in others}
    columns["rounds"] = [str(row[baseline]["rounds"]) for _, _, row in rows]
    return markdown_table(columns, left=("setting", "precision"))


def _ratio(record: Record | None) -> str:
    if record is None:
        return ""
    low, middle, high = record["ratio"]
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"
