"""Records of merges to a table: time and bytes against workers, against kept values and against the model's size."""

from collections.abc import Sequence
from typing import Any, TypeAlias

from benchmarks.markdown import table

Record: TypeAlias = dict[str, Any]


def title(record: Record) -> str:
    """The setting but for its precision: 2 workers, 1,000,000 weights, keep 0.005."""
    plural = "s" * (record["workers"] != 1)
    return f"{record['workers']} worker{plural}, {record['weights']:,} weights, keep {record['keep']:g}"


def dense_seconds(records: Sequence[Record], workers: int, weights: int) -> tuple[float, bool] | None:
    """Median for all weights, and whether it was measured: else in proportion to the next smaller model that was."""
    found = {r["weights"]: r for r in records if r["contender"] == "dense" and r["workers"] == workers}
    sizes = [size for size in found if size <= weights]
    if not sizes:
        return None
    size = max(sizes)
    return found[size]["seconds"][1] * weights / size, size == weights


def tables(records: Sequence[Record]) -> list[str]:
    """Picture, heading and table; nothing without records."""
    rows = sorted(
        (r for r in records if r["contender"] == "ours"), key=lambda r: (r["workers"], r["weights"], r["keep"])
    )
    if not rows:
        return []
    rings = {title(r): r for r in records if r["contender"] == "ring"}
    columns = {
        "workers": [str(r["workers"]) for r in rows],
        "weights": [f"{r['weights']:,}" for r in rows],
        "keep": [f"{r['keep']:g}" for r in rows],
        "kept": [f"{r['values']:,}" for r in rows],
        "sent by each, bytes": [f"{r['sent_bytes']:,}" for r in rows],
        "ours, ms": [_ms(r["seconds"][1]) for r in rows],
        "ring, ms": [_ms(rings[title(r)]["seconds"][1]) if title(r) in rings else "" for r in rows],
    }
    dense = [dense_seconds(records, r["workers"], r["weights"]) for r in rows]
    columns["dense, ms"] = ["" if one is None else _ms(one[0]) + " (linear)" * (not one[1]) for one in dense]
    columns["ours / dense"] = [
        "" if one is None else f"{r['seconds'][1] / one[0]:.2g}" for r, one in zip(rows, dense, strict=True)
    ]
    columns["rounds"] = [str(r["rounds"]) for r in rows]
    cores = max(r["cores"] for r in rows)
    heading = f"A merge over this machine's loopback, all workers on its {cores} cores: median of the slowest worker"
    return [f"**{heading}**", table(columns)]


def _ms(seconds: float) -> str:
    value = 1e3 * seconds
    return f"{value:,.0f}" if value >= 100 else f"{value:#.3g}".removesuffix(".")
