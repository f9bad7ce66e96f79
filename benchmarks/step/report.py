"""Records of training steps to tables, and the entry to their picture."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks import relative
from benchmarks.models import batch_title
from benchmarks.protocol import Picture
from benchmarks.records import Record
from benchmarks.step.case import ALL, GRAPHS
from fishexp.system.text_table import markdown_table

_MIB = 2**20  # bytes


def title(record: Record) -> str:
    """Describe the setting except for its precision: ``minilm, 16 x 64 tokens, keep 0.005``."""
    keep = f"keep {record['keep']:g}" + (" by Fisher" if record["mask"] == "fish" else "")
    if (unit := record.get("unit", "entry")) != "entry":
        keep += f", {unit}s"
    return ", ".join([record["model"], batch_title(record["batch"], record["length"]), keep])


def sections(records: Sequence[Record]) -> list[str]:
    """Return headings and tables of the records of a machine: time, then memory."""
    return [
        "**Training step: time as a fraction of dense training's, median (quartiles)**",
        relative.table(relative.rows(records, title), (*ALL, *GRAPHS)),
        "**Weights that train, and the memory that training them takes**",
        _memory(records),
    ]


def _memory(records: Sequence[Record]) -> str:
    """Format a row for each setting and contender; only a GPU's allocator knows its peak."""
    cells = [(name, p, record) for name, p, row in relative.rows(records, title) for record in row.values()]
    first = [(name, record) for name, precision, record in cells if precision == "fp32"]
    columns = {
        "setting": [name for name, _ in first],
        "contender": [record["contender"] for _, record in first],
        "weights trained": [f"{record['trained']:,} of {record['total']:,}" for _, record in first],
        "state, MiB": [f"{record['state_bytes'] / _MIB:,.1f}" for _, record in first],
    }
    peaks = {(name, p, record["contender"]): record["peak_bytes"] for name, p, record in cells if record["peak_bytes"]}
    for precision in sorted({p for _, p, _ in peaks}, reverse=True):
        own = [peaks.get((name, precision, record["contender"])) for name, record in first]
        columns[f"peak {precision}, MiB"] = ["" if peak is None else f"{peak / _MIB:,.0f}" for peak in own]
    return markdown_table(columns, left=("setting", "contender"))


def save_picture(records: Sequence[Record], path: Path) -> None:
    """Write the picture of the records of all machines."""
    from benchmarks.step import plot  # matplotlib is slow to import, and a check that fails needs none

    plot.save(records, path)


PICTURE = Picture("Time of a training step as a fraction of dense training's", save_picture)
