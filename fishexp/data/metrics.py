"""Metrics of a task, from logits and labels. Undefined ones are None, never a made-up number."""

import math
import warnings
from collections.abc import Callable

import numpy as np
from torch import Tensor

from fishexp.data.datasets import Metrics


def accuracy(logits: Tensor, labels: Tensor) -> Metrics:
    """Share of examples whose largest logit is the label's, in [0, 1]."""
    return {"accuracy": (logits.argmax(-1) == labels).double().mean().item()}


def accuracy_and_f1(logits: Tensor, labels: Tensor) -> Metrics:
    """Accuracy, and F1 of label 1; F1 is None if label 1 is neither there nor predicted."""
    predicted = logits.argmax(-1)
    hits = int(((predicted == 1) & (labels == 1)).sum())
    named = int((predicted == 1).sum()) + int((labels == 1).sum())
    return accuracy(logits, labels) | {"f1": 2 * hits / named if named else None}


def matthews(logits: Tensor, labels: Tensor) -> Metrics:
    """Matthews correlation in [-1, 1]; None if only one class occurs or is predicted."""
    from sklearn.metrics import matthews_corrcoef

    predicted = logits.argmax(-1)
    if min(len(predicted.unique()), len(labels.unique())) < 2:
        return {"matthews": None} | accuracy(logits, labels)
    return {"matthews": float(matthews_corrcoef(labels.numpy(), predicted.numpy()))} | accuracy(logits, labels)


def correlations(outputs: Tensor, labels: Tensor) -> Metrics:
    """Pearson and Spearman correlation of a regression's (examples, 1) outputs; None if either side is constant."""
    from scipy.stats import pearsonr, spearmanr

    predicted, true = outputs.squeeze(-1).double().numpy(), labels.double().numpy()
    return {"pearson": _defined(pearsonr, predicted, true), "spearman": _defined(spearmanr, predicted, true)}


def _defined(correlation: Callable[..., tuple[float, float]], first: np.ndarray, second: np.ndarray) -> float | None:
    if len(first) < 2:
        return None
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # a constant input: the result is NaN, which is the answer
        value = float(correlation(first, second)[0])
    return value if math.isfinite(value) else None
