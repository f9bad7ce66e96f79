"""Differences between two methods, paired by seed and by example, with intervals: what a table may claim."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import mean, stdev
from typing import Any, TypeAlias

import numpy as np

from fishexp.errors import FishexpError
from fishexp.report.bootstrap import CONFIDENCE, METRICS, RESAMPLES, Interval, bootstrap, measure
from fishexp.report.group import Group
from fishexp.run.predictions import Predictions, read_predictions
from fishexp.system.text_table import markdown_table

# run_id -> reported set -> what the run predicted
Predicted: TypeAlias = Mapping[str, Mapping[str, Predictions]]

# pairs from which on an interval over seeds is given
FEWEST_SEEDS = 3
# a metric of predictions may differ from the record's by rounding only
_TOLERANCE = 1e-6
# what stands where there is no number
_NONE = "–"


@dataclass(frozen=True)
class Difference:
    """Hold by how much the headline metric of a group is above that of another, in the unit in which it is shown.

    Attributes:
        values: The difference for each seed that both groups have.
        over_seeds: Interval of the mean difference by Student's t; None for fewer than three seeds, or if all
            differences are equal.
        p: Two-sided p value of the paired t test over seeds; None where there is no interval.
        adjusted: That after Holm's correction for all comparisons of a table.
        over_examples: Interval of the mean difference by the paired bootstrap over the reported examples; None where
            predictions are missing, or the metric is undefined on many resamples.
        within: The bootstrap's interval for each seed alone; empty where predictions are missing.
    """

    values: Sequence[float]
    over_seeds: Interval | None
    p: float | None
    adjusted: float | None
    over_examples: Interval | None
    within: Sequence[Interval | None]

    @property
    def mean(self) -> float:
        """Return the mean difference over the seeds."""
        return mean(self.values)

    @property
    def clear(self) -> bool:
        """Tell whether a report may say who is ahead: no interval holds zero, and the adjusted p is small enough."""
        intervals = [self.over_seeds, *([self.over_examples] if self.within else [])]
        ahead = all(interval is not None and not interval.holds_zero for interval in intervals)
        return ahead and self.adjusted is not None and self.adjusted < 1 - CONFIDENCE


def load_predictions(paths: Iterable[Path]) -> Predicted:
    """Read the predictions beside several files of records; of a run in several of them the last count.

    Raises:
        FishexpError: If a file of predictions is damaged or cannot be read.
    """
    found: dict[str, Mapping[str, Predictions]] = {}
    for path in paths:
        try:
            found |= read_predictions(path)
        except OSError as error:
            raise FishexpError(f"{error.filename} cannot be read ({error.strerror})") from None
    return found


def compare(pairs: Sequence[tuple[Group, Group]], predicted: Predicted) -> list[Difference | None]:
    """Compare the groups of each pair; None where they have no seed in common or a metric is undefined.

    The p values are corrected for all of these comparisons.

    Raises:
        FishexpError: If two groups have other headline metrics or other reported examples, or predictions are not those
            of the records.
    """
    found = [_difference(first, second, predicted) for first, second in pairs]
    tested = [index for index, one in enumerate(found) if one is not None and one.p is not None]
    for index, adjusted in zip(tested, holm([found[index].p for index in tested]), strict=True):  # type: ignore[union-attr]
        found[index] = replace(found[index], adjusted=adjusted)  # type: ignore[type-var]
    return found


def any_interval(pairs: Sequence[tuple[Group, Group]], predicted: Predicted) -> bool:
    """Tell whether some pair has the seeds, or the predictions, that an interval takes."""
    runs = [(first.metric, _paired_by_seed(first, second)) for first, second in pairs]
    return any(len(each) >= FEWEST_SEEDS or _predictions(metric, each, predicted) for metric, each in runs)


def holm(p_values: Sequence[float]) -> list[float]:
    """Adjust p values by Holm's step-down method, so that the chance of any false claim among them stays bounded.

    Source:
        Holm, "A simple sequentially rejective multiple test procedure", Scandinavian Journal of Statistics 6, 1979.
    """
    adjusted, largest = [0.0] * len(p_values), 0.0
    for rank, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        largest = max(largest, min(1.0, (len(p_values) - rank) * p_values[index]))
        adjusted[index] = largest
    return adjusted


def t_interval(values: Sequence[float]) -> tuple[Interval, float] | None:
    """Return Student's interval of the mean of paired differences, and the two-sided p value of its being zero.

    None for fewer than three, and where all are equal: a spread of zero is that of runs that do not depend on the seed.
    """
    if len(values) < FEWEST_SEEDS or stdev(values) <= _TOLERANCE * max(map(abs, values)):
        return None
    from scipy.stats import ttest_1samp

    test: Any = ttest_1samp(values, 0.0)
    low, high = test.confidence_interval(CONFIDENCE)
    return Interval(float(low), float(high)), float(test.pvalue)


def _difference(first: Group, second: Group, predicted: Predicted) -> Difference | None:
    if first.metric != second.metric:
        raise FishexpError(f"{first.label} and {second.label} are not comparable: {first.metric}, {second.metric}")
    pairs = _paired_by_seed(first, second)
    one, other = (group.scores(group.metric) for group in (_group(first, pairs, 0), _group(second, pairs, 1)))
    if not pairs or one.mean is None or other.mean is None:
        return None
    values = [a - b for a, b in zip(one.values, other.values, strict=True) if a is not None and b is not None]
    over_seeds, p = t_interval(values) or (None, None)
    over_examples, within = _over_examples(first.metric, pairs, predicted)
    return Difference(values, over_seeds, p, None, over_examples, within)


def _paired_by_seed(first: Group, second: Group) -> list[tuple[dict[str, Any], dict[str, Any]]]:
    """Return the runs of both groups that have the same seed."""
    others = {run["config"]["seed"]: run for run in second.runs}
    return [(run, others[seed]) for run in first.runs if (seed := run["config"]["seed"]) in others]


def _group(group: Group, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], side: int) -> Group:
    return replace(group, runs=[pair[side] for pair in pairs])


def _over_examples(
    metric: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], predicted: Predicted
) -> tuple[Interval | None, list[Interval | None]]:
    """Return the bootstrap's interval of the mean difference, and that of each pair, in the unit shown."""
    known = _predictions(metric, pairs, predicted)
    if not known:
        return None, []
    overall, each = bootstrap(METRICS[metric.partition("_")[0]], known)
    return _shown(overall), [_shown(one) for one in each]


def _predictions(
    metric: str, pairs: Sequence[tuple[dict[str, Any], dict[str, Any]]], predicted: Predicted
) -> list[tuple[Predictions, Predictions]]:
    """Return the predictions of each pair of runs; none if some are missing, or the metric is none of METRICS.

    Raises:
        FishexpError: If some are not those of the record.
    """
    base, _, name = metric.partition("_")
    sets = [[predicted.get(run["run_id"], {}).get(name) for run in pair] for pair in pairs]
    known = [(first, second) for first, second in sets if first is not None and second is not None]
    if base not in METRICS or len(known) < len(pairs):
        return []
    runs = [(run, one) for pair, found in zip(pairs, known, strict=True) for run, one in zip(pair, found, strict=True)]
    return known if all(_is_metric_of(run, metric, one) for run, one in runs) else []


def _is_metric_of(run: Mapping[str, Any], metric: str, one: Predictions) -> bool:
    """Tell whether the metric on record is ours; one of the same name may be another, such as F1 over all classes.

    Raises:
        FishexpError: If the predictions are not those of the record.
    """
    base, _, name = metric.partition("_")
    recorded, found = run["metrics"].get(metric), measure(METRICS[base], one)
    if recorded is None or not math.isfinite(recorded) or _is_close(found, recorded):
        return True
    share = run["metrics"].get(f"largest_predicted_{name}" if name else "largest_predicted")
    if one.classes > 1 and share is not None and _is_close(_largest_share(one.predicted), share):
        return False
    raise FishexpError(
        f"the predictions of run {run['run_id']} give {metric} {found:.6g}, its record says {recorded:.6g}: "
        "they are of another attempt; run it again"
    )


def _is_close(found: float, recorded: float) -> bool:
    return math.isclose(found, recorded, rel_tol=_TOLERANCE, abs_tol=_TOLERANCE)


def _largest_share(predicted: np.ndarray) -> float:
    """Compute the share of the most frequent prediction."""
    return float(np.unique(predicted, return_counts=True)[1].max()) / len(predicted)


def _shown(interval: Interval | None) -> Interval | None:
    """Return an interval in the unit in which all of METRICS are shown, a hundredth."""
    return None if interval is None else Interval(100 * interval.low, 100 * interval.high)


def difference_table(
    columns: Mapping[str, Sequence[str]], pairs: Sequence[tuple[Group, Group]], predicted: Predicted, name: str
) -> list[str]:
    """Make the table of differences as Markdown, and the paragraph that says what it claims; nothing of no pairs.

    Arguments and errors are those of :func:`difference_columns`.
    """
    if not pairs:
        return []
    table, about = difference_columns(columns, pairs, predicted, name)
    return [markdown_table(table, left=[*columns]), about]


def difference_columns(
    columns: Mapping[str, Sequence[str]], pairs: Sequence[tuple[Group, Group]], predicted: Predicted, name: str
) -> tuple[dict[str, Sequence[str]], str]:
    """Make the columns of the table of differences, and the paragraph that says what it claims.

    Args:
        columns: Header -> cells that say which pair a row is of.
        pairs: What is compared, and with what.
        name: Of what all are compared with.

    Raises:
        FishexpError: As :func:`compare` does.
    """
    found = compare(pairs, predicted)
    headers = {first.header for first, _ in pairs}
    what = f"{headers.pop()} against {name}" if len(headers) == 1 else f"against {name}"
    table: dict[str, Sequence[str]] = {
        **columns,
        what: [_mean(one) for one in found],
        "95 % over seeds": [_text(one.over_seeds if one else None) for one in found],
        "p": [_NONE if one is None or one.adjusted is None else f"{one.adjusted:.2g}" for one in found],
        "95 % over examples": [_text(one.over_examples if one else None) for one in found],
        "clear within seeds": [_within(one) for one in found],
        "seeds": [_NONE if one is None else str(len(one.values)) for one in found],
    }
    return table, about_differences(found)


def about_differences(found: Sequence[Difference | None]) -> str:
    """Say what the intervals of a table cover, for how many comparisons its p values are corrected, what is missing."""
    tested = sum(one is not None and one.p is not None for one in found)
    some = [one for one in found if one is not None]
    parts = ["Differences are means over the seeds that both have, paired by seed."]
    if tested:
        parts.append(
            "Over seeds: Student's t interval of the mean difference, which covers what a seed draws (new weights, "
            "mask, order, dropout), on these examples, and is that of a single comparison; p is that of the paired t "
            f"test, two-sided, after Holm's correction for {tested} comparison{'s' * (tested > 1)}."
        )
    if few := sum(len(one.values) < FEWEST_SEEDS for one in some):
        parts.append(f"No interval over seeds for {few} of {len(found)}: fewer than three seeds.")
    if equal := sum(one.p is None for one in some) - few:
        parts.append(f"No interval over seeds for {equal} of {len(found)}: the same difference for every seed.")
    if any(one.within for one in some):
        parts.append(
            f"Over examples: percentile interval of {RESAMPLES:,} paired bootstrap resamples of the reported examples, "
            "the same for all seeds, which covers other examples of the kind, for these trained models. Clear within "
            "seeds: for how many seeds the interval over examples, of that seed alone, leaves out zero."
        )
    if bare := sum(not one.within for one in some):
        parts.append(
            f"No interval over examples for {bare} of {len(found)}: no predictions on record, or another metric."
        )
    if undefined := sum(bool(one.within) and one.over_examples is None for one in some):
        parts.append(f"No interval over examples for {undefined} of {len(found)}: undefined on too many resamples.")
    if len(some) < len(found):
        parts.append("No difference where no seed is common or the metric is undefined.")
    if tested:
        parts.append(f"Bold: no interval{' that is given' * bool(bare)} holds zero, and p is below 0.05.")
    if tested and bare:
        parts.append("Without one over examples that is said of these examples alone.")
    return " ".join(parts)


def _mean(one: Difference | None) -> str:
    if one is None:
        return _NONE
    return f"**{one.mean:+.2f}**" if one.clear else f"{one.mean:+.2f}"


def _text(interval: Interval | None) -> str:
    return _NONE if interval is None else f"[{interval.low:+.2f}, {interval.high:+.2f}]"


def _within(one: Difference | None) -> str:
    if one is None or not one.within:
        return _NONE
    clear = sum(interval is not None and not interval.holds_zero for interval in one.within)
    return f"{clear} of {len(one.within)}"
