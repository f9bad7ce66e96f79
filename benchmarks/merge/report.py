"""Records of merges to a table, and the entry to their picture."""

from collections.abc import Sequence
from pathlib import Path

from benchmarks.protocol import Picture
from benchmarks.records import Record
from fishexp.system.text_table import markdown_table


def title(record: Record) -> str:
    """Describe the setting except for its precision: ``2 workers, 1,000,000 weights, keep 0.005``."""
    plural = "s" * (record["workers"] != 1)
    return f"{record['workers']} worker{plural}, {record['weights']:,} weights, keep {record['keep']:g}"


def dense_seconds(records: Sequence[Record], workers: int, weights: int) -> tuple[float, bool] | None:
    """Return the median time of a merge of all weights, and whether it was measured.

    If it was not, it is extrapolated in proportion from the next smaller model that was; None if there is none.
    """
    found = {r["weights"]: r for r in records if r["contender"] == "dense" and r["workers"] == workers}
    sizes = [size for size in found if size <= weights]
    if not sizes:
        return None
    size = max(sizes)
    return found[size]["seconds"][1] * weights / size, size == weights


def sections(records: Sequence[Record]) -> list[str]:
    """Return heading and table of the records of a machine; nothing if ours was not measured."""
    rows = sorted(
        (r for r in records if r["contender"] == "ours"), key=lambda r: (r["workers"], r["weights"], r["keep"])
    )
    if not rows:
        return []
    rings = {title(r): r for r in records if r["contender"] == "ring"}
    dense = [dense_seconds(records, r["workers"], r["weights"]) for r in rows]
    columns = {
        "workers": [str(r["workers"]) for r in rows],
        "weights": [f"{r['weights']:,}" for r in rows],
        "keep": [f"{r['keep']:g}" for r in rows],
        "kept": [f"{r['values']:,}" for r in rows],
        "sent by each, bytes": [f"{r['sent_bytes']:,}" for r in rows],
        "ours, ms": [_ms(r["seconds"][1]) for r in rows],
        "ring, ms": [_ms(rings[title(r)]["seconds"][1]) if title(r) in rings else "" for r in rows],
        "dense, ms": ["" if d is None else _ms(d[0]) + " (linear)" * (not d[1]) for d in dense],
        "ours / dense": [
            "" if d is None else f"{r['seconds'][1] / d[0]:.2g}" for r, d in zip(rows, dense, strict=True)
        ],
        "rounds": [str(r["rounds"]) for r in rows],
    }
    cores = max(r["cores"] for r in rows)
    heading = f"A merge over this machine's loopback, all workers on its {cores} cores: median of the slowest worker"
    return [f"**{heading}**", markdown_table(columns, left=())]


def _ms(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".removesuffix(".")


def save_picture(records: Sequence[Record], path: Path) -> None:
    """Write the picture of the records of the machine that was measured last."""
    from benchmarks.merge import plot  # matplotlib is slow to import, and a check that fails needs none

    plot.save([r for r in records if r["device"] == records[-1]["device"]], path)


PICTURE = Picture("Time of a merge against the model's size and against the number of workers", save_picture)
