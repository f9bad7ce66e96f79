"""Masks of rows, columns and channels, against units listed entry by entry and fractions that are exact."""

import logging
import math
from collections.abc import Callable
from fractions import Fraction
from itertools import product
from typing import Any, get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fishexp.errors import FishexpError
from fishexp.masks import top_k
from fishexp.masks.budget import budget
from fishexp.masks.random_masks import Seeded, random_scores
from fishexp.masks.selection import DTYPES
from fishexp.masks.topk import count, split
from fishexp.masks.units import Unit, unit_means, unit_shape
from fishexp.methods import random
from tests.support.checks import refusal
from tests.support.training import mlp, problem

UNITS = get_args(Unit)
# vectors and scalars, Linears, an embedding, convolutions: of 3x3, in groups, depthwise, of one dimension; odd ones
MATRICES, CONVOLUTIONS = [(4, 6), (6, 4), (9, 2), (1, 7), (7, 1), (0, 3)], [(3, 2, 3, 3), (4, 2, 1, 1), (4, 1, 3, 3)]
SHAPES = st.sampled_from([(), (5,), *MATRICES, *CONVOLUTIONS, (3, 2, 3), (1, 1, 5)])


def units(shape: tuple[int, ...], unit: Unit) -> list[list[int]]:
    """The flat positions of each unit, unit by unit."""
    keys = {
        "entry": lambda at: at,
        "row": lambda at: at[:1],
        "column": lambda at: at[1:],
        "channel": lambda at: at[1:2],
    }
    found: dict[tuple[int, ...], list[int]] = {}
    for position, at in enumerate(product(*map(range, shape))):
        found.setdefault(keys[unit](at) if len(shape) > 1 else at, []).append(position)
    return list(found.values())


def dealt(scores: dict[str, Tensor], budgets: list[int], always: list[str], unit: Unit) -> list[dict[str, set[int]]]:
    """The rule, spelled out: name -> flat positions, for each worker; all of ``always``."""
    ranked = []
    for name, score in scores.items():
        numbers = [Fraction(number) for number in score.flatten().tolist()]
        own = units(tuple(score.shape), unit) if name not in always else []
        ranked += [(sum(numbers[p] for p in positions) / len(positions), name, positions) for positions in own]
    ranked.sort(key=lambda one: -one[0])  # stable
    masks = [{name: set(range(s.numel())) if name in always else set() for name, s in scores.items()} for _ in budgets]
    left = list(budgets)
    for _, name, positions in ranked:
        worker = left.index(max(left))
        if len(positions) <= left[worker]:
            left[worker] -= len(positions)
            masks[worker][name] |= set(positions)
    return masks


def positions(mask: dict[str, Tensor]) -> dict[str, set[int]]:
    return {name: set(kept.flatten().nonzero().flatten().tolist()) for name, kept in mask.items()}


@given(
    shapes=st.lists(SHAPES, min_size=1, max_size=4),
    unit=st.sampled_from(UNITS),
    ties=st.booleans(),
    head=st.booleans(),
    keep=st.floats(0.01, 1),
    workers=st.integers(1, 4),
    seed=st.integers(0, 2**32),
)
def test_the_units_of_the_highest_means_that_fit(
    shapes: list[tuple[int, ...]], unit: Unit, ties: bool, head: bool, keep: float, workers: int, seed: int
) -> None:
    g = torch.Generator().manual_seed(seed)
    draw = (lambda s: torch.randint(-2, 3, s, generator=g)) if ties else (lambda s: torch.randn(s, generator=g))
    scores = {f"p{i}": draw(shape) for i, shape in enumerate(shapes)}
    total, always = sum(score.numel() for score in scores.values()), ["p0"] if head else []
    kept = budget(keep, total)
    k = kept - sum(scores[name].numel() for name in always)
    if kept == 0 or k < 0 or workers * k > total - kept + k:
        return
    expected = dealt(scores, [k] * workers, always, unit)
    empty = [not any(mask[name] for name in mask if name not in always) for mask in expected]
    if k and any(empty):
        assert "no unit is left that fits" in refusal(split, scores, keep, workers, always, unit)
        return
    masks = split(scores, keep, workers, always, unit)
    assert [positions(mask) for mask in masks] == expected
    assert all(list(mask) == list(scores) for mask in masks)
    assert all(mask[name].shape == score.shape for mask in masks for name, score in scores.items())
    assert all(count(mask) <= kept for mask in masks)
    if workers == 1:
        assert positions(top_k(scores, keep, always, unit)) == expected[0]


@given(shapes=st.lists(SHAPES, min_size=1, max_size=4), keep=st.floats(0.05, 1), seed=st.integers(0, 2**32))
def test_single_entries_are_what_units_of_an_entry_would_be(
    shapes: list[tuple[int, ...]], keep: float, seed: int
) -> None:
    """Two ways to a mask, and one rule."""
    g = torch.Generator().manual_seed(seed)
    scores = {f"p{i}": torch.randint(0, 4, shape, generator=g) for i, shape in enumerate(shapes)}
    total = sum(score.numel() for score in scores.values())
    for workers in (1, 3):
        if (k := budget(keep, total)) and workers * k <= total:
            masks = split(scores, keep, workers)
            assert [positions(mask) for mask in masks] == dealt(scores, [k] * workers, [], "entry")


def test_units_of_a_convolution_of_a_matrix_and_of_a_vector() -> None:
    scores = {"conv": torch.zeros(4, 3, 3, 3), "fc": torch.zeros(5, 6), "bias": torch.zeros(5)}
    scores["conv"][2, 1, 0, 2], scores["fc"][3, 4], scores["bias"][1] = 1000, 500, 30

    def best(keep: int, unit: Unit) -> dict[str, Tensor]:
        return {name: kept.nonzero() for name, kept in top_k(scores, (keep + 0.5) / 143, (), unit).items()}

    # a filter of 27 has 1000 / 27, a row of 6 has 500 / 6, a column of 4 has 250, one of 5 has 100, a channel 1000 / 36
    rows = best(27 + 6, "row")
    assert [rows["conv"].shape[0], set(rows["conv"][:, 0].tolist()), set(rows["fc"][:, 0].tolist())] == [27, {2}, {3}]
    columns = best(4 + 5, "column")
    assert {tuple(at) for at in columns["conv"][:, 1:].tolist()} == {(1, 0, 2)}
    assert set(columns["fc"][:, 1].tolist()) == {4}
    channels = best(5 + 1 + 36, "channel")
    assert [channels["conv"].shape[0], set(channels["conv"][:, 1].tolist())] == [36, {1}]
    assert channels["fc"].shape[0] == 5
    assert channels["bias"].tolist() == [[1]]


def test_a_large_unit_does_not_win_for_its_size() -> None:
    """The row of eight has the larger sum, and each of the two rows of four brings more for each of its entries."""
    scores = {"wide": torch.full((1, 8), 1.0), "narrow": torch.full((2, 4), 1.5)}
    assert positions(top_k(scores, 0.5, (), "row")) == {"wide": set(), "narrow": set(range(8))}


def test_what_does_not_fit_is_passed_over_and_smaller_units_fill_what_is_left() -> None:
    scores = {"a": torch.tensor([[9.0] * 5, [8.0] * 5]), "b": torch.tensor([[2.0] * 2] * 3), "c": torch.ones(4)}
    # 8 of 20: a row of a, none of the second, a row of b, an entry of c
    assert positions(top_k(scores, 0.4, (), "row")) == {"a": set(range(5)), "b": {0, 1}, "c": {0}}
    # 4 of 10 and nothing that fills the last two
    assert positions(top_k({"a": torch.ones(2, 3), "b": torch.zeros(1, 4)}, 0.5, (), "row"))["a"] == {0, 1, 2}
    assert count(top_k({"a": torch.ones(2, 3), "b": torch.zeros(1, 4)}, 0.5, (), "row")) == 3


@pytest.mark.parametrize("dtype", sorted(DTYPES, key=str))
@pytest.mark.parametrize("unit", UNITS)
def test_means_are_exact_for_every_type(unit: Unit, dtype: torch.dtype) -> None:
    """Powers of two are in every type, and so are sums of few of them in float64."""
    score = 2 ** torch.randint(0, 4, (3, 2, 3, 5), generator=torch.Generator().manual_seed(0))
    score = (score > 2 if dtype == torch.bool else score).to(torch.float32).to(dtype)
    found, dims = unit_means({"p": score}, unit)["p"], {"row": (1, 2, 3), "column": (0,), "channel": (0, 2, 3)}
    expected = score.double() if unit == "entry" else score.double().mean(dims[unit], keepdim=True)
    assert found.dtype == torch.float64
    assert found.shape == unit_shape(score.shape, unit)
    torch.testing.assert_close(found, expected, rtol=2**-52, atol=0)


@pytest.mark.parametrize("shape", [(1, 100_003), (100_003, 1), (2, 50_001), (3, 5, 7, 1001)])
@pytest.mark.parametrize("unit", ["row", "column", "channel"])
def test_sums_are_the_same_with_any_number_of_threads_and_in_any_memory_layout(shape: list[int], unit: Unit) -> None:
    score = torch.randn(shape, generator=torch.Generator().manual_seed(0)).exp()
    before, found = torch.get_num_threads(), []
    try:
        for threads in (1, 2, 4, 7):
            torch.set_num_threads(threads)
            found.append(unit_means({"p": score}, unit)["p"])
    finally:
        torch.set_num_threads(before)
    found.append(unit_means({"p": score.movedim(0, -1).contiguous().movedim(-1, 0)}, unit)["p"])
    assert all(torch.equal(means, found[0]) for means in found)
    numbers = score.flatten().tolist()
    expected = [math.fsum(numbers[p] for p in positions) / len(positions) for positions in units(tuple(shape), unit)]
    torch.testing.assert_close(found[0].flatten(), torch.tensor(expected, dtype=torch.float64), rtol=1e-13, atol=0)


def test_scores_stay_as_they_are() -> None:
    scores = {"a": torch.rand(3, 4).double(), "b": torch.rand(3, 1).double().expand(3, 4)}
    before = {name: score.clone() for name, score in scores.items()}
    top_k(scores, 0.5, (), "row")
    assert all(torch.equal(scores[name], before[name]) for name in scores)


def test_the_random_method_draws_a_number_for_each_unit() -> None:
    """Rows of one entry and of a thousand are as likely; means of numbers for each entry would all be about a half."""
    shapes = {"wide": (200, 1000), "narrow": (200, 1)}
    model = torch.nn.ParameterDict({name: torch.nn.Parameter(torch.zeros(shape)) for name, shape in shapes.items()})
    scores = random.scores(problem(model, (5,)), unit="row")
    assert not isinstance(scores, Seeded)
    assert {name: tuple(score.shape) for name, score in scores.items()} == shapes
    assert all((score == score[:, :1]).all() for score in scores.values())
    kept = top_k(scores, 0.3, (), "row")
    shares = [mask[:, 0].double().mean().item() for mask in kept.values()]
    assert shares == pytest.approx([0.3, 0.3], abs=0.1)
    again = random.scores(problem(mlp(), (5,)), unit="column")
    assert all(
        torch.equal(again[name], score) for name, score in random.scores(problem(mlp(), (5,)), unit="column").items()
    )


def test_no_seed_stands_for_a_mask_of_units() -> None:
    scores = random_scores({"w": (20, 30), "b": (20,)}, 3)
    assert isinstance(top_k(scores, 0.2), Seeded)
    assert not isinstance(top_k(scores, 0.2, (), "row"), Seeded)


@pytest.mark.parametrize("select", [top_k, lambda scores, keep, always, unit: split(scores, keep, 2, always, unit)])
def test_what_is_refused(select: Callable[..., Any]) -> None:
    scores = {"w": torch.rand(4, 10), "fc": torch.rand(2)}
    assert refusal(select, scores, 0.3, (), "rows") == "unit='rows' is none of entry, row, column, channel"
    assert refusal(select, {"w": torch.rand(4, 10)}, 0.2, (), "row").startswith(
        "unit=row: no unit is left that fits in "
    )
    assert refusal(select, scores, 0.2, ["fc"], "row").startswith(
        "unit=row: no unit is left that fits in the 6 weights"
    )
    assert refusal(select, scores, 0.02, ["fc"], "row").startswith(
        "keep=0.02 pays for 0 of 42 weights, fewer than the 2 of"
    )
    for always in ((), ("w",)):
        nan = {"w": scores["w"].clone().index_fill_(1, torch.tensor([3]), torch.nan), "fc": scores["fc"]}
        assert refusal(select, nan, 0.99 if always else 0.4, always, "row").startswith("the scores of w hold NaN")
    with pytest.raises(FishexpError, match="the scores of w hold NaN"):
        select({"w": torch.tensor([[torch.inf, -torch.inf], [1.0, 1.0]])}, 0.5, (), "row")


def test_the_head_alone_where_keep_pays_for_no_more() -> None:
    mask = top_k({"w": torch.rand(4, 12), "fc": torch.rand(2)}, 0.04, ["fc"], "row")
    assert positions(mask) == {"w": set(), "fc": {0, 1}}


def test_units_that_score_zero_are_said(caplog: pytest.LogCaptureFixture) -> None:
    scores = {"w": torch.tensor([[0.0] * 4, [1.0] * 4, [0.0] * 4]), "b": torch.zeros(2)}
    top_k(scores, 0.6, (), "row")
    assert caplog.messages[0].startswith(
        "only 1 of the 2 units to select score above 0 (unit=row); of the 4 that score 0, "
    )
    assert all(record.levelno == logging.WARNING for record in caplog.records)
    caplog.clear()
    top_k(scores, 0.3, (), "row")  # enough above 0
    top_k(scores, 1, (), "row")  # all of them
    top_k({name: -score for name, score in scores.items()}, 0.3, (), "row")  # the smallest: 0 is the highest of several
    top_k(
        {"w": torch.ones(2, 4), "b": torch.zeros(4)}, 0.5, (), "row"
    )  # a row does not fit, and entries fill what is left
    assert not caplog.messages
