"""Code shared by the experiments with ``regime=distributed``: bytes sent, tables and sentences."""

from collections.abc import Callable, Iterable, Mapping, Sequence
from statistics import mean
from typing import Any

from experiments.lib.findings import leads, progress
from experiments.lib.report import METHOD_NAMES, MISSING, rate, score
from experiments.lib.results import Result, Section
from experiments.lib.study import C
from fishexp.report.group import Group
from fishexp.system.text_table import markdown_table

ABOUT_BYTES = """MB are millions of bytes that one worker sends: in a merge after the warm-up (the values that may
move, and the running statistics of BatchNorm where there are some), and in the whole run, dense merges of the warm-up,
scores and masks included, as our code counts them. *of dense* is the latter as a share of what dense training sends
that merges as often."""


def bytes_sent(group: Group) -> float:
    """Return the bytes that one worker sent in a run, the mean over seeds."""
    return mean(run["bytes"]["sent"] for run in group.runs)


def score_table(
    rows: Sequence[tuple[Mapping[str, str], Mapping[str, Result[Any]]]],
    left: Sequence[str],
    dense: Mapping[Any, Group | None],
    logs: Mapping[Any, float],
) -> str:
    """Make the table that has the methods side by side: their scores, then learning rates, then bytes.

    Args:
        rows: (header -> entry that says which row it is, method -> its result).
        left: The headers of columns of words.
        dense: Cell -> the runs of dense training that it is compared with.
        logs: Cell -> the score in the authors' logs; empty where the setting is another.
    """
    columns: dict[str, list[str]] = {header: [words[header] for words, _ in rows] for header in rows[0][0]}
    entries = {"": score, "lr": rate, "MB a merge": _per_merge, "MB sent": _sent}
    entries["of dense"] = lambda result: _of_dense(result, dense)
    for quantity, entry in entries.items():
        for method in rows[0][1]:
            results = [by_method[method] for _, by_method in rows]
            header = ": ".join(filter(None, [METHOD_NAMES[method], quantity]))
            columns[header] = [entry(result) for result in results]
            if logs and not quantity:
                columns[f"{METHOD_NAMES[method]}: in their log"] = [_logged(result, logs) for result in results]
    return markdown_table(columns, left=left)


def _logged(result: Result[Any], logs: Mapping[Any, float]) -> str:
    return f"{logs[result.cell]:.1f}" if result.cell in logs else "–"


def _per_merge(result: Result[Any]) -> str:
    return f"{mean(run['bytes']['per_merge'] for run in result.group.runs) / 1e6:.2f}" if result.group else MISSING


def _sent(result: Result[Any]) -> str:
    return f"{bytes_sent(result.group) / 1e6:.1f}" if result.group else MISSING


def _of_dense(result: Result[Any], dense: Mapping[Any, Group | None]) -> str:
    share = _share_of_dense(result, dense)
    return MISSING if share is None else f"{share:.1%}"


def dense_runs(results: Sequence[Result[C]], dense: Callable[[C], C]) -> dict[C, Group | None]:
    """Return cell -> the runs of dense training that it is compared with, None where there are none.

    Args:
        dense: Cell -> that of dense training that merges as often.
    """
    groups = {result.cell: result.group for result in results}
    return {cell: groups.get(dense(cell)) for cell in groups}


def _share_of_dense(result: Result[C], dense: Mapping[C, Group | None]) -> float | None:
    """Return the bytes sent as a fraction of those of dense training; None where either has no runs."""
    other = dense[result.cell]
    return bytes_sent(result.group) / bytes_sent(other) if result.group and other else None


def findings(section: Section[C], pairs: Iterable[tuple[Group, Group]], dense: Mapping[C, Group | None]) -> str:
    """Say in sentences what the results tell of the methods.

    Args:
        pairs: Runs of FISH, and those of random masks that they are compared with.
        dense: Cell -> the runs of dense training that it is compared with.
    """
    parts = [progress(section.results, len(section.study.seeds)), *leads("FISH", "random", pairs, section.predicted)]
    of_fish = [_share_of_dense(result, dense) for result in section.results if result.cell.method == "fish"]
    if shares := [share for share in of_fish if share is not None]:
        span = " to ".join(dict.fromkeys(f"{share:.1%}" for share in (min(shares), max(shares))))
        parts.append(f"A worker with FISH sends {span} of what it sends in dense training that merges as often.")
    return " ".join(parts)
