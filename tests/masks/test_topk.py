"""Budget, ties and head of the global top-k."""

from fractions import Fraction
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fishexp.errors import FishexpError
from fishexp.masks import top_k
from fishexp.masks.budget import budget
from fishexp.masks.topk import count, split

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
def test_any_numbers_in_chunks(values: list[float], double: bool, chunk: int, data: st.DataObject) -> None:
    """Infinite, subnormal and negative ones; 0.0 and -0.0 are equal."""
    score = torch.tensor(values, dtype=torch.float64 if double else torch.float32)
    rank = sorted(range(len(values)), key=lambda i: (-score[i].item(), i))
    k = data.draw(st.integers(1, len(values)))
    with mock.patch("fishexp.masks.topk.CHUNK", chunk):
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
