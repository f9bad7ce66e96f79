"""Metrics of resamples against scikit-learn's and SciPy's on the drawn examples, and the bootstrap against SciPy's."""

import warnings
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn import metrics as sklearn

from fishexp.errors import FishexpError
from fishexp.report.bootstrap import METRICS, RESAMPLES, Interval, bootstrap, measure
from fishexp.run.predictions import Predictions


def _coefficient(result: Any) -> float:
    return float(result.statistic)


BRUTE: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda labels, predicted: float(sklearn.accuracy_score(labels, predicted)),
    "f1": lambda labels, predicted: float(sklearn.f1_score(labels, predicted)),
    "matthews": lambda labels, predicted: float(sklearn.matthews_corrcoef(labels, predicted)),
    "pearson": lambda labels, predicted: _coefficient(stats.pearsonr(labels, predicted)),
    "spearman": lambda labels, predicted: _coefficient(stats.spearmanr(labels, predicted)),
}


def examples(metric: str, count: int, seed: int = 0, classes: int = 2) -> list[np.ndarray]:
    """Draw labels, predictions of a method, and those of one that agrees with it more than with the labels."""
    draw = np.random.default_rng(seed)
    if metric in ("pearson", "spearman"):
        labels = draw.integers(0, 26, count) / 5  # with equals, as in STS-B
        first = labels + draw.normal(size=count)
        return [labels, first.round(1), (first + draw.normal(size=count)).round(1)]
    labels = draw.choice(classes, count, p=np.arange(1, classes + 1) / np.arange(1, classes + 1).sum())
    first = np.where(draw.random(count) < 0.8, labels, draw.integers(0, classes, count))
    return [labels, first, np.where(draw.random(count) < 0.9, first, draw.integers(0, classes, count))]


def pair(labels: np.ndarray, *predicted: np.ndarray) -> tuple[Predictions, Predictions]:
    first, second = (Predictions("0123456789ab", 2, labels, each) for each in predicted)
    return first, second


CASES = [(name, 2) for name in BRUTE] + [("matthews", 5), ("accuracy", 5)]


@pytest.mark.parametrize(("name", "classes"), CASES)
def test_a_metric_of_weights_is_that_of_the_examples_drawn_so_often(name: str, classes: int) -> None:
    labels, predicted, _ = examples(name, 40, classes=classes)
    draws = np.random.default_rng(1).integers(40, size=(50, 40))
    weights = np.stack([np.bincount(draw, minlength=40) for draw in draws]).astype(float)
    expected = [BRUTE[name](labels[draw], predicted[draw]) for draw in draws]
    np.testing.assert_allclose(METRICS[name](weights, labels, predicted), expected, atol=1e-12)
    assert measure(METRICS[name], pair(labels, predicted, predicted)[0]) == pytest.approx(
        BRUTE[name](labels, predicted)
    )


@pytest.mark.parametrize("name", ["f1", "matthews", "pearson", "spearman"])
def test_what_is_undefined_is_not_a_number(name: str) -> None:
    weights, labels = np.ones((1, 6)), np.array([0.0, 1, 2, 0, 1, 2])
    labels = labels * 0 if name == "f1" else labels
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert np.isnan(METRICS[name](weights, labels, np.zeros(6))).all()


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=[pytest.mark.slow] * (name in ("f1", "matthews"))) for name in BRUTE]
)
def test_the_interval_is_that_of_scipy(name: str) -> None:
    """Up to what 10,000 and 2,000 resamples vary by: some hundredths of the interval's length."""
    data = examples(name, 200)
    found, (alone,) = bootstrap(METRICS[name], [pair(*data)])
    metric = BRUTE[name]
    expected = stats.bootstrap(
        tuple(data), lambda labels, a, b: metric(labels, a) - metric(labels, b), paired=True, vectorized=False,
        n_resamples=2_000, method="percentile", rng=np.random.default_rng(2),
    ).confidence_interval  # fmt: skip
    assert found == alone
    assert found is not None
    np.testing.assert_allclose(found, [expected.low, expected.high], atol=0.1 * (expected.high - expected.low))


def test_resamples_are_those_of_the_examples_themselves() -> None:
    """The same draws, each metric computed by scikit-learn on the examples drawn."""
    labels, first, second = examples("matthews", 60)
    found, _ = bootstrap(METRICS["matthews"], [pair(labels, first, second)], resamples=100)
    draws = np.random.default_rng(0).integers(60, size=(100, 60))
    metric = BRUTE["matthews"]
    gaps = [metric(labels[draw], first[draw]) - metric(labels[draw], second[draw]) for draw in draws]
    assert found is not None
    np.testing.assert_allclose(found, np.quantile(gaps, [0.025, 0.975]), atol=1e-12)


def test_all_seeds_are_measured_on_the_same_resamples() -> None:
    """So that the mean of equal pairs is each of them, and of opposite ones nothing at all."""
    labels, first, second = examples("accuracy", 300)
    one, other = pair(labels, first, second), pair(labels, second, first)
    mean, each = bootstrap(METRICS["accuracy"], [one, one])
    assert [mean, mean] == each
    mean, (up, down) = bootstrap(METRICS["accuracy"], [one, other])
    assert mean == Interval(0, 0)
    assert up is not None
    assert down == pytest.approx(Interval(-up.high, -up.low))


def test_a_metric_that_is_often_undefined_has_no_interval() -> None:
    """One sentence in two hundred is predicted to be of the other class: absent from a third of the resamples."""
    labels, good, _ = examples("matthews", 200)
    lone = np.zeros(200)
    lone[7] = 1
    assert bootstrap(METRICS["matthews"], [pair(labels, good, lone)]) == (None, [None])


def test_runs_on_other_examples_are_refused() -> None:
    labels, first, second = examples("accuracy", 10)
    one, other = Predictions("a", 2, labels, first), Predictions("b", 2, labels, second)
    with pytest.raises(FishexpError, match="runs on different examples cannot be compared: digests a, b"):
        bootstrap(METRICS["accuracy"], [(one, other)])


@pytest.mark.slow
@pytest.mark.parametrize(("name", "resamples"), [("accuracy", 2000), ("matthews", 2000), ("pearson", 1000)])
def test_95_of_100_intervals_hold_the_true_difference(name: str, resamples: int) -> None:
    """A thousand pairs of methods on 400 examples, whose true difference is that on two million."""
    true = BRUTE[name](*_long(name)[:2]) - BRUTE[name](*_long(name)[::2])
    held = 0
    for seed in range(1000):
        found, _ = bootstrap(METRICS[name], [pair(*_drawn(name, 400, seed))], resamples)
        assert found is not None
        held += found.low <= true <= found.high
    assert 930 <= held <= 970


def _long(name: str) -> list[np.ndarray]:
    return _drawn(name, 2_000_000, 123_456)


def _drawn(name: str, count: int, seed: int) -> list[np.ndarray]:
    draw = np.random.default_rng(seed)
    if name == "pearson":
        labels = draw.normal(size=count)
        first = labels + draw.normal(size=count)
        return [labels, first, labels + 0.5 * (first - labels) + draw.normal(size=count)]
    labels = (draw.random(count) < 0.4).astype(float)
    first = np.where(draw.random(count) < 0.85, labels, 1 - labels)
    return [labels, first, np.where(draw.random(count) < 0.9, first, draw.integers(0, 2, count))]


@pytest.mark.alone
def test_ten_thousand_resamples_take_seconds() -> None:
    import time

    start = time.process_time()
    bootstrap(METRICS["matthews"], [pair(*examples("matthews", 872))] * 3)
    assert RESAMPLES == 10_000
    assert time.process_time() - start < 3
