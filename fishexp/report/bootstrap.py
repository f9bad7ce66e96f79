"""The paired bootstrap over examples: how a difference of two metrics varies with the examples it is measured on.

A resample draws as many examples as there are, with replacement. All that a metric needs to know of it is how often
each example was drawn, so that thousands of resamples are a matrix of weights, and a metric a few products with it.
Examples on which label and predictions agree are one, with their number: 872 sentences of two classes and two runs are
at most 8.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import lru_cache
from typing import NamedTuple, TypeAlias

import numpy as np

from fishexp.errors import FishexpError
from fishexp.run.predictions import Predictions

RESAMPLES = 10_000
# share of the intervals of many experiments that hold the true difference
CONFIDENCE = 0.95
# share of resamples on which a metric may be undefined; they are left out
_MOST_UNDEFINED = 0.01
# resamples computed at once
_AT_ONCE = 200

# (weights (resamples, examples), labels (examples,), predicted (examples,)) -> (resamples,), NaN where undefined
Metric: TypeAlias = Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]


class Interval(NamedTuple):
    """Hold both ends of an interval."""

    low: float
    high: float

    @property
    def holds_zero(self) -> bool:
        """Tell whether zero lies within, its ends included."""
        return self.low <= 0 <= self.high


def accuracy(weights: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute the share of examples whose label is predicted."""
    return weights @ (labels == predicted) / weights.sum(1)


def f1(weights: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute the F1 score of label 1."""
    both = weights @ ((labels == 1) & (predicted == 1))
    with np.errstate(invalid="ignore"):
        return 2 * both / (weights @ (labels == 1) + weights @ (predicted == 1))


def matthews(weights: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute Matthews correlation, of any number of classes."""
    classes = np.union1d(labels, predicted)
    total, right = weights.sum(1), weights @ (labels == predicted)
    true, named = (weights @ (values[:, None] == classes) for values in (labels, predicted))  # (resamples, classes)
    spread = (total**2 - (true**2).sum(1)) * (total**2 - (named**2).sum(1))
    return _ratio(right * total - (true * named).sum(1), spread)


def pearson(weights: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute Pearson's correlation."""
    first, second = labels - labels.mean(), predicted - predicted.mean()  # near 0, so that squares lose no digits
    moments = np.stack([first, second, first**2, second**2, first * second], axis=1)
    sums = (weights @ moments / weights.sum(1, keepdims=True)).T
    return _ratio(sums[4] - sums[0] * sums[1], (sums[2] - sums[0] ** 2) * (sums[3] - sums[1] ** 2))


def spearman(weights: np.ndarray, labels: np.ndarray, predicted: np.ndarray) -> np.ndarray:
    """Compute Spearman's correlation: Pearson's of the ranks within each resample, the mean rank for equals."""
    first, second = _ranks(weights, labels), _ranks(weights, predicted)
    weighted = weights * first
    spread = _dot(weighted, first) * _dot(weights * second, second)
    return _ratio(_dot(weighted, second), spread)


def _ranks(weights: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Return the rank of each example's value within each resample less the mean rank, (resamples, examples)."""
    order = np.argsort(values, kind="stable")
    starts = np.flatnonzero(np.diff(values[order], prepend=np.nan))  # of each different value
    counts = np.add.reduceat(weights[:, order], starts, axis=1)
    ranks = counts.cumsum(1) - (counts + weights.sum(1, keepdims=True)) / 2
    return ranks[:, np.searchsorted(values[order][starts], values)]


def _dot(first: np.ndarray, second: np.ndarray) -> np.ndarray:
    return np.einsum("ij,ij->i", first, second)


def _ratio(product: np.ndarray, spread: np.ndarray) -> np.ndarray:
    """Return a correlation from a covariance and the product of two variances; NaN where a side does not vary."""
    with np.errstate(invalid="ignore", divide="ignore"):
        return np.where(spread > 0, product / np.sqrt(spread), np.nan)


METRICS: Mapping[str, Metric] = {
    "accuracy": accuracy,
    "f1": f1,
    "matthews": matthews,
    "pearson": pearson,
    "spearman": spearman,
}


def measure(metric: Metric, predictions: Predictions) -> float:
    """Compute a metric of a run's predictions, on its examples as they are; NaN where it is undefined."""
    labels, predicted = _numbers(predictions.labels), _numbers(predictions.predicted)
    return float(metric(np.ones((1, len(labels))), labels, predicted)[0])


def bootstrap(
    metric: Metric, pairs: Sequence[tuple[Predictions, Predictions]], resamples: int = RESAMPLES
) -> tuple[Interval | None, list[Interval | None]]:
    """Return percentile intervals of the difference of a metric within pairs of runs on the same examples.

    Every pair is measured on the same resamples, so that the interval of the mean is of these trained models on other
    examples of the same kind. It does not tell how models vary that are trained with other seeds.

    Args:
        pairs: For each seed, the predictions of the one method and of the other.

    Returns:
        The interval of the mean difference over the pairs, and that of each pair; None where the metric is undefined
        on more than one in a hundred resamples.

    Raises:
        FishexpError: If the runs did not report on the same examples.
    """
    if len(examples := {one.examples for pair in pairs for one in pair}) > 1:
        raise FishexpError(f"runs on different examples cannot be compared: digests {', '.join(sorted(examples))}")
    columns = [pairs[0][0].labels, *(one.predicted for pair in pairs for one in pair)]
    overall, *each = _intervals(
        metric, np.stack([_numbers(column) for column in columns]).tobytes(), len(columns), resamples
    )
    return overall, each


@lru_cache(maxsize=256)
def _intervals(metric: Metric, values: bytes, columns: int, resamples: int) -> tuple[Interval | None, ...]:
    """Compute both intervals once, whether a report tells of a difference in a sentence, a table or both.

    Args:
        values: Labels and predictions in float64, one column after the other.
    """
    table = np.frombuffer(values).reshape(columns, -1)
    kinds, inverse = np.unique(table, axis=1, return_inverse=True)
    kind_of = inverse.reshape(-1)  # of numpy 2.0.0 it has two dimensions
    labels, predicted = kinds[0], kinds[1:]
    found = [
        [metric(weights, labels, first) - metric(weights, labels, second) for first, second in _two_by_two(predicted)]
        for weights in _draws(kind_of, kinds.shape[1], resamples)
    ]
    differences = np.concatenate(found, axis=1)  # (pairs, resamples)
    return _percentiles(differences.mean(0)), *map(_percentiles, differences)


def _numbers(values: np.ndarray) -> np.ndarray:
    return values.astype(np.float64)


def _two_by_two(rows: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    return zip(rows[::2], rows[1::2], strict=True)


def _draws(kind_of: np.ndarray, kinds: int, resamples: int) -> Iterator[np.ndarray]:
    """Draw resamples and count the examples of each kind, (resamples, kinds); the same examples in every call.

    Args:
        kind_of: (examples,), below ``kinds``.
    """
    generator = np.random.default_rng(0)
    for done in range(0, resamples, _AT_ONCE):
        rows = min(_AT_ONCE, resamples - done)
        drawn = kind_of[generator.integers(len(kind_of), size=(rows, len(kind_of)))] + kinds * np.arange(rows)[:, None]
        yield np.bincount(drawn.ravel(), minlength=rows * kinds).reshape(rows, kinds).astype(np.float64)


def _percentiles(differences: np.ndarray) -> Interval | None:
    defined = differences[np.isfinite(differences)]
    if len(defined) < (1 - _MOST_UNDEFINED) * len(differences):
        return None
    low, high = np.quantile(defined, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return Interval(float(low), float(high))
