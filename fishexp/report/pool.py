"""Records pooled to groups of runs that differ in nothing but the seed, for the table and the plot."""

import json
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from fishexp.errors import FishexpError
from fishexp.report.group import EXAMPLES, PER, UNIT, Group, single
from fishexp.run.record import read

# settings for which reports have a place of their own
SHOWN = ("data.name", "data.task", "data.holdout", "model.name", "method.name", UNIT, PER, "keep", "regime.lr")
# setting that is a digest of the data set's files
_FILES = "data.root"
# settings that follow from a component's name
IMPLIED = ("data.module", "model.module", "model.layers", "method.ignores_keep", "method.needs_regime")


@dataclass(frozen=True)
class Pool:
    """Hold all groups in the order of a table: by data set, model, method, keep.

    Attributes:
        reported: Groups measured on the reported examples.
        held_out: Groups measured on training examples that were held out, to choose hyper-parameters.
        unfinished: failed | interrupted -> number of runs.
    """

    reported: list[Group]
    held_out: list[Group]
    unfinished: Counter[str]

    def measured_by(self, metric: str) -> "Pool":
        """Return this pool with ``metric`` as the headline of the reported groups.

        Raises:
            FishexpError: If a group does not have it; says which all have.
        """
        if any(metric not in group.metrics for group in self.reported):
            common = [name for name in self.reported[0].metrics if all(name in g.metrics for g in self.reported)]
            there = f"all have {', '.join(common)}" if common else "there is none that all have"
            raise FishexpError(f"--metric {metric}: not all of these runs have it; {there}")
        return replace(self, reported=[replace(group, metric=metric) for group in self.reported])


def load(paths: Iterable[Path]) -> Iterator[dict[str, Any]]:
    """Read the records of several files, in order.

    Raises:
        FishexpError: If a file cannot be read or holds no record.
    """
    for path in paths:
        try:
            yield from read(path)
        except OSError as error:
            raise FishexpError(f"{path} cannot be read: {error}") from None


def pool(records: Iterable[Mapping[str, Any]], *, uncommitted: bool = False) -> Pool:
    """Pool the finished runs that agree in every setting but the seed; a run's latest finished record counts.

    Args:
        records: Records in the order in which they were written.
        uncommitted: Take runs of uncommitted code too.

    Raises:
        FishexpError: If no run finished, or some are of uncommitted code.
    """
    latest: dict[str, Mapping[str, Any]] = {}
    for record in records:
        before = latest.get(record["run_id"])
        if before is None or before["status"] != "finished" or record["status"] == "finished":
            latest.pop(record["run_id"], None)  # so that the order is that of the latest records
            latest[record["run_id"]] = record
    statuses = Counter(str(record["status"]) for record in latest.values())
    pooled: dict[str, dict[int, Group]] = {}
    for record in latest.values():
        if record["status"] == "finished":
            run = single(record)
            key = json.dumps([run.metric, run.settings], sort_keys=True)
            pooled.setdefault(key, {})[record["config"]["seed"]] = run
    if not pooled:
        raise FishexpError(f"no finished run among the {len(latest)} in the records{_counts(statuses)}")
    groups = sorted((_joined(runs) for runs in pooled.values()), key=lambda group: group.order)
    if not uncommitted:
        _check_commits(groups)
    del statuses["finished"]
    reported = [group for group in groups if not group.held_out]
    return Pool(reported, [group for group in groups if group.held_out], statuses)


def differing(groups: Sequence[Group]) -> list[str]:
    """Return the keys of settings that tell ``groups`` apart, beyond those that every report shows.

    A setting that a method or regime has, and another has not, is no difference of its own. The digest of the examples
    follows from data set, limits and tokenizer, so that it tells only groups apart that agree in all settings; that of
    a data set's files tells only groups of the same data set apart.
    """
    found = []
    for key in dict.fromkeys(key for group in groups for key in group.settings):
        name = f"{key.partition('.')[0]}.name"
        owners = {group.setting(name) for group in groups if key in group.settings}
        values = {group.setting(key) for group in groups if group.setting(name) in owners}
        if key == _FILES:
            sets = {(group.data, group.setting(key)) for group in groups}
            values = {files for data, files in sets if sum(data == other for other, _ in sets) > 1}
        if len(values) > 1 and key not in (*SHOWN, *IMPLIED, EXAMPLES):
            found.append(key)
    alike: dict[str, set[str]] = {}  # the other settings -> the examples of groups that have them
    for group in groups:
        others = json.dumps({**group.settings, EXAMPLES: None}, sort_keys=True)
        alike.setdefault(others, set()).add(group.setting(EXAMPLES))
    return [*found, *([EXAMPLES] if any(len(examples) > 1 for examples in alike.values()) else [])]


def details(group: Group, keys: Sequence[str]) -> list[tuple[str, str]]:
    """Return what a group has of the settings ``keys``, by the last word of each key: ``[("samples", "64")]``.

    Keys that end alike, such as data.path and model.path, stay whole.
    """
    last = {key: key.rpartition(".")[2] for key in keys}
    ends = list(last.values())
    words = {key: key if ends.count(word) > 1 else word for key, word in last.items()}
    return [(word, group.setting(key)) for key, word in words.items() if key in group.settings]


def _check_commits(groups: Iterable[Group]) -> None:
    run_ids = [run_id for group in groups for run_id in group.uncommitted]
    if run_ids:
        runs = f"runs {', '.join(run_ids)} are" if len(run_ids) > 1 else f"run {run_ids[0]} is"
        raise FishexpError(f"{runs} of uncommitted code; commit it and run again, or pass --uncommitted")


def _joined(runs: Mapping[int, Group]) -> Group:
    """Make a group of several, each of a single run: seed -> group."""
    first = next(iter(runs.values()))
    return Group(first.settings, first.metric, [run for seed in sorted(runs) for run in runs[seed].runs])


def _counts(statuses: Counter[str]) -> str:
    return f" ({', '.join(f'{count} {status}' for status, count in sorted(statuses.items()))})" if statuses else ""
