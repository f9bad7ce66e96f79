"""Metrics equal those of scikit-learn, scipy and the formulas; an undefined metric is None, without a warning."""

import math
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata
from sklearn.metrics import accuracy_score, f1_score

from fishexp.data.metrics import accuracy, accuracy_and_f1, check_headline, class_shares, correlations, matthews
from fishexp.training.evaluate import evaluate
from tests.support.cli import QUICK, fishexp, records
from tests.support.training import mlp, problem

BINARY = st.lists(st.tuples(st.integers(0, 1), st.integers(0, 1)), min_size=1, max_size=40)
# few distinct values, so that ties are common
NUMBERS = st.lists(st.tuples(st.integers(-4, 4), st.integers(0, 5)), min_size=1, max_size=40)


def logits_for(predicted: list[int], classes: int) -> torch.Tensor:
    """Draw random logits whose largest is that of ``predicted``."""
    logits = torch.randn(len(predicted), classes, generator=torch.Generator().manual_seed(0))
    logits[torch.arange(len(predicted)), predicted] = 10.0
    return logits


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_accuracy(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = map(list, zip(*pairs, strict=True))
    found = accuracy(logits_for(predicted, 4), torch.tensor(labels))
    assert found == {"accuracy": accuracy_score(labels, predicted)}  # exactly: no float32 rounding in records


@given(pairs=st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=1, max_size=60))
def test_the_largest_class_of_labels_and_predictions(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = map(list, zip(*pairs, strict=True))
    assert class_shares(logits_for(predicted, 4), torch.tensor(labels)) == {
        "largest_class": Counter(labels).most_common(1)[0][1] / len(pairs),
        "largest_predicted": Counter(predicted).most_common(1)[0][1] / len(pairs),
    }


def test_a_model_that_names_the_largest_class_only_has_its_share_as_accuracy() -> None:
    logits, labels = logits_for([1] * 10, 2), torch.tensor([1] * 7 + [0] * 3)
    found = class_shares(logits, labels)
    assert found == {"largest_class": accuracy(logits, labels)["accuracy"], "largest_predicted": 1}


@given(pairs=BINARY)
def test_f1_is_that_of_label_1(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = map(list, zip(*pairs, strict=True))
    found = accuracy_and_f1(logits_for(predicted, 2), torch.tensor(labels))
    assert list(found) == ["accuracy", "f1"]
    assert found["accuracy"] == accuracy_score(labels, predicted)
    if 1 in labels or 1 in predicted:
        assert found["f1"] == pytest.approx(f1_score(labels, predicted), abs=1e-12)
    else:
        assert found["f1"] is None


@given(pairs=BINARY)
def test_matthews(pairs: list[tuple[int, int]]) -> None:
    predicted, labels = map(list, zip(*pairs, strict=True))
    found = matthews(logits_for(predicted, 2), torch.tensor(labels))
    assert list(found) == ["matthews", "accuracy"]
    assert found["accuracy"] == accuracy_score(labels, predicted)
    tp, tn, fp, fn = (sum(pair == kind for pair in pairs) for kind in [(1, 1), (0, 0), (1, 0), (0, 1)])
    below = (tp + fp) * (tp + fn) * (tn + fp) * (tn + fn)
    if below:
        assert found["matthews"] == pytest.approx((tp * tn - fp * fn) / math.sqrt(below), abs=1e-12)
    else:
        assert found["matthews"] is None


@given(pairs=NUMBERS)
def test_correlations(pairs: list[tuple[int, int]]) -> None:
    outputs, labels = (np.array(side, dtype=float) / 7 for side in zip(*pairs, strict=True))
    found = correlations(torch.from_numpy(outputs).float()[:, None], torch.from_numpy(labels).float())
    assert list(found) == ["pearson", "spearman"]
    if len(set(outputs)) == 1 or len(set(labels)) == 1:
        assert found == {"pearson": None, "spearman": None}
        return
    assert found["pearson"] == pytest.approx(np.corrcoef(outputs, labels)[0, 1], abs=1e-6)
    assert found["spearman"] == pytest.approx(np.corrcoef(rankdata(outputs), rankdata(labels))[0, 1], abs=1e-12)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_outputs_that_are_not_finite_have_no_pearson(bad: float) -> None:
    found = correlations(torch.tensor([[0.0], [1.0], [bad]]), torch.tensor([0.0, 1.0, 2.0]))
    assert found["pearson"] is None
    assert found["spearman"] == (None if math.isnan(bad) else 1.0)  # inf is the largest of them


@pytest.mark.parametrize(
    ("metrics", "message"),
    [
        (
            {"mse": 0.2, "accuracy": 0.5},
            "mse is the first metric of the data set, and less of it is better; put one first",
        ),
        ({}, "the metrics of the data set are empty"),
    ],
)
def test_what_reports_would_take_the_most_of_has_to_be_a_success(
    metrics: dict[str, float], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Before anything is scored or trained: rates, and the best of a table, are chosen by the first metric."""
    check_headline(["neg_mse", "mse"])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fishexp.data.digits.accuracy", lambda logits, labels: dict(metrics))
    assert message in fishexp(*QUICK).mistake()
    (record,) = records(tmp_path)
    assert record["seconds"]["scores"] == record["seconds"]["train"] == 0


def test_the_names_of_metrics_are_those_of_an_evaluation() -> None:
    ours = problem(mlp(), (5,))
    names = ours.data.metric_names(ours.data.valid[""].labels)
    assert [*names, "loss"] == list(evaluate(ours, 4).metrics)[: len(names) + 1]
