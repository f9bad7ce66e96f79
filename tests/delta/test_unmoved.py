"""Kept entries that did not move: part of the mask, without a value, and everything else as before."""

from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from fishexp import Delta
from fishexp.delta import Stack, merge
from fishexp.delta.combine import chain
from fishexp.delta.content import SeededPositions
from fishexp.delta.fingerprint import bits
from fishexp.masks import top_k
from fishexp.masks.random_masks import random_scores
from fishexp.sparse import Sparse, sparsify
from tests.support.delta_cases import same_bits, snapshot, trained_in_part


def linear() -> nn.Linear:
    torch.manual_seed(0)
    return nn.Linear(30, 20)


def move(sparse: Sparse, share: float, seed: int) -> None:
    """Change that share of the kept entries, and of each parameter at least one."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for p in sparse.parameters():
            moves = torch.rand(p.shape, generator=generator) < share
            moves.view(-1)[0] = True
            p[moves] += torch.rand(int(moves.sum()), generator=generator) + 0.1


def changed(before: dict[str, Tensor], after: dict[str, Tensor], name: str) -> list[int]:
    return (bits(before[name]) != bits(after[name])).flatten().nonzero().flatten().tolist()


def test_they_have_no_value_and_are_part_of_the_mask(tmp_path: Path) -> None:
    delta, before, after = trained_in_part()
    delta.save(tmp_path / "d")
    for found in (delta, Delta.load(tmp_path / "d")):
        assert found.kept == 1224 + 1134 + 300
        for name in before:
            assert found.positions(name).tolist() == changed(before, after, name)
            assert torch.equal(bits(found.values(name)), bits(after[name].flatten()[found.positions(name)]))
        assert found.changes == sum(len(changed(before, after, name)) for name in before) < found.kept
        target = snapshot(before)
        undo = found.apply_(target)
        assert same_bits(target, after)
        undo.revert_()
        assert same_bits(target, before)
    assert (tmp_path / "d").stat().st_size < 4 * (1134 + 300) + 2 * 1224  # bytes of the values alone


def test_a_mask_comes_back_with_them(tmp_path: Path) -> None:
    for seed in (None, 7):
        model = linear()
        scores = random_scores({n: p.shape for n, p in model.named_parameters()}, 7)
        mask = top_k(scores if seed else dict(scores), 0.2)
        sparse = sparsify(model, mask)
        move(sparse, 0.3, 1)
        sparse.delta().save(tmp_path / "d")
        delta = Delta.load(tmp_path / "d")
        assert delta.changes < delta.kept == sum(int(kept.sum()) for kept in mask.values())
        assert isinstance(delta.moved["weight"].places, SeededPositions) == (seed is not None)
        found = delta.mask(linear())
        assert found.keys() == mask.keys()
        assert all(torch.equal(found[name], mask[name]) for name in mask)


def test_a_tensor_that_is_kept_whole_is_stored_whole_unless_most_of_it_stands_still() -> None:
    for share, whole in [(0.9, True), (0.3, False), (0.0, False)]:
        model = linear()
        before = snapshot(model)
        sparse = sparsify(model, {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()})
        move(sparse, share, 2)
        delta = sparse.delta()
        assert delta.kept == 620
        assert (delta.moved["weight"].positions is None) == whole
        assert all(bool(kept.all()) for kept in delta.mask(linear()).values())
        target = snapshot(before)
        delta.apply_(target)
        assert same_bits(target, model)


def test_nothing_moved_at_all(tmp_path: Path) -> None:
    model = linear()
    sparse = sparsify(model, top_k(random_scores({n: p.shape for n, p in model.named_parameters()}, 1), 0.2))
    sparse.delta().save(tmp_path / "d")
    delta = Delta.load(tmp_path / "d")
    assert (delta.kept, delta.changes, delta.before) == (124, 0, delta.after)
    delta.apply_(target := snapshot(model)).revert_()
    assert same_bits(target, model)


@pytest.mark.parametrize("whole", [False, True])
def test_two_that_follow_on_each_other_are_one(whole: bool, tmp_path: Path) -> None:
    """What either moved has a value, what both kept is the mask, whatever stood still in the second only."""
    model = linear()
    before = snapshot(model)
    mask = {n: torch.rand(p.shape) < 0.3 for n, p in model.named_parameters()}
    if whole:
        mask["weight"][:] = True
    sparse = sparsify(model, mask)
    move(sparse, 0.3, 3)
    first = sparse.delta()
    sparse.rebase()
    move(sparse, 0.3, 4)
    both = Delta.of(chain([first, sparse.delta()]))
    both.save(tmp_path / "d")
    for found in (both, Delta.load(tmp_path / "d")):
        assert found.kept == sum(int(kept.sum()) for kept in mask.values())
        for name in mask:
            assert torch.equal(found.mask(linear())[name], mask[name])
            assert set(changed(before, snapshot(model), name)) <= set(found.positions(name).tolist())
        found.apply_(target := snapshot(before))
        assert same_bits(target, model)


def test_chained_random_masks_of_which_each_is_alone_in_a_tensor_come_back(tmp_path: Path) -> None:
    """A file holds a seed only for all that it drew: of each mask a bias is left that the other does not have."""
    torch.manual_seed(0)
    model = nn.Sequential(nn.Linear(20, 30), nn.Linear(30, 10))
    before, deltas = snapshot(model), []
    shapes = {n: p.shape for n, p in model.named_parameters()}
    for seed in (1, 30):
        sparse = sparsify(model, top_k(random_scores(shapes, seed), 0.02))
        move(sparse, 1, seed)
        deltas.append(sparse.delta())
        sparse.restore()
    assert all(isinstance(moved.places, SeededPositions) for delta in deltas for moved in delta.moved.values())
    assert deltas[0].moved.keys() ^ deltas[1].moved.keys() == {"0.bias", "1.bias"}
    both = Delta.of(chain(deltas))
    both.save(tmp_path / "d")
    deltas[1].save(tmp_path / "second")
    renamed = Delta.of(deltas[1].named_as({name: f"net.{name}" for name in shapes}))
    renamed.save(tmp_path / "renamed")
    Delta.load(tmp_path / "d").apply_(target := dict(before))
    assert same_bits(target, model)
    assert Delta.load(tmp_path / "renamed").positions("net.1.bias").tolist() == deltas[1].positions("1.bias").tolist()
    assert isinstance(Delta.load(tmp_path / "second").moved["1.bias"].places, SeededPositions)


def test_they_collide_with_nothing() -> None:
    """A merge never counted them; on a stack, they leave alone what another delta gave them."""
    base = linear()
    deltas, results = [], []
    for seed in (1, 2):
        model = linear()
        sparse = sparsify(model, {n: torch.ones_like(p, dtype=torch.bool) for n, p in model.named_parameters()})
        with torch.no_grad():
            for p in sparse.parameters():
                p.view(-1)[seed::3] += 1
        deltas.append(sparse.delta())
        results.append(snapshot(model))
    merged, overlap = merge(deltas, base)
    assert overlap.count == 0
    stack = Stack(base)
    before = snapshot(base)
    for delta in deltas:
        stack.push(delta)
    assert stack.report().count == 0
    merged.apply_(target := snapshot(before))
    assert same_bits(target, base)
    for name, tensor in base.state_dict().items():
        expected = torch.where(bits(results[0][name]) != bits(before[name]), results[0][name], results[1][name])
        assert torch.equal(tensor, expected)
    stack.switch(deltas[1])
    assert same_bits(base, results[1])
    stack.switch(None)
    assert same_bits(base, before)


def test_on_another_base_they_stay_as_they_are_there() -> None:
    delta, before, after = trained_in_part()
    other = {name: tensor + 1 for name, tensor in before.items()}
    with pytest.raises(ValueError, match="for another base"):
        delta.apply_(snapshot(other))
    delta.apply_(target := snapshot(other), strict=False)
    for name in before:
        moved = torch.zeros(before[name].numel(), dtype=torch.bool)
        moved[delta.positions(name)] = True
        assert torch.equal(target[name], torch.where(moved.view(before[name].shape), after[name], other[name]))
