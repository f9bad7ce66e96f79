"""Records of deltas to tables: the size of a file, and the time to handle it."""

from collections.abc import Sequence

from benchmarks.records import Record
from fishexp.system.text_table import markdown_table

PICTURE = None
_WORDS = ("setting", "precision", "contender", "mask")  # columns that are aligned left

# operation -> the column's heading with the project's target for BERT-large's shape, and its unit's number in a second
_TIMES = {
    "encode": ("encode, ms (< 200)", 1e3),
    "decode": ("decode, ms (< 200)", 1e3),
    "save": ("save, ms", 1e3),
    "load": ("load, ms", 1e3),
    "apply": ("apply, ms", 1e3),
    "undo": ("undo, ms", 1e3),
    "switch": ("switch, ms", 1e3),
    "fingerprint": ("fingerprint, s (< 2)", 1.0),
}


def title(record: Record) -> str:
    """Describe the setting except for its precision, with the mask if there is any: ``minilm, keep 0.005, random``."""
    words = [record["model"], f"keep {record['keep']:g}", record.get("mask")]
    return ", ".join(word for word in words if word)


def sections(records: Sequence[Record]) -> list[str]:
    """Return headings and tables of the records of a machine: sizes, then times."""
    same = {
        "setting": [r["model"] for r in records],
        "precision": [r["precision"] for r in records],
        "contender": [r["contender"] for r in records],
        "mask": [r["mask"] or "" for r in records],
    }
    return [
        "**Size of a delta of half a percent of the weights**",
        markdown_table(same | _sizes(records), left=_WORDS),
        "**Time to handle it on one core, median**",
        markdown_table(same | _times(records), left=_WORDS),
    ]


def _sizes(records: Sequence[Record]) -> dict[str, list[str]]:
    dense = {(r["model"], r["precision"]): r["file_bytes"] for r in records if r["contender"] == "dense"}
    shares = [r["file_bytes"] / dense[r["model"], r["precision"]] for r in records]
    return {
        "entries": [f"{r['entries']:,}" for r in records],
        "file, bytes": [f"{r['file_bytes']:,}" for r in records],
        "of dense, %": [f"{100 * share:.3g}" for share in shares],
        "bytes an entry": [f"{r['file_bytes'] / r['entries']:.2f}" for r in records],
        "bits a position": [_number(r["position_bits"], ".2f") for r in records],
        "entropy": [_number(r["entropy_bits"], ".2f") for r in records],
        "of entropy (<= 1.02)": [_of_entropy(r) for r in records],
    }


def _of_entropy(record: Record) -> str:
    if not record["position_bits"] or record["entropy_bits"] is None:
        return ""
    return f"{record['position_bits'] / record['entropy_bits']:.3f}"


def _times(records: Sequence[Record]) -> dict[str, list[str]]:
    columns = {
        heading: [_number(r["seconds"].get(operation, [None] * 3)[1], "#.3g", scale) for r in records]
        for operation, (heading, scale) in _TIMES.items()
    }
    columns["not undone"] = ["" if r["lost"] is None else f"{r['lost']:,}" for r in records]
    return columns | {"rounds": [str(r["rounds"]) for r in records]}


def _number(value: float | None, form: str, scale: float = 1.0) -> str:
    return "" if value is None else f"{value * scale:{form}}".removesuffix(".")
