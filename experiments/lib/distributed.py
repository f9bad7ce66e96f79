"""Code shared by the experiments with ``regime=distributed``: bytes sent, tables and sentences."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any

from experiments.lib.findings import leads, progress
from experiments.lib.report import METHOD_NAMES, MISSING, rate, score
from experiments.lib.results import Result, Section
from experiments.lib.study import C
from fishexp.report.group import Group
from fishexp.system.text_table import markdown_table

ABOUT_BYTES = """MB are millions of bytes that one worker sends: in a merge with masks (the values that may move and the
running statistics of BatchNorm), and in the whole run, dense merges of the warm-up, scores and masks included, as our
code counts them. *of dense* is the share of as many dense merges as the run has, one more than dense training
where a warm-up ends with a merge."""


def bytes_sent(group: Group) -> float:
    """Return the bytes that one worker sent in a run, the mean over seeds."""
    return mean(run["bytes"]["sent"] for run in group.runs)


def score_table(
    rows: Sequence[tuple[Mapping[str, str], Mapping[str, Result[Any]]]], left: Sequence[str], logs: Mapping[Any, float]
) -> str:
    """Make the table that has the methods side by side: their scores, then learning rates, then bytes.

    Args:
        rows: (header -> entry that says which row it is, method -> its result).
        left: The headers of columns of words.
        logs: Cell -> the score in the authors' logs; empty where the setting is another.
    """
    columns: dict[str, list[str]] = {header: [words[header] for words, _ in rows] for header in rows[0][0]}
    entries = {"": score, "lr": rate, "MB a merge": _per_merge, "MB sent": _sent, "of dense": _of_dense}
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


def _of_dense(result: Result[Any]) -> str:
    return f"{_share_of_dense(result.group):.1%}" if result.group else MISSING


def _share_of_dense(group: Group) -> float:
    """Return the bytes sent as a fraction of those of as many dense merges."""
    return bytes_sent(group) / mean(run["bytes"]["dense_sent"] for run in group.runs)


def findings(section: Section[C], setting: Callable[[C], Any]) -> str:
    """Say in sentences what the results tell of the methods.

    Args:
        setting: Equal for cells of different methods that are compared with each other.
    """
    groups = {(result.cell.method, setting(result.cell)): result.group for result in section.results if result.group}
    pairs = [(group, groups.get(("random", key))) for (method, key), group in groups.items() if method == "fish"]
    parts = [progress(section.results, len(section.study.seeds)), *leads("FISH", "random", pairs, section.predicted)]
    if shares := [_share_of_dense(group) for (method, _), group in groups.items() if method == "fish"]:
        parts.append(
            f"A worker with FISH sends {min(shares):.1%} to {max(shares):.1%} of what dense merges as often would."
        )
    return " ".join(parts)
