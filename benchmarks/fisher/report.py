"""Records of the Fisher information to a table."""

from collections.abc import Sequence

from benchmarks import relative
from benchmarks.models import batch_title
from benchmarks.records import Record

PICTURE = None
_ORDER = ("loop", "batched", "BackPACK", "ours", "check")  # of the table's columns


def title(record: Record) -> str:
    """Describe the setting except for its precision: ``minilm, 16 x 64 tokens, 64 examples``."""
    shape = batch_title(record["batch"], record["length"])
    return ", ".join([record["model"], shape, f"{record['examples']} examples"])


def sections(records: Sequence[Record]) -> list[str]:
    """Return heading and table of the records of a machine."""
    return [
        "**Fisher information: time as a fraction of one example at a time, median (quartiles)**",
        relative.table(relative.rows(records, title), _ORDER),
    ]
