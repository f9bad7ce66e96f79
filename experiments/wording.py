"""What the numbers of a table say, in sentences made from them."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from experiments.study import Result
from fishexp.report.group import Group
from fishexp.report.table import aligned
from fishexp.run.settings import Config

MISSING = "missing"
NAMES = {"fish": "FISH", "random": "random", "full": "dense training"}


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[0].upper()}{text[1:]}."


def score(result: Result[Any]) -> str:
    """``57.1 ± 0.4 (5 seeds)``; says where runs are missing or failed."""
    failed = [f"{result.failed} failed"] if result.failed else []
    if result.group is None:
        return ", ".join([MISSING, *failed])
    seeds = len(result.group.runs)
    counts = ", ".join(["one seed" if seeds == 1 else f"{seeds} seeds", *failed])
    return f"{result.group.score}{' †' if result.group.uncommitted else ''} ({counts})"


def rate(result: Result[Any]) -> str:
    """The learning rate of its runs."""
    return MISSING if result.lr is None else f"{result.lr:g}"


def progress(results: Sequence[Result[Any]], seeds: int) -> str:
    """How many runs of a table there are, each cell of which should have so many seeds."""
    runs = [run for one in results if one.group for run in one.group.runs]
    hours = sum(sum(run["seconds"].values()) for run in runs) / 3600
    return f"{len(runs)} of the {len(results) * seeds} runs of this table are on record; they took {hours:.1f} hours."


def contest(one: str, other: str, pairs: Sequence[tuple[Group, Group | None]]) -> list[str]:
    """Who is ahead, how often, and how often by more than chance explains."""
    scores = [(a, b, a.mean - b.mean) for a, b in pairs if b is not None and a.mean is not None and b.mean is not None]
    if not scores:
        return []
    low, high = min(gap for *_, gap in scores), max(gap for *_, gap in scores)
    ahead = sum(gap > 0 for *_, gap in scores)
    text = f"{one} is ahead of {other} in {ahead} of {len(scores)} pairs of cells, by {low:+.1f} to {high:+.1f} points"
    errors = [_standard_error(a, b) for a, b, _ in scores]
    if None in errors:
        return [sentence(f"{text}; some cells have fewer than three seeds, so that small differences mean nothing")]
    clear = [gap for (*_, gap), error in zip(scores, errors, strict=True) if error is not None and abs(gap) > 2 * error]
    counts = f"{one} is ahead in {sum(gap > 0 for gap in clear)} and {other} in {sum(gap < 0 for gap in clear)}"
    return [sentence(text), f"By more than two standard errors of the difference, {counts}."]


def _standard_error(a: Group, b: Group) -> float | None:
    """Of the difference of the means; None where a group has fewer than three seeds."""
    if a.std is None or b.std is None or min(len(a.runs), len(b.runs)) < 3:
        return None
    return math.sqrt(a.std**2 / len(a.runs) + b.std**2 / len(b.runs))


def uncommitted(results: Sequence[Result[Any]]) -> list[str]:
    """What the daggers of a table mean, if it has any."""
    dirty = [run_id for one in results if one.group for run_id in one.group.uncommitted]
    return [f"† with uncommitted code: {', '.join(dirty)}"] if dirty else []


def side_by_side(rows: Mapping[str, tuple[str, str]]) -> str:
    """What was run beside the original, as a table: what -> (here, there)."""
    columns = {"": list(rows), "here": [ours for ours, _ in rows.values()]}
    columns["the original"] = [theirs for _, theirs in rows.values()]
    return aligned(columns, left=columns)


def agrees(settings: Mapping[str, Any], run: Config) -> bool:
    """Whether ``run`` has all ``settings``: dotted key -> value."""
    return all(_at(run, key) == value for key, value in settings.items())


def _at(run: Config, key: str) -> Any:
    group, _, rest = key.partition(".")
    return run[group][rest] if rest else run[group]
