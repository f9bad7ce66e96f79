"""Differences between two methods: paired by seed and by example, corrected, and claimed only where they are clear."""

from collections.abc import Mapping, Sequence
from itertools import permutations
from typing import Any

import numpy as np
import pytest
from scipy import stats
from sklearn.metrics import accuracy_score, f1_score

from fishexp.errors import FishexpError
from fishexp.report.bootstrap import METRICS, Interval, bootstrap
from fishexp.report.differences import Predicted, compare, difference_table, holm, t_interval
from fishexp.report.group import Group
from fishexp.report.pool import pool
from fishexp.run.predictions import Predictions
from tests.support.records import record

COUNT = 500
LABELS = np.random.default_rng(0).integers(0, 2, COUNT)


def predictions(right: int, seed: int, examples: str = "e") -> Predictions:
    """Make up predictions of which so many are right: on the first examples, and on some others."""
    wrong = np.random.default_rng(seed).permutation(COUNT)[right:]
    predicted = LABELS.copy()
    predicted[wrong] = 1 - predicted[wrong]
    return Predictions(examples, 2, LABELS, predicted)


def runs(rights: Mapping[str, Sequence[int]]) -> tuple[dict[str, Group], Predicted]:
    """Make up the groups of several methods: method -> right answers of each seed."""
    lines: list[dict[str, Any]] = []
    predicted: dict[str, Mapping[str, Predictions]] = {}
    for method, counts in rights.items():
        for seed, right in enumerate(counts):
            lines.append(record(right / COUNT, method=method, seed=seed, run_id=f"{method}{seed}"))
            predicted[f"{method}{seed}"] = {"": predictions(right, hash_of(method, seed))}
    return {group.method: group for group in pool(lines).reported}, predicted


def hash_of(method: str, seed: int) -> int:
    return sum(map(ord, method)) * 100 + seed


FISH, RANDOM, MAGNITUDE = [450, 455, 449], [400, 398, 405], [448, 456, 450]


def test_the_interval_over_seeds_is_scipys_and_that_over_examples_of_all_seeds_together() -> None:
    groups, predicted = runs({"fish": FISH, "random": RANDOM})
    (one,) = compare([(groups["fish"], groups["random"])], predicted)
    assert one is not None
    expected = stats.ttest_rel([100 * right / COUNT for right in FISH], [100 * right / COUNT for right in RANDOM])
    assert one.over_seeds == pytest.approx(tuple(expected.confidence_interval(0.95)))  # pyright: ignore
    assert one.p == one.adjusted == pytest.approx(expected.pvalue)  # pyright: ignore
    pairs = [(predicted[f"fish{seed}"][""], predicted[f"random{seed}"][""]) for seed in range(3)]
    mean, each = bootstrap(METRICS["accuracy"], pairs)
    assert mean is not None
    assert one.over_examples == pytest.approx((100 * mean.low, 100 * mean.high))
    assert [interval and interval.low for interval in one.within] == [100 * low for low, _ in each]  # type: ignore[misc]
    assert one.mean == pytest.approx(np.mean([accuracy_score(LABELS, a.predicted) - accuracy_score(LABELS, b.predicted)
                                              for a, b in pairs]) * 100)  # fmt: skip
    assert one.clear


def test_holm_is_its_definition() -> None:
    """The k-th smallest times the number that are not smaller, and no smaller than those before; whatever the order."""
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1, 1]
    assert holm([]) == []
    for order in permutations([0.001, 0.02, 0.02, 0.6]):
        adjusted = holm(order)
        for p, one in zip(order, adjusted, strict=True):
            below = sorted(order)[: sorted(order).index(p) + 1]
            assert one == pytest.approx(max(min(1, (4 - rank) * value) for rank, value in enumerate(below)))


def test_p_values_are_corrected_for_all_comparisons_of_the_table() -> None:
    groups, predicted = runs({"fish": FISH, "random": RANDOM, "magnitude": MAGNITUDE})
    pairs = [(groups["random"], groups["fish"]), (groups["magnitude"], groups["fish"])]
    first, second = compare(pairs, predicted)
    assert first is not None
    assert second is not None
    assert [first.adjusted, second.adjusted] == holm([one.p for one in (first, second) if one.p is not None])
    assert first.adjusted == 2 * (first.p or 0)
    assert (first.clear, second.clear) == (True, False)
    text, about = difference_table({"method": ["random", "magnitude"]}, pairs, predicted, "fish")
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in text.splitlines()]
    assert rows[0] == ["method", "accuracy, % against fish", "95 % over seeds", "p", "95 % over examples",
                       "clear within seeds", "seeds"]  # fmt: skip
    assert rows[2][1] == f"**{first.mean:+.2f}**"
    assert rows[2][5:] == ["3 of 3", "3"]
    assert rows[3][1] == f"{second.mean:+.2f}"
    assert "after Holm's correction for 2 comparisons" in about
    assert "10,000 paired bootstrap resamples" in about
    assert about.endswith(" Bold: no interval holds zero, and p is below 0.05.")


@pytest.mark.parametrize("seeds", [1, 2])
def test_fewer_than_three_seeds_have_the_bootstrap_only_and_claim_nothing(seeds: int) -> None:
    groups, predicted = runs({"fish": FISH[:seeds], "random": RANDOM})
    pairs = [(groups["fish"], groups["random"])]
    (one,) = compare(pairs, predicted)
    assert one is not None
    assert (one.over_seeds, one.p, one.adjusted, len(one.values), one.clear) == (None, None, None, seeds, False)
    assert one.over_examples is not None
    assert not one.over_examples.holds_zero
    text, about = difference_table({"method": ["fish"]}, pairs, predicted, "random")
    assert "**" not in text
    assert "No interval over seeds for 1 of 1: fewer than three seeds." in about
    assert "Holm" not in about
    assert "Bold" not in about  # nothing is


def test_records_without_predictions_have_the_interval_over_seeds_only() -> None:
    groups, _ = runs({"fish": FISH, "random": RANDOM})
    pairs = [(groups["fish"], groups["random"])]
    (one,) = compare(pairs, {})
    assert one is not None
    assert (one.over_examples, one.within, one.clear) == (None, [], True)
    about = difference_table({"method": ["fish"]}, pairs, {}, "random")[1]
    assert "No interval over examples for 1 of 1: no predictions on record" in about
    assert about.endswith(" Without one over examples that is said of these examples alone.")


def test_seeds_that_only_one_has_are_left_out() -> None:
    groups, predicted = runs({"fish": [*FISH, 10], "random": RANDOM})
    (one,) = compare([(groups["fish"], groups["random"])], predicted)
    assert one is not None
    assert one.values == pytest.approx([10, 11.4, 8.8])


def test_what_is_the_same_for_every_seed_is_no_evidence() -> None:
    """Both name one class for all examples, whatever the seed: a t test would be certain of the difference."""
    groups, predicted = runs({"fish": [255] * 3, "random": [245] * 3})
    pairs = [(groups["fish"], groups["random"])]
    (one,) = compare(pairs, predicted)
    assert one is not None
    assert (one.over_seeds, one.p, one.clear) == (None, None, False)
    assert t_interval([0.0, 0.0, 0.0]) is None
    about = difference_table({"method": ["fish"]}, pairs, predicted, "random")[1]
    assert "No interval over seeds for 1 of 1: the same difference for every seed." in about


def test_an_interval_over_examples_that_holds_zero_claims_nothing() -> None:
    """However sure the seeds are: each is one example of 500 ahead, or two."""
    groups, predicted = runs({"fish": [451, 452, 451], "random": [450, 450, 450]})
    (one,) = compare([(groups["fish"], groups["random"])], predicted)
    assert one is not None
    assert one.over_seeds is not None
    assert one.over_examples is not None
    assert (one.over_examples.holds_zero, one.clear) == (True, False)


def test_undefined_metrics_and_other_seeds_have_no_difference() -> None:
    lines = [record(None, method="random", seed=0), record(0.5, seed=0)]
    random, fish = sorted(pool(lines).reported, key=lambda group: -len(group.method))
    later = pool([record(0.5, seed=7)]).reported[0]
    pairs = [(fish, random), (fish, later)]
    assert compare(pairs, {}) == [None, None]
    assert "No difference where" in difference_table({"method": ["a", "b"]}, pairs, {}, "random")[1]


def test_predictions_of_another_attempt_are_refused() -> None:
    groups, predicted = runs({"fish": FISH, "random": RANDOM})
    wrong = {**predicted, "fish1": {"": predictions(300, 5)}}
    with pytest.raises(FishexpError, match=r"the predictions of run fish1 give accuracy 0\.6, its record says 0\.91"):
        compare([(groups["fish"], groups["random"])], wrong)


def test_another_metric_of_the_same_name_has_no_interval_over_examples() -> None:
    """Such as a user's own F1 over all classes; the predictions are known to be of the run by their largest share."""
    lines, predicted = [], {}
    for method, rights in (("fish", FISH), ("random", RANDOM)):
        for seed, right in enumerate(rights):
            one = predictions(right, seed)
            f1 = float(f1_score(one.labels, one.predicted, average="macro"))
            share = max(one.predicted.mean(), 1 - one.predicted.mean())
            run_id = f"{method}{seed}"
            more = {"largest_predicted": float(share)}
            lines.append(record(f1, metric="f1", method=method, seed=seed, run_id=run_id, more=more))
            predicted[run_id] = {"": one}
    groups = {group.method: group for group in pool(lines).reported}
    (one,) = compare([(groups["fish"], groups["random"])], predicted)
    assert one is not None
    assert one.over_seeds is not None
    assert (one.over_examples, one.within) == (None, [])


def test_metrics_that_differ_and_examples_that_differ_are_refused() -> None:
    groups, predicted = runs({"fish": FISH, "random": RANDOM})
    other = pool([record(0.5, metric="matthews")]).reported[0]
    with pytest.raises(FishexpError, match="fish and fish are not comparable: accuracy, matthews"):
        compare([(groups["fish"], other)], {})
    moved = {**predicted, "fish1": {"": predictions(FISH[1], hash_of("fish", 1), examples="f")}}
    with pytest.raises(FishexpError, match="runs on different examples cannot be compared: digests e, f"):
        compare([(groups["fish"], groups["random"])], moved)


def test_95_of_100_intervals_over_seeds_hold_the_true_difference() -> None:
    """Three seeds of two methods, whose seeds agree in part; a thousand times."""
    draw = np.random.default_rng(0)
    shared = draw.normal(size=(1000, 3))
    first, second = (70 + gap + shared + 0.5 * draw.normal(size=(1000, 3)) for gap in (2, 0))
    held = [t_interval(list(row)) for row in first - second]
    assert 930 <= sum(one is not None and one[0].low <= 2 <= one[0].high for one in held) <= 970


def test_the_ends_of_an_interval_are_in_it() -> None:
    assert Interval(0, 1).holds_zero
    assert Interval(-1, 0).holds_zero
    assert not Interval(0.1, 1).holds_zero
