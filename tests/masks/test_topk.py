"""Budget, ties and head of the global top-k."""

import logging
from collections.abc import Callable
from decimal import Decimal
from fractions import Fraction
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fishexp.errors import FishexpError
from fishexp.masks import top_k
from fishexp.masks.budget import budget
from fishexp.masks.selection import DTYPES
from fishexp.masks.topk import Scores, count, counts_by_name, split
from tests.support.checks import refusal

# few distinct values, so that ties are common
SCORES = st.lists(st.integers(-3, 3), min_size=1, max_size=60)


def flat(mask: dict[str, torch.Tensor]) -> list[bool]:
    return [bool(entry) for entries in mask.values() for entry in entries.flatten()]


@given(values=SCORES, cuts=st.tuples(st.integers(0, 60), st.integers(0, 60)), keep=st.floats(0.01, 1))
def test_keeps_exactly_the_best_and_of_equal_ones_the_first(
    values: list[int], cuts: tuple[int, int], keep: float
) -> None:
    low, high = sorted(min(cut, len(values)) for cut in cuts)
    parts = torch.tensor(values, dtype=torch.float).tensor_split([low, high])
    scores = {f"p{i}": part for i, part in enumerate(parts)}
    k = int(Fraction(repr(keep)) * len(values))
    if k == 0:
        with pytest.raises(FishexpError, match="less than one"):
            top_k(scores, keep)
        return
    best = sorted(range(len(values)), key=lambda i: (-values[i], i))[:k]
    assert flat(top_k(scores, keep)) == [i in best for i in range(len(values))]


@given(
    values=st.lists(st.floats(allow_nan=False) | st.sampled_from([0.0, -0.0, 1e-40, -1e-310]), min_size=1, max_size=60),
    double=st.booleans(),
    chunk=st.integers(1, 7),
    data=st.data(),
)
def test_any_drawnin_chunks(values: list[float], double: bool, chunk: int, data: st.DataObject) -> None:
    """Infinite, subnormal and negative ones; 0.0 and -0.0 are equal."""
    score = torch.tensor(values, dtype=torch.float64 if double else torch.float32)
    rank = sorted(range(len(values)), key=lambda i: (-score[i].item(), i))
    k = data.draw(st.integers(1, len(values)))
    with mock.patch("fishexp.masks.selection.CHUNK", chunk):
        mask = top_k({"p": score}, min((k + 0.5) / len(values), 1))
    assert mask["p"].nonzero().flatten().tolist() == sorted(rank[:k])


@given(body=SCORES, head=st.integers(1, 10), keep=st.floats(0.01, 1))
def test_the_head_is_kept_whole_and_paid_out_of_the_budget(body: list[int], head: int, keep: float) -> None:
    scores = {"body": torch.tensor(body, dtype=torch.float), "head": torch.full((head,), -100.0)}
    k = budget(keep, len(body) + head)
    if k < head:
        with pytest.raises(FishexpError, match=f"fewer than the {head} of head, which are always kept; raise keep"):
            top_k(scores, keep, always=["head"])
        return
    mask = top_k(scores, keep, always=["head"])
    assert mask["head"].all()
    assert count(mask) == k


@given(total=st.integers(1, 10**9), thousandths=st.integers(1, 1000))
def test_keep_is_read_as_a_decimal(total: int, thousandths: int) -> None:
    assert budget(thousandths / 1000, total) == total * thousandths // 1000


def test_the_papers_budgets() -> None:
    """Sizes in the original code: BERT-large-cased with 2 labels, ResNet-34, ResNet-9."""
    assert budget(0.005, 333_581_314) == 1_667_906
    assert [budget(keep, 21_282_122) - 5_130 for keep in (0.005, 0.02, 0.1, 0.25)] == [
        101_280,
        420_512,
        2_123_082,
        5_315_400,
    ]
    assert [budget(keep, 6_573_120) - 5_120 for keep in (0.005, 0.02, 0.1)] == [27_745, 126_342, 652_192]
    assert budget(0.29, 100) == 29


def test_scores_of_different_precision_compare_exactly() -> None:
    scores = {
        "half": torch.tensor([1.0, 3.0], dtype=torch.bfloat16),
        "double": torch.tensor([1.0 + 1e-12, 2.0]).double(),
    }
    scores["double"][0] = 1.0 + 1e-12
    assert flat(top_k(scores, 0.75)) == [False, True, True, True]


# around these, float32 or float64 round integers to one another; and the ends of the integers
AROUND = [0, 2**24, 2**31, 2**53, 2**62, 2**63 - 512, 2**63, 2**64 - 1024, 2**64]
OTHERS = [0.5, 2.5, 1536, 1e300, 0.1, torch.inf]


def as_numbers(score: torch.Tensor) -> list[float]:
    """The numbers that a tensor holds, exactly; Python compares integers with floats exactly."""
    return (score.float() if score.dtype.itemsize == 1 and score.is_floating_point() else score).tolist()


@st.composite
def mixtures(draw: st.DrawFn) -> dict[str, torch.Tensor]:
    """Scores of several types, most of them close to one another."""
    scores = {}
    middle, sign = draw(st.sampled_from(AROUND)), draw(st.sampled_from([1, -1]))
    drawn = st.integers(-3, 3).map(lambda step: sign * (middle + step)) | st.sampled_from(OTHERS)
    long = st.sampled_from([torch.int64, torch.uint64, torch.float64])
    for i in range(draw(st.integers(1, 4))):
        dtype = draw(long | st.sampled_from(sorted(DTYPES, key=str)))
        numbers = draw(st.lists(drawn, min_size=1, max_size=12))
        if dtype == torch.bool:
            scores[f"p{i}"] = torch.tensor([number > 0 for number in numbers])
        elif dtype.is_floating_point:
            scores[f"p{i}"] = torch.tensor([float(number) for number in numbers], dtype=torch.float64).to(dtype)
        else:
            info = torch.iinfo(dtype)
            clipped = [int(max(min(number, info.max), info.min)) for number in numbers]
            scores[f"p{i}"] = torch.tensor(clipped, dtype=dtype)
        if scores[f"p{i}"].is_floating_point():  # types without infinity have NaN instead
            scores[f"p{i}"] = torch.where(scores[f"p{i}"].isnan(), torch.ones(()).to(dtype), scores[f"p{i}"])
    return scores


@given(scores=mixtures(), workers=st.integers(1, 3), data=st.data())
def test_only_the_order_matters_to_the_last_bit_for_every_mixture_of_types(
    scores: dict[str, torch.Tensor], workers: int, data: st.DataObject
) -> None:
    values = [number for score in scores.values() for number in as_numbers(score)]
    rank = sorted(range(len(values)), key=lambda i: (-values[i], i))
    k = data.draw(st.integers(1, len(values)))
    with mock.patch("fishexp.masks.selection.CHUNK", data.draw(st.integers(1, 7))):
        assert flat(top_k(scores, min((k + 0.5) / len(values), 1))) == [i in rank[:k] for i in range(len(values))]
    if workers * k <= len(values):
        for worker, mask in enumerate(split(scores, min((k + 0.5) / len(values), 1), workers)):
            mine = rank[: workers * k][worker::workers]
            assert flat(mask) == [i in mine for i in range(len(values))]


@pytest.mark.parametrize(
    ("scores", "best"),
    [
        ({"w": torch.tensor([2**24, 2**24 + 1])}, [False, True]),
        ({"w": torch.tensor([2**24, 2**24 + 1], dtype=torch.int32)}, [False, True]),
        ({"a": torch.tensor([2**24]), "b": torch.tensor([2**24 + 1])}, [False, True]),
        (
            {"a": torch.tensor([2**53]), "b": torch.tensor([2**53 + 1]), "c": torch.ones(1).double()},
            [False, True, False],
        ),
        ({"a": torch.tensor([2.0**53], dtype=torch.float64), "b": torch.tensor([2**53 + 1])}, [False, True]),
        ({"a": torch.tensor([2**53 + 3]), "b": torch.tensor([2.0**53 + 4], dtype=torch.float64)}, [False, True]),
        ({"a": torch.tensor([2**63 - 1]), "b": torch.tensor([2.0**63], dtype=torch.float64)}, [False, True]),
        ({"a": torch.tensor([2**63 - 1]), "b": torch.tensor([2**63], dtype=torch.uint64)}, [False, True]),
        ({"a": torch.tensor([-(2.0**63)]), "b": torch.tensor([-(2**63) + 1])}, [False, True]),
    ],
)
def test_integers_are_not_rounded(scores: Scores, best: list[bool]) -> None:
    assert flat(top_k(scores, 0.5)) == best
    assert flat(split(scores, 0.5, 2)[0]) == best


@pytest.mark.parametrize(
    ("keep", "shown"),
    [
        (True, "True"),
        ("0.1", "'0.1'"),
        (torch.tensor(0.3), "a Tensor"),
        (np.array(0.3), "a ndarray"),
        (np.bool_(True), "a bool"),
        (None, "a NoneType"),
        (0.1j, "a complex"),
    ],
)
def test_a_budget_that_is_no_number(keep: Any, shown: str) -> None:
    for select in (top_k, lambda scores, keep: split(scores, keep, 2)):
        assert refusal(select, {"w": torch.rand(10)}, keep).startswith(
            f"keep is a number, a fraction in (0, 1], got {shown}"
        )


@pytest.mark.parametrize("keep", [np.float32(0.3), np.float64(0.3), np.float16(0.3), Decimal("0.3"), Fraction(3, 10)])
def test_a_budget_of_any_real_type(keep: Any) -> None:
    assert count(top_k({"w": torch.rand(100)}, keep)) == 30


@pytest.mark.parametrize(
    ("scores", "line"),
    [
        ({}, "there are no scores to choose from: the mapping is empty"),
        (torch.rand(4), "scores are a mapping from parameter names to tensors, got a Tensor"),
        ([torch.rand(4)], "scores are a mapping from parameter names to tensors, got a list"),
        ({"w": [0.1, 0.2]}, "the scores of w are a list; give a tensor"),
        ({"w": np.ones(3)}, "the scores of w are a ndarray; give a tensor"),
        ({"a": torch.ones(1), "w": None}, "the scores of w are a NoneType; give a tensor"),
        ({"w": torch.rand(4, device="meta")}, "the scores of w are on the meta device, which holds no values"),
        ({"w": torch.eye(3).to_sparse()}, "the scores of w are sparse (torch.sparse_coo); give scores.to_dense()"),
        ({"w": torch.ones(2, dtype=torch.complex64)}, "the scores of w are complex64, which has no order"),
    ],
)
@pytest.mark.parametrize("select", [top_k, lambda scores, keep: split(scores, keep, 2)])
def test_scores_that_have_no_order_or_no_values(select: Callable[..., Any], scores: Any, line: str) -> None:
    assert refusal(select, scores, 0.5).startswith(line)


def test_names_always_kept_in_any_collection() -> None:
    scores = {"fc.weight": torch.tensor([1.0, 2.0]), "fc.bias": torch.zeros(1), "body": torch.tensor([3.0])}
    expected = [False, False, True, True]
    names = ["fc.bias", "fc.bias"]
    for always in (names, tuple(names), set(names), dict.fromkeys(names), iter(names), (name for name in names)):
        assert flat(top_k(scores, 0.5, always)) == expected
    assert flat(split(scores, 0.5, 1, (name for name in names))[0]) == expected
    line = "always is a collection of names, got the string 'fc.bias'; give always=['fc.bias']"
    assert refusal(top_k, scores, 0.5, "fc.bias") == refusal(split, scores, 0.5, 1, "fc.bias") == line
    assert refusal(top_k, scores, 0.5, [torch.ones(3)]) == "always holds names of parameters, got a Tensor"


@pytest.mark.parametrize("workers", [0, -1, 1.5, True])
def test_a_number_of_workers_that_is_none(workers: Any) -> None:
    assert refusal(split, {"w": torch.rand(9)}, 0.2, workers) == f"workers is a whole number from 1 on, got {workers}"


@pytest.mark.parametrize("dtype", sorted((dtype for dtype in DTYPES if dtype.is_floating_point), key=str))
def test_nan_is_refused_in_every_type_and_in_what_is_always_kept(dtype: torch.dtype) -> None:
    scores = {"a": torch.ones(4).to(dtype), "b": torch.tensor([1.0, torch.nan]).to(dtype)}
    for always, keep in (((), 0.5), (("b",), 0.5), (("b",), 0.34)):
        assert refusal(top_k, scores, keep, always).startswith("the scores of b hold NaN")
        assert refusal(split, scores, keep, 1, always).startswith("the scores of b hold NaN")


def test_infinite_scores_whose_sum_is_nan_are_no_nan() -> None:
    scores = {"a": torch.tensor([torch.inf, -torch.inf, 1.0]), "b": torch.tensor([1e300, -1e300, 1e300]).double()}
    assert flat(top_k(scores, 0.5)) == [True, False, False, True, False, True]


ZEROS = "only 1 of the 3 entries to select score above 0; of the 4 that score 0, the first 2 in the order of the "


@pytest.mark.parametrize(
    ("scores", "keep", "line"),
    [
        ({"a": torch.zeros(3), "b": torch.tensor([-0.0, 5.0])}, 0.6, ZEROS),
        ({"a": torch.zeros(3, dtype=torch.int64), "b": torch.tensor([0, 5])}, 0.6, ZEROS),
        ({"a": torch.zeros(3, dtype=torch.bool), "b": torch.tensor([False, True])}, 0.6, ZEROS),
        ({"a": torch.zeros(5)}, 0.6, "only 0 of the 3 entries to select"),
        ({"a": torch.tensor([0.0, 0.0, 1.0, -1.0])}, 0.5, "only 1 of the 2 entries to select"),
        ({"a": torch.zeros(3), "b": torch.tensor([1.0, 5.0])}, 0.4, None),  # enough scores above 0
        ({"a": torch.zeros(3), "b": torch.tensor([1.0, 5.0])}, 1, None),  # all are selected
        ({"a": -torch.tensor([0.0, 0.0, 3.0, 4.0])}, 0.25, None),  # the smallest magnitudes: 0 is the highest score
        ({"a": torch.ones(5)}, 0.4, None),
    ],
)
def test_scores_of_zero_at_the_cut_are_said(
    scores: Scores, keep: float, line: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    """The first layers win by their position, where the scores say nothing."""
    for select in (lambda: top_k(scores, keep), lambda: split(scores, keep, 1)):
        caplog.clear()
        select()
        assert [message.startswith(line) for message in caplog.messages] == [True] if line else not caplog.messages
    assert all(record.levelno == logging.WARNING for record in caplog.records)


@pytest.mark.parametrize(("keep", "hint"), [(0, ""), (-1, ""), (float("nan"), ""), (1.5, "; did you mean 0.015?")])
def test_keep_out_of_range(keep: float, hint: str) -> None:
    with pytest.raises(FishexpError) as error:
        top_k({"w": torch.ones(10)}, keep)
    assert str(error.value) == f"keep is a fraction in (0, 1], got {keep:g}{hint}"


def test_nan_scores_and_unknown_heads_are_named() -> None:
    with pytest.raises(FishexpError, match="the scores of b hold NaN"):
        top_k({"a": torch.ones(2), "b": torch.tensor([1.0, torch.nan])}, 0.5)
    with pytest.raises(FishexpError, match="always names fc, which has no scores"):
        top_k({"a": torch.ones(2)}, 0.5, always=["fc"])


@given(
    values=SCORES, cuts=st.tuples(st.integers(0, 60), st.integers(0, 60)), keep=st.floats(0.01, 1), n=st.integers(1, 4)
)
def test_workers_take_the_best_in_turns(values: list[int], cuts: tuple[int, int], keep: float, n: int) -> None:
    """Ranks i, i + n, ... of the best n x k, ties in the order of the scores; the head is everybody's."""
    low, high = sorted(min(cut, len(values)) for cut in cuts)
    parts = torch.tensor(values, dtype=torch.float).tensor_split([low, high])
    scores = {f"p{i}": part for i, part in enumerate(parts)} | {"head": torch.zeros(2)}
    k = int(Fraction(repr(keep)) * (len(values) + 2)) - 2
    if k < 0 or n * k > len(values):
        with pytest.raises(FishexpError, match=r"raise keep|lower keep or workers"):
            split(scores, keep, n, always=["head"])
        return
    best = sorted(range(len(values)), key=lambda i: (-values[i], i))[: n * k]
    masks = split(scores, keep, n, always=["head"])
    assert len(masks) == n
    for worker, mask in enumerate(masks):
        assert list(mask) == list(scores)
        assert flat(mask) == [i in best[worker::n] for i in range(len(values))] + [True, True]
    if n == 1:
        assert flat(masks[0]) == flat(top_k(scores, keep, always=["head"]))


def test_counts_by_name_are_of_what_any_mask_keeps():
    first = {
        "a": torch.tensor([[1, 0], [1, 0]]).bool(),
        "b": torch.tensor([0, 0, 1]).bool(),
        "c": torch.zeros(2).bool(),
    }
    second = {
        "a": torch.tensor([[1, 1], [0, 0]]).bool(),
        "b": torch.tensor([0, 0, 1]).bool(),
        "c": torch.zeros(2).bool(),
    }
    assert counts_by_name([first]) == {"a": [2, 2, 2], "b": [1, 3]}
    assert counts_by_name([first, second]) == {"a": [3, 2, 2], "b": [1, 3]}
    assert int(first["a"].sum()) == 2  # it is left alone
