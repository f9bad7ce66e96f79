"""What the tables of the distributed regime share: what a run costs, what its workers sent, and how that is shown."""

from collections.abc import Callable, Mapping, Sequence
from statistics import mean
from typing import Any, TypeVar

from experiments.costs import speed_of
from experiments.study import Cell, Result, Section
from experiments.wording import MISSING, NAMES, contest, progress, rate, score
from fishexp.report.group import Group
from fishexp.report.table import aligned
from fishexp.run.settings import Config

C = TypeVar("C", bound=Cell)
Columns = Mapping[str, Result[Any]]  # method -> its cell

_TRAIN = 50_000  # images of CIFAR-10; the runs on sentences that were measured have a limit
_VALID = {None: 10_000, "mrpc": 408, "sst2": 872, "stsb": 1500}  # task -> reported examples
_START = 6  # seconds until the first step, and after the last
BYTES = """MB are millions of bytes that one worker sends: in a merge with masks (the values that may move and the
running statistics of BatchNorm), and in the whole run, dense merges of the warm-up, scores and masks included, as our
code counts them. *of dense* compares the run with dense training that merges as often."""


def seconds(run: Config) -> float | None:
    """Of a run whose workers take turns in one process; None if nothing like it was measured."""
    speed = speed_of(run)
    if speed is None:
        return None
    data, regime, method = run["data"], run["regime"], run["method"]
    seen = data["train_limit"] or _TRAIN - data["holdout"]
    each = seen // regime["workers"] if regime["shard"] else seen  # a worker's examples
    merges = regime["epochs"] * (each // regime["batch_size"]) // regime["sync_every"]
    masks = 1 + (merges - 1) // regime["refresh_every"] if merges and method["name"] == "fish" else 0
    rows = data["holdout"] or min(data["valid_limit"] or 10**6, _VALID[data.get("task")])
    trained = regime["epochs"] * regime["workers"] * each
    return _START + speed.seconds(trained, regime["epochs"] * rows, masks * method.get("samples", 0))


def sent(group: Group) -> float:
    """Bytes that one worker sent in a run, the mean over seeds."""
    return mean(run["bytes"]["sent"] for run in group.runs)


def table(rows: Sequence[tuple[Mapping[str, str], Columns]], left: Sequence[str], logs: Mapping[Any, float]) -> str:
    """Scores side by side, then learning rates, then bytes.

    Args:
        rows: (header -> what it says of the row, method -> its cell).
        left: The headers of words.
        logs: Cell -> the score of the authors' logs; empty where the setting is another.
    """
    columns: dict[str, list[str]] = {header: [words[header] for words, _ in rows] for header in rows[0][0]}
    shown = {"": score, "lr": rate, "MB a merge": _per_merge, "MB sent": _sent, "of dense": _of_dense}
    for what, text in shown.items():
        for method in rows[0][1]:
            cells = [results[method] for _, results in rows]
            header = ": ".join(filter(None, [NAMES[method], what]))
            columns[header] = [text(cell) for cell in cells]
            if logs and not what:
                columns[f"{NAMES[method]}: in their log"] = [_logged(cell, logs) for cell in cells]
    return aligned(columns, left=left)


def _logged(cell: Result[Any], logs: Mapping[Any, float]) -> str:
    return f"{logs[cell.cell]:.1f}" if cell.cell in logs else "–"


def _per_merge(cell: Result[Any]) -> str:
    return f"{mean(run['bytes']['per_merge'] for run in cell.group.runs) / 1e6:.2f}" if cell.group else MISSING


def _sent(cell: Result[Any]) -> str:
    return f"{sent(cell.group) / 1e6:.1f}" if cell.group else MISSING


def _of_dense(cell: Result[Any]) -> str:
    if cell.group is None:
        return MISSING
    return f"{sent(cell.group) / mean(run['bytes']['dense_sent'] for run in cell.group.runs):.1%}"


def findings(one: Section[C], alike: Callable[[C], Any]) -> str:
    """What the cells say of methods.

    Args:
        alike: Equal for cells of different methods that are compared with each other.
    """
    by_cell = {(result.cell.method, alike(result.cell)): result.group for result in one.results if result.group}
    pairs = [(group, by_cell.get(("random", key))) for (method, key), group in by_cell.items() if method == "fish"]
    parts = [progress(one.results, len(one.study.seeds)), *contest("FISH", "random", pairs)]
    return " ".join([*parts, *_dense(one)])


def _dense(one: Section[Any]) -> list[str]:
    """What FISH sends beside dense training that merges as often."""
    groups = [result.group for result in one.results if result.group and result.cell.method == "fish"]
    shares = [sent(group) / mean(run["bytes"]["dense_sent"] for run in group.runs) for group in groups]
    if not shares:
        return []
    return [f"A worker with FISH sends {min(shares):.1%} to {max(shares):.1%} of what dense merges as often would."]
