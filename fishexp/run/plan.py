"""The plan of a command: a table of what each of its runs is going to train, take and leave, and of how long."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from fishexp.run.forecast import Delta, Forecast, Outlines, forecast
from fishexp.run.identity import canonical, run_id, run_name, settings_name, shareable
from fishexp.run.record import finished
from fishexp.run.resume import changes_since_done
from fishexp.run.settings import GROUPS, Config
from fishexp.run.sweep import differing, duration
from fishexp.system.text_table import aligned_text, write_bytes

UNKNOWN = "?"
_NONE = "–"
_LEGEND = (
    "k weights train, the head among them. To train k, or all, takes so much memory beside the model: values, places,",
    "gradient and moments. A delta is estimated, by runs on a BERT.",
)


@dataclass
class Row:
    """Hold runs that differ in nothing but the seed, and what is foretold of each.

    Attributes:
        name: What tells them from the others of the command.
        forecast: None if they would be refused.
        error: Why.
        seconds: Durations of finished runs of these settings, whatever their seed and learning rate.
        done: How many of the runs are on record as finished, where these are not to run again.
    """

    name: str
    runs: list[Config]
    forecast: Forecast | None = None
    error: Exception | None = None
    seconds: list[float] = field(default_factory=list)
    done: int = 0

    @property
    def to_do(self) -> int:
        """Count the runs that are not done."""
        return len(self.runs) - self.done

    def cells(self) -> list[str]:
        """Return the entries of the table."""
        found = self.forecast
        if found is None:
            return [self.name, str(len(self.runs)), "refused", *[""] * 8]
        of_k = "" if not found.trains or found.head is None else f" ({found.head / found.trains:.0%})"
        return [
            self.name,
            str(len(self.runs)),
            _count(found.weights),
            _count(found.trains),
            _count(found.head) + of_k,
            _or_unknown(found.adds, write_bytes),
            _or_unknown(found.dense_adds, write_bytes),
            _delta(found.delta, found.trains),
            _NONE if found.merge is None else f"{write_bytes(found.merge.bytes)} in {found.merge.seconds:.2g} s",
            _count(found.steps),
            duration(median(self.seconds)) if self.seconds else "not measured",
        ]


_HEADER = (
    "run", "runs", "weights", "k", "head (of k)", "to train k", "to train all", "delta", "a merge sends", "steps",
    "time a run",
)  # fmt: skip
# columns that are left out where they hold nothing else
_IMPLIED = {"runs": {"1"}, "a merge sends": {_NONE, ""}}


class Past:
    """Look up what runs on record took.

    Args:
        file: File of records; there may be none.
    """

    def __init__(self, file: Path) -> None:
        self.file = file

    @cached_property
    def _finished(self) -> dict[str, dict[str, Any]]:
        return finished(self.file)

    def seconds(self, run: Config) -> list[float]:
        """Return the durations of the finished runs with the settings of ``run``, but for seed and learning rate."""
        alike = [record for record in self._finished.values() if _names(record["config"]) == _names(run)]
        if not alike:  # files that options name are hashed only if it may tell something
            return []
        key = _work(shareable(run))
        found = [record.get("seconds") for record in alike if _work(record["config"]) == key]
        return [sum(seconds.values()) for seconds in found if seconds]

    def has(self, run: Config) -> bool:
        """Tell whether a run is on record as finished, with ``resume=strict`` by the code of today."""
        record = self._finished.get(run_id(run)) if self._finished else None
        if record is None or run["resume"] is True:
            return record is not None
        return not changes_since_done(record, run, Path(run["outputs"], run_name(run)))


def rows_of(runs: Sequence[Config], overrides: Sequence[Sequence[str]]) -> list[Row]:
    """Foretell what the runs of a command take; runs that differ in the seed alone are one row.

    Args:
        overrides: Of each run, by which it is named.
    """
    unseeded = [[text for text in texts if not text.startswith("seed=")] for texts in overrides]
    rows: dict[str, Row] = {}
    pasts, outlines = dict[str, Past](), Outlines()
    for run, name in zip(runs, differing(unseeded) if len(runs) > 1 else [""], strict=True):
        key = json.dumps({**run, "seed": None}, sort_keys=True)
        row = rows.setdefault(key, Row(name or settings_name(run), []))
        if run not in row.runs:  # as where keep is swept and a method ignores it: it is carried out once
            row.runs.append(run)
    for row in rows.values():
        first = row.runs[0]
        past = pasts.setdefault(first["records"], Past(Path(first["records"])))
        try:
            row.forecast = forecast(first, outlines)
        except Exception as error:  # the other rows are told all the same
            row.error = error
        else:
            row.seconds = past.seconds(first)
            row.done = sum(past.has(run) for run in row.runs) if first["resume"] else 0
    return list(rows.values())


def plan_text(rows: Sequence[Row]) -> str:
    """Write the table, what its columns say, and how long the command may take."""
    found = [row.forecast for row in rows if row.forecast is not None]
    if not found:
        return ""
    notes = dict.fromkeys(note for one in found for note in one.notes)
    columns = list(zip(_HEADER, *(row.cells() for row in rows), strict=True))
    shown = [(head, *cells) for head, *cells in columns if not set(cells) <= _IMPLIED.get(head, set())]
    table = [line.rstrip() for line in aligned_text(list(zip(*shown, strict=True)), left_columns=1)]
    return "\n".join([*table, *_LEGEND, *notes, _time([row for row in rows if row.forecast is not None])])


def _time(rows: Sequence[Row]) -> str:
    """Say how many runs there are, and how long they take by runs on record."""
    count, done = sum(len(row.runs) for row in rows), sum(row.done for row in rows)
    runs = f"{count} run{'s' * (count > 1)}" + (f", {done} of them done already" if done else "")
    files = ", ".join(dict.fromkeys(row.runs[0]["records"] for row in rows))
    to_do = [row for row in rows if row.to_do]
    if not to_do:
        return runs
    unknown = sum(row.to_do for row in to_do if not row.seconds)
    if unknown == sum(row.to_do for row in to_do):
        return f"{runs}; time not measured: {files} has no finished run of these settings"
    total = duration(sum(median(row.seconds) * row.to_do for row in to_do if row.seconds))
    basis = sum(len(row.seconds) for row in to_do)
    more = f", and {unknown} run{'s' * (unknown > 1)} of which none is" if unknown else ""
    return f"{runs}: {total} one after another, by {basis} finished of these settings in {files}{more}"


def _names(config: Mapping[str, Any]) -> list[Any]:
    """Return the names of a run's components."""
    groups = [config.get(group) for group in GROUPS]
    return [group.get("name") if isinstance(group, Mapping) else None for group in groups]


def _work(shared: Config) -> str:
    """Return what decides how long a run takes: all settings in a record but seed and learning rate."""
    found = canonical(shared)
    found["regime"] = {key: value for key, value in found["regime"].items() if key != "lr"}
    return json.dumps({**found, "seed": None}, sort_keys=True)


def _count(number: int | None) -> str:
    return _or_unknown(number, "{:,}".format)


def _or_unknown(number: int | None, write: Callable[[int], str]) -> str:
    return UNKNOWN if number is None else write(number)


def _delta(delta: Delta, trains: int | None) -> str:
    if delta.bytes is None:
        return _NONE if trains == 0 else UNKNOWN
    if delta.whole:
        return f"model, {write_bytes(delta.bytes)}"
    rounded = float(f"{delta.bytes:.2g}")
    return f"{'≥ ' if delta.at_least else ''}~{write_bytes(rounded)}"
