"""A random mask comes back from its seed, or is refused."""

import copy
import hashlib
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from fishexp.delta import Delta, content
from fishexp.delta.checkpoint import read_header
from fishexp.errors import DeltaError
from fishexp.masks import load_mask, random_masks, save_mask, top_k
from fishexp.masks.random_masks import ScoredParameter, Seeded, SeedRecipe, expand, make_recipe, random_scores
from fishexp.masks.topk import Mask
from fishexp.methods import random
from fishexp.sparse import sparsify
from tests.support.checks import refusal
from tests.support.delta_cases import joined, split
from tests.support.training import mlp, problem

Shapes = dict[str, tuple[int, ...]]

SHAPES: Shapes = {"a": (30, 7), "empty": (0, 3), "b": (19,), "head": (4, 5), "scalar": (), "c": (3, 4, 2, 2)}


def order_of(shapes: Shapes, always: tuple[str, ...] = ()) -> list[ScoredParameter]:
    return [ScoredParameter(name, shape, name in always) for name, shape in shapes.items()]


def positions_of(mask: Mask) -> dict[str, Tensor]:
    return {name: entries.flatten().nonzero().flatten() for name, entries in mask.items()}


def counts_of(mask: Mask) -> dict[str, int]:
    return {name: int(entries.sum()) for name, entries in mask.items()}


def check(shapes: Shapes, seed: int, keep: float, always: tuple[str, ...]) -> SeedRecipe | None:
    """The recipe of a mask, which gives the mask."""
    mask = top_k(random_scores(shapes, seed), keep, always)
    made = make_recipe(order_of(shapes, always), seed, positions_of(mask))
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
    with mock.patch.object(random_masks, "CHUNK", chunk):
        check(SHAPES, seed, keep, always)


@given(seed=st.integers(0, 2**62), keep=st.floats(0.01, 1), chunk=st.integers(5, 300))
def test_of_equal_scores_the_first_come_back(seed: int, keep: float, chunk: int) -> None:
    """With eight different scores the threshold falls among many equal ones."""
    draw = torch.rand

    def coarse(*arguments: Any, **keywords: Any) -> Tensor:
        return draw(*arguments, **keywords).mul(8).floor().div(8)

    with mock.patch("torch.rand", coarse), mock.patch.object(random_masks, "CHUNK", chunk):
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


def test_torchs_default_type_does_not_matter_when_a_mask_comes_back() -> None:
    mask = top_k(random_scores(SHAPES, 3), 0.4)
    torch.set_default_dtype(torch.float64)
    try:
        made = make_recipe(order_of(SHAPES), 3, positions_of(mask))
    finally:
        torch.set_default_dtype(torch.float32)
    assert made is not None
    assert made == make_recipe(order_of(SHAPES), 3, positions_of(mask))


@pytest.mark.parametrize("seed", [-1, 2**63, 2**64, 3.0, True, "3", None])
def test_a_seed_by_which_no_file_could_name_a_mask_is_refused(seed: Any) -> None:
    assert refusal(random_scores, SHAPES, seed).startswith("a seed is a whole number from 0 to 2**63 - 1, got ")


@pytest.mark.parametrize("seed", [0, 2**63 - 1, np.int64(5)])
def test_a_mask_of_any_other_seed_comes_back_from_its_file(seed: int, tmp_path: Path) -> None:
    mask = top_k(random_scores({"w": (50, 50)}, seed), 0.1)
    save_mask(mask, tmp_path / "mask")
    assert torch.equal(load_mask(tmp_path / "mask")["w"], mask["w"])


def test_the_seed_goes_with_the_mask_and_its_copies() -> None:
    mask = top_k(random_scores(SHAPES, 5), 0.2)
    for one in (mask, copy.copy(mask), copy.deepcopy(mask), pickle.loads(pickle.dumps(mask))):
        assert isinstance(one, Seeded)
        assert one.seed == 5
    assert not isinstance(top_k({"p": torch.rand(9)}, 0.5), Seeded)
    assert not isinstance({name: entries for name, entries in mask.items()}, Seeded)  # noqa: C416


def test_method_random_draws_its_seed_from_the_problem() -> None:
    one, same = (random.scores(problem(mlp(), (5,)), unit="entry") for _ in range(2))
    again = problem(mlp(), (5,))
    first, second = (random.scores(again, unit="entry") for _ in range(2))
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
    assert make_recipe(order_of(SHAPES), 11, positions_of(mask)) is not None
    assert make_recipe(order_of(SHAPES), 12, positions_of(mask)) is None
    for wrong in changed(mask):
        assert make_recipe(order_of(SHAPES), 11, wrong) is None


def test_other_random_numbers_are_refused_and_hold_no_more_than_announced() -> None:
    mask = top_k(random_scores(SHAPES, 11), 0.3)
    made, counts = make_recipe(order_of(SHAPES), 11, positions_of(mask)), counts_of(mask)
    assert made is not None
    wrong: list[tuple[SeedRecipe, list[ScoredParameter], dict[str, int]]] = [
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
        with pytest.raises(
            DeltaError, match=rf"seed {one.seed} draws another random mask here than the one that was saved"
        ):
            list(expand(one, order, announced))
    late = expand(made._replace(sha256=""), order_of(SHAPES), counts)
    for name, n in counts.items():
        if n:
            found, places = next(late)
            assert (found, len(places)) == (name, n)
    with pytest.raises(DeltaError):  # the digest is looked at last
        next(late)


def net() -> nn.Module:
    torch.manual_seed(1)
    return nn.Sequential(nn.Linear(40, 50), nn.BatchNorm1d(50), nn.Linear(50, 6), nn.Linear(6, 3))


def trained(seed: int = 4, keep: float = 0.1, change: Callable[[Mask], None] | None = None) -> tuple[nn.Module, Delta]:
    """A model after a step with a random mask, the last layer kept whole, and its delta."""
    model = net()
    head = ["3.weight", "3.bias"]
    mask = top_k(random_scores({name: p.shape for name, p in model.named_parameters()}, seed), keep, head)
    if change is not None:
        change(mask)
    sparse = sparsify(model, mask)
    optimiser = torch.optim.SGD(sparse.parameters(), lr=0.1)
    model(torch.randn(8, 40)).square().sum().backward()
    optimiser.step()
    return model, sparse.delta(fresh=head)


def in_file(path: Path) -> dict[str, Any]:
    return split(path.read_bytes())[1]


def equal(one: nn.Module | dict[str, Tensor], other: nn.Module | dict[str, Tensor]) -> bool:
    first, second = (m.state_dict() if isinstance(m, nn.Module) else m for m in (one, other))
    return first.keys() == second.keys() and all(first[name].equal(second[name]) for name in first)


def test_a_delta_of_a_random_mask_has_a_seed_in_the_place_of_positions(tmp_path: Path) -> None:
    model, delta = trained()
    delta.save(tmp_path / "seed")
    text = in_file(tmp_path / "seed")
    assert text["seed"][0] == 4
    assert {coding for coding, *_ in text["moved"].values()} == {"seed", "whole"}
    with (tmp_path / "seed").open("rb") as file:
        assert read_header(file, tmp_path / "seed")[0]["positions"].nbytes == 0
    loaded = Delta.load(tmp_path / "seed")
    loaded.save(tmp_path / "again")  # the positions are not known yet
    assert (tmp_path / "again").read_bytes() == (tmp_path / "seed").read_bytes()
    for one in (delta, loaded, copy.deepcopy(loaded), pickle.loads(pickle.dumps(loaded))):
        target = net()
        one.apply_(target).revert_()
        assert equal(target, net())
        one.apply_(target)
        assert equal(target, model)
        for name in delta.names:
            assert one.positions(name).equal(delta.positions(name))
    loaded.save(tmp_path / "third")
    assert (tmp_path / "third").read_bytes() == (tmp_path / "seed").read_bytes()


def test_a_random_mask_that_was_changed_is_stored_by_its_positions(tmp_path: Path) -> None:
    def turn(mask: Mask) -> None:
        mask["0.weight"].flatten()[7].logical_not_()

    model, delta = trained(change=turn)
    delta.save(tmp_path / "delta")
    assert in_file(tmp_path / "delta")["seed"] is None
    target = net()
    Delta.load(tmp_path / "delta").apply_(target)
    assert equal(target, model)


def test_a_mask_that_keeps_next_to_nothing_is_stored_by_its_positions() -> None:
    shapes: Shapes = {"a": (random_masks.FEWEST,), "b": (1,)}
    best = {name: torch.zeros(shape, dtype=torch.bool) for name, shape in shapes.items()}
    scores = random_scores(shapes, 0)
    best["a"][scores["a"].argmax()] = True
    assert make_recipe(order_of(shapes), 0, positions_of(best)) is None
    assert make_recipe(order_of({"a": shapes["a"]}), 0, positions_of(best)) is not None


def rewritten(path: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The file with another header of the delta, and a checksum that fits it."""
    header, about, vectors = split(path.read_bytes())
    change(about)
    other = path.with_name("other")
    other.write_bytes(joined(header, about, vectors))
    return other


def set_at(place: int, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda text: text["seed"].__setitem__(place, value)


def huge(text: dict[str, Any]) -> None:
    """A tensor of a huge size is said to have scores."""
    text["base"]["zz"] = ["F32", [2**50], None]
    text["seed"][4].append(len(text["base"].keys() | text["moved"].keys()) - 1)


@pytest.mark.parametrize(
    "change",
    [
        set_at(0, -1), set_at(0, 2**63), set_at(0, True), set_at(0, "4"), set_at(1, 2**24), set_at(2, -1),
        set_at(3, 5), set_at(4, []), set_at(4, [10**6]), set_at(4, None), lambda text: text["seed"].pop(),
        lambda text: text["seed"].append(0), lambda text: text.update(seed=None), lambda text: text.update(seed=7),
        lambda text: text["seed"][4].append(text["seed"][4][0]), lambda text: text["seed"][4].pop(0), huge,
        lambda text: text["moved"].update({name: ["whole", *entry[1:]] for name, entry in text["moved"].items()}),
    ],
)  # fmt: skip
def test_a_file_with_a_mask_that_cannot_be_is_refused(tmp_path: Path, change: Callable[[dict[str, Any]], None]) -> None:
    trained()[1].save(tmp_path / "delta")
    with (
        mock.patch("torch.rand", side_effect=AssertionError("drawn while it is read")),
        pytest.raises(DeltaError, match="other is damaged"),
    ):
        Delta.load(rewritten(tmp_path / "delta", change))


@pytest.mark.parametrize("strict", [True, False])
@pytest.mark.parametrize("change", [set_at(0, 5), set_at(1, 0), set_at(2, 10**6), set_at(3, "0" * 64), set_at(3, "x")])
def test_a_mask_that_does_not_come_back_changes_nothing(
    tmp_path: Path, change: Callable[[dict[str, Any]], None], strict: bool
) -> None:
    trained()[1].save(tmp_path / "delta")
    delta, target = Delta.load(rewritten(tmp_path / "delta", change)), net()
    with pytest.raises(DeltaError, match="draws another random mask here than the one that was saved"):
        delta.apply_(target, strict)
    assert equal(target, net())


def test_positions_are_drawn_once_and_only_when_they_are_needed(tmp_path: Path) -> None:
    trained()[1].save(tmp_path / "delta")
    with mock.patch.object(content, "expand", wraps=expand) as drawn:
        delta = Delta.load(tmp_path / "delta")
        wrong = nn.Sequential(nn.Linear(40, 50), nn.BatchNorm1d(50), nn.Linear(50, 7))
        with pytest.raises(DeltaError, match="for another"):
            delta.apply_(wrong)
        assert not drawn.called
        delta.apply_(net())
        delta.mask(net())
        delta.positions("0.weight")
        assert drawn.call_count == 1
