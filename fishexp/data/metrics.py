"""Metrics of a task, from logits and labels. An undefined metric is None, never a made-up number."""

import math
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from torch import Tensor

from fishexp.data.datasets import Metrics
from fishexp.data.directions import LESS_IS_BETTER
from fishexp.errors import FishexpError


def check_headline(names: Sequence[str]) -> None:
    """Refuse the metrics of these names if less of the first is better: reports, and what is chosen, take the most.

    Raises:
        FishexpError: If so, or if there is no metric.
    """
    if not names:
        raise FishexpError("the metrics of the data set are empty; return at least one, of which more is better")
    headline = names[0]
    if headline in LESS_IS_BETTER:
        raise FishexpError(
            f"{headline} is the first metric of the data set, and less of it is better; put one first of which more is "
            f"better, such as neg_{headline}"
        )


def accuracy(logits: Tensor, labels: Tensor) -> Metrics:
    """Compute the share of examples whose largest logit is the label's, in [0, 1]."""
    return {"accuracy": (logits.argmax(-1) == labels).double().mean().item()}


def accuracy_and_f1(logits: Tensor, labels: Tensor) -> Metrics:
    """Compute the accuracy, and the F1 score of label 1, which is None if label 1 neither occurs nor is predicted."""
    from sklearn.metrics import f1_score

    # its annotation says str, its documentation NaN too
    undefined: Any = math.nan
    f1 = f1_score(labels.numpy(), logits.argmax(-1).numpy(), zero_division=undefined)
    return accuracy(logits, labels) | {"f1": _finite(f1)}


def matthews(logits: Tensor, labels: Tensor) -> Metrics:
    """Compute Matthews correlation, in [-1, 1] and None if a single class occurs or is predicted, and the accuracy."""
    from sklearn.metrics import matthews_corrcoef

    predicted = logits.argmax(-1)
    if min(len(predicted.unique()), len(labels.unique())) < 2:
        return {"matthews": None} | accuracy(logits, labels)
    return {"matthews": float(matthews_corrcoef(labels.numpy(), predicted.numpy()))} | accuracy(logits, labels)


def class_shares(logits: Tensor, labels: Tensor) -> Metrics:
    """Compute the shares of the most frequent label and of the most frequent prediction, in (0, 1].

    The first is the accuracy of always naming that class; the second is 1 where a model names one class for everything.
    """
    found = {"largest_class": labels, "largest_predicted": logits.argmax(-1)}
    return {name: values.unique(return_counts=True)[1].max().item() / len(values) for name, values in found.items()}


def correlations(outputs: Tensor, labels: Tensor) -> Metrics:
    """Compute Pearson and Spearman correlation of a regression's (examples, 1) outputs; None if a side is constant."""
    from scipy.stats import pearsonr, spearmanr

    predicted, true = outputs.squeeze(-1).double().numpy(), labels.double().numpy()
    return {"pearson": _correlation(pearsonr, predicted, true), "spearman": _correlation(spearmanr, predicted, true)}


def _correlation(function: Callable[..., tuple[float, float]], first: np.ndarray, second: np.ndarray) -> float | None:
    if len(first) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of a constant input, for which the result is NaN
        return _finite(function(first, second)[0])


def _finite(value: float) -> float | None:
    """Return a metric, None for NaN or infinity: it is undefined."""
    return float(value) if math.isfinite(value) else None
