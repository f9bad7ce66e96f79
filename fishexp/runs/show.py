"""What is printed of runs: a list of them, all about one, and what tells several apart."""

import json
from collections.abc import Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from fishexp.report.reproduce import command_of_records
from fishexp.report.scores import told_apart
from fishexp.run.sweep import duration
from fishexp.runs.find import CUT_OFF, GOING_ON, Run
from fishexp.system.text_table import aligned_text, write_bytes

# status -> colour in a terminal
_COLOURS = {"finished": "green", "failed": "red", "interrupted": "yellow", CUT_OFF: "yellow", GOING_ON: "cyan"}
# columns of the list that are aligned right
_RIGHT = ("keep", "seed", "seconds")
_NONE = "–"
# characters of a line at most
_WIDEST = 10_000


def print_list(runs: Sequence[Run]) -> None:
    """Print a line for each run."""
    cells = [_cells(run) for run in runs]
    print_table({header: [row[header] for row in cells] for header in cells[0]}, _RIGHT)


def print_table(columns: Mapping[str, Sequence[str]], right: Sequence[str] = ()) -> None:
    """Print columns as a table, a line for each row however wide it is, in colour on a terminal."""
    table = Table(box=None, pad_edge=False, header_style="bold")
    for header in columns:
        table.add_column(Text(header), justify="right" if header in right else "left", no_wrap=True)
    for row in zip(*columns.values(), strict=True):
        table.add_row(*(Text(cell, _COLOURS.get(cell.partition(",")[0], "")) for cell in row))
    width = Console(width=_WIDEST).measure(table).maximum
    Console(highlight=False, width=width).print(table)


def _cells(run: Run) -> dict[str, str]:
    """Return the entries of a line of the list: header -> text."""
    config = run.record["config"]
    names = {group: _name(config.get(group)) for group in ("data", "model", "method", "regime")}
    gone = ", folder gone" if run.folder is None else ""
    return {
        "run": run.id,
        **{group: names[group] for group in ("data", "model", "method")},
        "keep": _NONE if config.get("keep") is None else _value(config["keep"]),
        "regime": names["regime"],
        "seed": _value(config.get("seed")),
        "status": f"{run.status}{gone}",
        "metric": _metric(*run.headline),
        "seconds": _NONE if run.seconds is None else f"{run.seconds:,.1f}",
        "when": _when(run.ended),
    }


def _name(options: Any) -> str:
    """Name a component, with its task or architecture, and how its scores became a mask if not as usual."""
    if not isinstance(options, Mapping):
        return _NONE
    more = [options.get(key) for key in ("task", "arch")]
    more += [options.get(key) for key, usual in (("unit", "entry"), ("per", "network")) if options.get(key) != usual]
    return "/".join(str(word) for word in (options.get("name", _NONE), *more) if word is not None)


def _metric(name: str, value: Any) -> str:
    if not name:
        return ""
    return f"{name} {_score(value)}"


def _score(value: Any) -> str:
    """Write the value of a metric."""
    return "undefined" if value is None else _value(value)


def _value(value: Any) -> str:
    """Write a setting or a number."""
    if isinstance(value, float):
        return f"{value:.4g}"
    return value if isinstance(value, str) else json.dumps(value)


def _when(ended: str) -> str:
    """Write a time of a record in the zone of this machine."""
    try:
        return datetime.fromisoformat(ended).astimezone().strftime("%Y-%m-%d %H:%M")
    except ValueError:
        return ended


def about(run: Run) -> str:
    """Write all about a run: how it ended, its settings, what came of it, where its files are, how to repeat it."""
    record = run.record
    took = "" if run.seconds is None else f", {duration(run.seconds)}"
    lines = [f"run {run.id}: {run.status}{took}{f', {_when(run.ended)}' if run.ended else ''}"]
    lines += [f"error: {record['error']}"] if record.get("error") else []
    lines += _block("settings", {key: _value(value) for key, value in run.settings.items()})
    lines += _block("metrics", {name: _score(value) for name, value in record["metrics"].items()})
    if isinstance(chosen := record.get("epochs"), Mapping):
        lines += _block("which epoch", {str(name): _value(value) for name, value in chosen.items()})
    lines += _block("what it took", _took(record))
    lines += ["", "files", *(f"  {line}" for line in _files(run))]
    if record["config"]:
        again = command_of_records([record])
        commits = f" (of commit {', '.join(again.commits)})" if again.commits else ""
        lines += ["", f"again{commits}", f"  {again.text}", *(f"  {remark}" for remark in again.remarks)]
    return "\n".join(lines)


def _block(title: str, values: Mapping[str, str]) -> list[str]:
    if not values:
        return []
    rows = [[f"  {key}", value] for key, value in values.items()]
    return ["", title, *(line.rstrip() for line in aligned_text(rows, left_columns=2))]


def _took(record: Mapping[str, Any]) -> dict[str, str]:
    """Return what a record says of weights, time, memory, bytes and machine."""
    found = {}
    if record.get("kept") is not None:
        found["weights that moved"] = f"{_count(record['kept'])} of {_count(record.get('total'))}"
    for group in ("seconds", "bytes"):
        values = record.get(group)
        for name, value in values.items() if isinstance(values, Mapping) else ():
            found[f"{group}: {name}"] = _size(value) if group == "bytes" else _value(value)
    if record.get("peak_memory_bytes") is not None:
        found["peak memory"] = _size(record["peak_memory_bytes"])
    if record.get("device"):
        threads = record.get("threads")
        found["device"] = f"{record['device']}, {threads} thread{'s' * (threads != 1)}"
    return found


def _count(value: Any) -> str:
    return f"{value:,}" if isinstance(value, int) else _value(value)


def _size(value: Any) -> str:
    return write_bytes(value) if isinstance(value, int | float) else _value(value)


def _files(run: Run) -> list[str]:
    """List where a run's record and files are."""
    recorded = "its record is in no file of records" if run.file is None else f"record in {run.file}"
    if run.folder is None:
        return [recorded, f"its folder in {run.outputs} is gone"]
    files = sorted(path for path in run.folder.iterdir() if not path.name.startswith("."))
    return [recorded, f"{run.folder}/", *(f"  {path.name}{_kind(path)}" for path in files)]


def _kind(path: Path) -> str:
    if path.is_symlink():
        return f" -> {path.readlink()}"
    return "/" if path.is_dir() else f"  {write_bytes(path.stat().st_size)}"


def print_comparison(runs: Sequence[Run]) -> None:
    """Print which settings tell runs apart, and their metrics side by side."""
    settings = [run.settings for run in runs]
    keys = dict.fromkeys(key for one in settings for key in one)
    rows = {key: [_value(one[key]) if key in one else _NONE for one in settings] for key in keys}
    rows = {key: cells for key, cells in rows.items() if len(set(cells)) > 1}
    rows["status"] = [run.status for run in runs]
    others = {*rows, "weights that moved", "seconds", "commit", "device"}
    for name in dict.fromkeys(name for run in runs for name in run.record["metrics"]):
        all_metrics = [run.record["metrics"] for run in runs]
        rows[told_apart(name, others)] = [
            _score(metrics[name]) if name in metrics else _NONE for metrics in all_metrics
        ]
    rows["weights that moved"] = [
        _count(run.record["kept"]) if run.record.get("kept") is not None else _NONE for run in runs
    ]
    rows["seconds"] = [_NONE if run.seconds is None else f"{run.seconds:,.1f}" for run in runs]
    for key in ("commit", "device"):
        cells = [str(run.record.get(key) or _NONE) for run in runs]
        rows |= {key: cells} if len(set(cells)) > 1 else {}
    ids = [run.id for run in runs]
    columns = {"": list(rows)} | {name: [cells[i] for cells in rows.values()] for i, name in enumerate(ids)}
    print_table(columns, ids)
