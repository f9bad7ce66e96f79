"""Records of serving to a table."""

from collections.abc import Sequence

from benchmarks.records import Record
from fishexp.system.text_table import markdown_table

PICTURE = None
_TIMES = {"switch": "switch, ms", "answer": "switch and answer, ms", "load": "from disk, ms"}


def title(record: Record) -> str:
    """Describe the setting except for its precision: ``minilm, 100 tasks, keep 0.005, 32 tokens``."""
    return f"{record['model']}, {record['tasks']} tasks, keep {record['keep']:g}, {record['length']} tokens"


def sections(records: Sequence[Record]) -> list[str]:
    """Return a heading and a table of the records of a machine, with ratios to ours of the same run."""
    columns = {
        "setting": [title(r) for r in records],
        "contender": [r["contender"] for r in records],
        "a task on disk, bytes": [f"{r['file_bytes']:,}" for r in records],
        "all in memory, bytes": [f"{r['resident_bytes']:,}" for r in records],
    }
    for operation, heading in _TIMES.items():
        ours = {title(r): r["seconds"][operation][1] for r in records if r["contender"] == "ours"}
        columns[heading] = [f"{1e3 * r['seconds'][operation][1]:#.3g}".removesuffix(".") for r in records]
        columns[f"{operation} / ours"] = [
            f"{r['seconds'][operation][1] / ours[title(r)]:.2g}" if title(r) in ours else "" for r in records
        ]
    columns["not undone"] = ["" if r["lost"] is None else f"{r['lost']:,}" for r in records]
    columns["rounds"] = [str(r["rounds"]) for r in records]
    return [
        "**One model in memory for many tasks, on one core: median**",
        markdown_table(columns, ("setting", "contender")),
    ]
