"""Records to the tables of README.md and the pictures beside it."""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, TypeAlias

from benchmarks import delta_report, merge_report
from benchmarks.markdown import table
from fishexp.errors import FishexpError

Record: TypeAlias = dict[str, Any]
Row: TypeAlias = tuple[str, str, dict[str, Record]]  # a setting's title, its precision, contender -> record

START, END = "<!-- generated: start -->", "<!-- generated: end -->"
_ORDER = {
    "step": ("dense", "original", "floor", "SHiRA", "Super-Tuning", "ours"),
    "fisher": ("loop", "batched", "BackPACK", "ours"),
}
_HEADINGS = {
    "step": "Training step: time as a fraction of dense training's, median (quartiles)",
    "fisher": "Fisher information: time as a fraction of one example at a time, median (quartiles)",
}
_PICTURES = {
    "step": "![Time of a training step as a fraction of dense training's](step.png)",
    "merge": "![Time of a merge against the model's size and against the number of workers](merge.png)",
}
_MIB = 2**20


def update(home: Path) -> None:
    """Remake the generated part of ``home``'s README.md, and the pictures, from its records.jsonl if there is one."""
    from benchmarks import merge_plot, plot  # matplotlib is slow to import, and a failed check needs none

    found = newest(read(home / "records.jsonl"))
    plot.save(found, home / "step.png")
    merge_plot.save(found, home / "merge.png")
    path = home / "README.md"
    before, start, rest = path.read_text(encoding="utf-8").partition(START)
    _, end, after = rest.partition(END)
    if not start or not end:
        raise FishexpError(f"{path} has no {START} ... {END}, where the tables go")
    path.write_text(f"{before}{START}\n{markdown(found)}\n{END}{after}", encoding="utf-8")


def read(path: Path) -> list[Record]:
    """All records in the order they were written; none if there is no file."""
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()] if path.exists() else []


def newest(records: Iterable[Record]) -> list[Record]:
    """The last record of each setting and contender on each device."""
    return list({(machine(r), r["benchmark"], title(r), r["precision"], r["contender"]): r for r in records}.values())


def machine(record: Record) -> str:
    """Device and threads."""
    return f"{record['device']}, {record['threads']} thread{'s' * (record['threads'] != 1)}"


def title(record: Record) -> str:
    """The setting but for its precision: minilm, 16 x 64 tokens, keep 0.005."""
    if record["benchmark"] == "delta":
        return delta_report.title(record)
    if record["benchmark"] == "merge":
        return merge_report.title(record)
    shape = "images" if record["length"] is None else f"x {record['length']} tokens"
    words = [record["model"], f"{record['batch']} {shape}"]
    if record["examples"]:
        words.append(f"{record['examples']} examples")
    if record["keep"]:
        words.append(f"keep {record['keep']:g}" + (" by Fisher" if record["mask"] == "fish" else ""))
    return ", ".join(words)


def settings(records: Sequence[Record], benchmark: str) -> list[Row]:
    """The benchmark's settings in the order they ran, both precisions of one beside each other."""
    found: dict[str, dict[str, dict[str, Record]]] = {}
    for record in records:
        if record["benchmark"] == benchmark:
            precisions = found.setdefault(title(record), {})
            precisions.setdefault(record["precision"], {})[record["contender"]] = record
    return [(name, precision, row) for name, precisions in found.items() for precision, row in precisions.items()]


def machines(records: Sequence[Record]) -> dict[str, list[Record]]:
    """Records by device."""
    found: dict[str, list[Record]] = {}
    for record in records:
        found.setdefault(machine(record), []).append(record)
    return found


def markdown(records: Sequence[Record]) -> str:
    """The tables of each device."""
    if not records:
        return "\nNo records yet: `make bench`.\n"
    parts = [picture for name, picture in _PICTURES.items() if any(record["benchmark"] == name for record in records)]
    for name, own in machines(records).items():
        parts.append(f"## {name}")
        for benchmark, heading in _HEADINGS.items():
            if rows := settings(own, benchmark):
                parts += [f"**{heading}**", _times(rows, benchmark)]
        if any(record["benchmark"] == "step" for record in own):
            parts += ["**Weights that train, and the memory that training them takes**", _memory(own)]
        parts += delta_report.tables([record for record in own if record["benchmark"] == "delta"])
        parts += merge_report.tables([record for record in own if record["benchmark"] == "merge"])
        parts.append(_made_by(own))
    return "\n" + "\n\n".join(parts) + "\n"


def _times(rows: Sequence[Row], benchmark: str) -> str:
    """A row for each setting and precision: seconds of the baseline, ratios of the others."""
    baseline, *others = [name for name in _ORDER[benchmark] if any(name in row for _, _, row in rows)]
    columns = {
        "setting": [name for name, _, _ in rows],
        "precision": [precision for _, precision, _ in rows],
        f"{baseline}, s": [f"{row[baseline]['seconds'][1]:.3g}" for _, _, row in rows],
    }
    columns |= {name: [_ratio(row.get(name)) for _, _, row in rows] for name in others}
    return table(columns | {"rounds": [str(row[baseline]["rounds"]) for _, _, row in rows]})


def _memory(records: Sequence[Record]) -> str:
    """A row for each setting and contender; only a GPU's allocator tells its peak."""
    rows = [(name, p, one) for name, p, row in settings(records, "step") for one in row.values()]
    first = [(name, one) for name, p, one in rows if p == "fp32"]
    columns = {
        "setting": [name for name, _ in first],
        "contender": [one["contender"] for _, one in first],
        "weights trained": [f"{one['trained']:,} of {one['total']:,}" for _, one in first],
        "state, MiB": [f"{one['state_bytes'] / _MIB:,.1f}" for _, one in first],
    }
    peaks = {(name, p, one["contender"]): one["peak_bytes"] / _MIB for name, p, one in rows if one["peak_bytes"]}
    for precision in sorted({p for _, p, _ in peaks}, reverse=True):
        cells = [peaks.get((name, precision, one["contender"])) for name, one in first]
        columns[f"peak {precision}, MiB"] = ["" if cell is None else f"{cell:,.0f}" for cell in cells]
    return table(columns)


def _made_by(records: Sequence[Record]) -> str:
    """Commit, versions and day, of which there are several if not all was run again."""
    wanted = ("torch", "transformers", "peft", "backpack-for-pytorch")
    runs = {
        f"commit {r['commit']} on {r['ended'][:10]} with "
        + ", ".join(f"{name} {r['versions'][name]}" for name in wanted if name in r["versions"])
        for r in records
    }
    return "Measured at " + "; ".join(sorted(runs)) + "."


def _ratio(record: Record | None) -> str:
    if record is None:
        return ""
    low, middle, high = record["ratio"]
    return f"{middle:.2f} ({low:.2f}–{high:.2f})"
