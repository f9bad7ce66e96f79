"""A random mask comes back from its seed, or is refused."""

import copy
import hashlib
import pickle
from typing import Any
from unittest import mock

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fishexp.delta import seeded
from fishexp.delta.seeded import Drawn, Recipe, Seeded, expand, recipe
from fishexp.errors import DeltaError
from fishexp.masks import Mask, random_scores, top_k
from fishexp.methods import random
from tests.test_training import mlp, problem

Shapes = dict[str, tuple[int, ...]]

SHAPES: Shapes = {"a": (30, 7), "empty": (0, 3), "b": (19,), "head": (4, 5), "scalar": (), "c": (3, 4, 2, 2)}


def order_of(shapes: Shapes, always: tuple[str, ...] = ()) -> list[Drawn]:
    return [Drawn(name, shape, name in always) for name, shape in shapes.items()]


def positions_of(mask: Mask) -> dict[str, Tensor]:
    return {name: entries.flatten().nonzero().flatten() for name, entries in mask.items()}


def counts_of(mask: Mask) -> dict[str, int]:
    return {name: int(entries.sum()) for name, entries in mask.items()}


def check(shapes: Shapes, seed: int, keep: float, always: tuple[str, ...]) -> Recipe | None:
    """The recipe of a mask, which gives the mask."""
    mask = top_k(random_scores(shapes, seed), keep, always)
    made = recipe(order_of(shapes, always), seed, positions_of(mask))
    wanted = {n: p for n, p in positions_of(mask).items() if len(p) and n not in always}
    if made is None:
        assert not wanted
        return None
    back = dict(expand(made, order_of(shapes, always), counts_of(mask)))
    assert list(back) == list(wanted)
    for name, places in wanted.items():
        assert places.equal(back[name])
    return made


@given(
    seed=st.integers(0, 2**62),
    keep=st.floats(0.09, 1),
    always=st.sampled_from([(), ("head",)]),
    chunk=st.integers(5, 300),
)
def test_a_mask_comes_back_from_its_seed_whatever_the_pieces(
    seed: int, keep: float, always: tuple[str, ...], chunk: int
) -> None:
    with mock.patch.object(seeded, "CHUNK", chunk):
        check(SHAPES, seed, keep, always)


@given(seed=st.integers(0, 2**62), keep=st.floats(0.01, 1), chunk=st.integers(5, 300))
def test_of_equal_scores_the_first_come_back(seed: int, keep: float, chunk: int) -> None:
    """With eight different scores the threshold falls among many equal ones."""
    draw = torch.rand

    def coarse(*arguments: Any, **keywords: Any) -> Tensor:
        return draw(*arguments, **keywords).mul(8).floor().div(8)

    with mock.patch("torch.rand", coarse), mock.patch.object(seeded, "CHUNK", chunk):
        made = check(SHAPES, seed, keep, ())
    assert made is not None
    assert made.threshold % (1 << 21) == 0
    assert made.ties > 0


def test_scores_are_those_of_one_generator_in_the_order_of_the_model() -> None:
    generator = torch.Generator().manual_seed(3)
    one_by_one = {name: torch.rand(shape, generator=generator) for name, shape in SHAPES.items()}
    torch.set_default_dtype(torch.float64)
    try:
        scores = random_scores(SHAPES, 3)
    finally:
        torch.set_default_dtype(torch.float32)
    assert list(scores) == list(SHAPES)
    assert all(scores[name].equal(score) for name, score in one_by_one.items())


def test_the_seed_goes_with_the_mask_and_its_copies() -> None:
    mask = top_k(random_scores(SHAPES, 5), 0.2)
    for one in (mask, copy.copy(mask), copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert isinstance(one, Seeded)
        assert one.seed == 5
    assert not isinstance(top_k({"p": torch.rand(9)}, 0.5), Seeded)
    assert not isinstance({name: entries for name, entries in mask.items()}, Seeded)  # noqa: C416


def test_method_random_draws_its_seed_from_the_problem() -> None:
    one, same = (random.scores(problem(mlp(), (5,))) for _ in range(2))
    again = problem(mlp(), (5,))
    first, second = random.scores(again), random.scores(again)
    assert isinstance(one, Seeded)
    assert isinstance(same, Seeded)
    assert isinstance(first, Seeded)
    assert isinstance(second, Seeded)
    assert one.seed == same.seed == first.seed != second.seed
    assert {name: tuple(score.shape) for name, score in one.items()} == {
        name: tuple(p.shape) for name, p in mlp().named_parameters()
    }
    assert all(score.equal(same[name]) for name, score in one.items())
    assert not one["0.weight"].equal(second["0.weight"])


def changed(mask: Mask) -> list[dict[str, Tensor]]:
    """Positions that are no longer those drawn: one more, one less, one moved, one in another parameter."""
    right = positions_of(mask)
    free = (~mask["a"].flatten()).nonzero().flatten()
    some = right["a"]
    return [
        right | {"a": torch.cat([some, free[-1:]]).sort().values},
        right | {"a": some[1:]},
        right | {"a": torch.cat([some[1:], free[:1]]).sort().values},
        right | {"a": some[:-1], "b": torch.cat([right["b"], (~mask["b"]).nonzero().flatten()[:1]]).sort().values},
        {name: places for name, places in right.items() if name != "c"},
        {},
    ]


def test_a_mask_that_was_changed_has_no_recipe() -> None:
    mask = top_k(random_scores(SHAPES, 11), 0.3)
    assert recipe(order_of(SHAPES), 11, positions_of(mask)) is not None
    assert recipe(order_of(SHAPES), 12, positions_of(mask)) is None
    for wrong in changed(mask):
        assert recipe(order_of(SHAPES), 11, wrong) is None


def test_other_random_numbers_are_refused_and_hold_no_more_than_announced() -> None:
    mask = top_k(random_scores(SHAPES, 11), 0.3)
    made, counts = recipe(order_of(SHAPES), 11, positions_of(mask)), counts_of(mask)
    assert made is not None
    wrong: list[tuple[Recipe, list[Drawn], dict[str, int]]] = [
        (made._replace(seed=12), order_of(SHAPES), counts),
        (made._replace(threshold=0), order_of(SHAPES), counts),
        (made._replace(threshold=made.threshold + 1), order_of(SHAPES), counts),
        (made._replace(ties=made.ties + 1), order_of(SHAPES), counts),
        (made._replace(ties=0), order_of(SHAPES), counts),
        (made._replace(sha256=hashlib.sha256(b"").hexdigest()), order_of(SHAPES), counts),
        (made, order_of(SHAPES)[1:], counts),
        (made, order_of(SHAPES, ("a",)), counts),
        (made, order_of(SHAPES), counts | {"a": counts["a"] + 1}),
        (made, order_of(SHAPES), counts | {"a": counts["a"] - 1}),
        (made, order_of(SHAPES), {name: n for name, n in counts.items() if name != "c"}),
    ]
    for one, order, announced in wrong:
        with pytest.raises(DeltaError, match=rf"seed {one.seed} draws another random mask here than the delta's"):
            list(expand(one, order, announced))
    late = expand(made._replace(sha256=""), order_of(SHAPES), counts)
    for name, n in counts.items():
        if n:
            found, places = next(late)
            assert (found, len(places)) == (name, n)
    with pytest.raises(DeltaError):  # the digest is looked at last
        next(late)
