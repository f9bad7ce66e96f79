"""Masks that give each matrix or output row its share, against shares counted entry by entry."""

import logging
from fractions import Fraction
from typing import get_args

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fishexp.errors import FishexpError
from fishexp.masks import top_k
from fishexp.masks.allocation import Per
from fishexp.masks.budget import budget
from fishexp.masks.random_masks import Seeded, random_scores
from fishexp.masks.selection import DTYPES
from fishexp.masks.topk import count
from tests.support.checks import refusal

SHAPES = st.sampled_from([(), (5,), (4, 6), (6, 4), (9, 2), (1, 7), (7, 1), (0, 3), (3, 2, 3, 3), (4, 1, 3, 3)])


def parts_of(scores: dict[str, Tensor], always: list[str], per: Per) -> list[list[tuple[Fraction, str, int]]]:
    """The entries that compete with each other: (score, name, flat position)."""
    found = []
    for name, score in scores.items():
        entries = [(Fraction(number), name, at) for at, number in enumerate(score.flatten().tolist())]
        if name in always or not entries:
            continue
        length = score[0].numel() if per == "row" and score.ndim > 1 else len(entries)
        found += [entries[start : start + length] for start in range(0, len(entries), length)]
    return found


def shared_out(scores: dict[str, Tensor], keep: float, always: list[str], per: Per) -> dict[str, set[int]]:
    """The rule, spelled out: name -> flat positions."""
    chosen = {name: set(range(s.numel())) if name in always else set() for name, s in scores.items()}
    left = budget(keep, sum(s.numel() for s in scores.values())) - sum(map(len, chosen.values()))
    ranked = [sorted(part, key=lambda entry: -entry[0]) for part in parts_of(scores, always, per)]  # stable
    total = sum(map(len, ranked))
    if per == "matrix":
        exact = [Fraction(left * len(part), total) for part in ranked]
        shares = [int(share) for share in exact]
        open_to_more = [share != int(share) for share in exact]
    else:
        share = 0
        while share < total and sum(min(share + 1, len(part)) for part in ranked) <= left:
            share += 1
        shares = [min(share, len(part)) for part in ranked]
        open_to_more = [share < len(part) for part in ranked]
    spare = left - sum(shares)
    following = [part[n] for part, n, more in zip(ranked, shares, open_to_more, strict=True) if more]
    best = sorted(following, key=lambda entry: -entry[0])[:spare]
    for part, n in zip(ranked, shares, strict=True):
        for _, name, at in part[:n]:
            chosen[name].add(at)
    for _, name, at in best:
        chosen[name].add(at)
    return chosen


@pytest.mark.parametrize("per", ["matrix", "row"])
@given(data=st.data())
def test_each_matrix_or_row_gets_its_share_of_the_best(per: Per, data: st.DataObject) -> None:
    shapes = data.draw(st.lists(SHAPES, min_size=1, max_size=5))
    generator = torch.Generator().manual_seed(data.draw(st.integers(0, 2**31)))
    levels = data.draw(st.sampled_from([2, 5, 100]))  # few make many ties
    dtype = data.draw(st.sampled_from(sorted(DTYPES, key=str)))
    scores = {}
    for i, shape in enumerate(shapes):
        drawn = torch.randint(levels, shape, generator=generator)
        scores[f"w{i}"] = drawn.to(dtype if i % 2 else torch.float32)
    total = sum(score.numel() for score in scores.values())
    always = data.draw(st.sampled_from([[], ["w0"]]))
    head = sum(scores[name].numel() for name in always)
    if total <= max(head, 1):
        return
    keep = data.draw(st.integers(max(head, 1), total)) / total
    if budget(keep, total) < max(head, 1):
        return
    mask = top_k(scores, keep, always, per=per)
    assert count(mask) == budget(keep, total)
    expected = shared_out(scores, keep, always, per)
    assert {name: set(entries.flatten().nonzero().squeeze(1).tolist()) for name, entries in mask.items()} == expected


@pytest.mark.parametrize("per", ["matrix", "row"])
def test_integers_of_64_bits_are_not_rounded(per: Per) -> None:
    big = 2**60
    scores = {"w": torch.tensor([[big, big + 1, big + 2], [big + 2, big, big + 1]])}
    mask = top_k(scores, 0.34, per=per)["w"]
    assert mask.tolist() == [[False, False, True], [True, False, False]]


def test_rows_shorter_than_their_share_are_kept_whole_and_others_get_what_they_leave() -> None:
    scores = {"short": torch.arange(4.0).view(4, 1), "long": torch.arange(40.0).view(4, 10), "bias": torch.ones(2)}
    mask = top_k(scores, 30 / 46, per="row")
    assert mask["short"].all()
    assert mask["bias"].all()
    assert mask["long"].sum(1).tolist() == [6, 6, 6, 6]  # 24 of what is left
    assert mask["long"].equal(scores["long"] % 10 >= 4)


def test_large_tensors_are_ranked_in_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    scores = {"a": torch.rand(13, 7, generator=generator), "b": torch.rand(5, 3, 2, 2, generator=generator)}
    whole = top_k(scores, 0.3, per="row")
    monkeypatch.setattr("fishexp.masks.allocation.CHUNK", 20)
    assert all(entries.equal(whole[name]) for name, entries in top_k(scores, 0.3, per="row").items())


@pytest.mark.parametrize("per", ["matrix", "row"])
def test_random_masks_per_part_have_no_seed_that_could_name_them(per: Per) -> None:
    scores = random_scores({"a": (4, 5), "b": (3,)}, 1)
    assert isinstance(top_k(scores, 0.5), Seeded)
    assert not isinstance(top_k(scores, 0.5, per=per), Seeded)


@pytest.mark.parametrize("per", ["matrix", "row"])
def test_entries_that_score_zero_are_told(per: Per, caplog: pytest.LogCaptureFixture) -> None:
    scores = {"a": torch.ones(4, 4), "b": torch.zeros(4, 4)}
    with caplog.at_level(logging.WARNING):
        mask = top_k(scores, 0.5, per=per)
    assert mask["b"].sum() == 8
    assert f"8 of the 16 entries selected score 0, the first of their {per} (per={per})" in caplog.text
    caplog.clear()
    top_k({"a": -torch.arange(16.0).view(4, 4), "b": torch.zeros(4)}, 0.5, per=per)  # the smallest weights are zeros
    assert not caplog.messages


def test_what_has_no_meaning_is_refused() -> None:
    scores = {"a": torch.ones(4, 4)}
    for per in (*get_args(Per)[1:],):
        assert refusal(lambda per=per: top_k(scores, 0.5, unit="row", per=per)) == (
            f"per={per} shares out single entries, and unit=row keeps whole rows; take one of both"
        )
    with pytest.raises(FishexpError, match="per='layer' is none of network, matrix, row"):
        top_k(scores, 0.5, per="layer")  # type: ignore[arg-type]
    with pytest.raises(FishexpError, match="the scores of a hold NaN"):
        top_k({"a": torch.full((2, 2), torch.nan)}, 0.5, per="row")
