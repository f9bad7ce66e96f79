"""A delta makes the base the result to the bit, or nothing at all; and back."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fishexp import Delta, sparsify
from fishexp.delta import fingerprint, merge, planes
from fishexp.delta.content import TensorDelta
from tests.support.cases import conv_net, tiny_bert
from tests.support.checks import refusal
from tests.support.delta_cases import MODELS, SHAPES, TYPES, Tied, disturbed, noise, same_bits, snapshot, tuned
from tests.support.modules import random_mask


def reloaded(delta: Delta, folder: Path) -> Delta:
    delta.save(folder / "d.safetensors")
    return Delta.load(folder / "d.safetensors")


@pytest.mark.parametrize("density", [0.0, 0.01, 0.3, 1.0])
@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_any_change_of_any_type_and_shape_there_and_back(dtype: torch.dtype, density: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    before = {str(shape): noise(dtype, shape, generator) for shape in SHAPES}
    before["turned"] = noise(dtype, (8, 30), generator).t()
    after = {name: disturbed(tensor, density, generator) for name, tensor in before.items()}
    target = {name: tensor.clone() for name, tensor in before.items()}
    assert target["turned"].stride() == before["turned"].stride() != (8, 1)
    kept = dict(target)
    delta = reloaded(Delta.diff(before, after), tmp_path)
    assert (delta.kept == 0) == (density == 0)
    undo = delta.apply_(target)
    assert same_bits(target, after)
    undo.revert_()
    assert same_bits(target, before)
    assert all(tensor is kept[name] for name, tensor in target.items())
    assert target["turned"].stride() == before["turned"].stride()


@given(st.integers(0, 2**32), st.sampled_from(TYPES), st.lists(st.integers(0, 9), max_size=4), st.floats(0, 1))
@settings(max_examples=150)
def test_a_diff_is_smaller_than_the_tensor_and_exact(
    seed: int, dtype: torch.dtype, shape: list, density: float
) -> None:
    generator = torch.Generator().manual_seed(seed)
    before = noise(dtype, tuple(shape), generator)
    after = disturbed(before, density, generator)
    delta = Delta.diff({"x": before}, {"x": after})
    assert (delta.before == delta.after) == same_bits({"x": before}, {"x": after}) == (not delta.moved)
    target = {"x": before.clone()}
    delta.apply_(target)
    assert same_bits(target, {"x": after})
    if delta.moved:
        places = delta.positions("x")
        assert len(places) == len(delta.values("x")) <= after.numel()
        assert (places.diff() > 0).all()


@pytest.mark.parametrize("stride", [0, 2])
def test_a_single_entry_may_have_any_stride(stride: int, tmp_path: Path) -> None:
    model = nn.Linear(3, 2)
    model.gain = nn.Parameter(torch.ones(2).as_strided((1,), (stride,)))
    model.register_buffer("scale", torch.ones(2).as_strided((1, 1), (stride, stride)))
    after = {name: value + 1 for name, value in model.state_dict().items()}
    delta = Delta.diff(model, after)
    undo = reloaded(delta, tmp_path).apply_(model)
    assert same_bits(model, after)
    assert planes.split(model.gain.detach()) is None
    undo.revert_()
    assert Delta.whole(model).after == delta.before


def test_a_diff_keeps_the_bits_of_nan_and_of_minus_zero() -> None:
    before = torch.tensor([0.0, math.nan, 1.0])
    after = torch.tensor([-0.0, math.nan, 1.0])
    after.view(torch.int32)[1] += 1  # another NaN
    delta = Delta.diff({"x": before}, {"x": after})
    assert delta.positions("x").tolist() in ([0, 1], [0, 1, 2])
    delta.apply_(target := {"x": before})
    assert same_bits(target, {"x": after})


def test_few_changes_are_stored_alone_and_many_as_the_tensor() -> None:
    before = torch.zeros(1000)
    few, many = before.clone(), torch.rand(1000) + 1
    few[[3, 500]] = 1
    delta = Delta.diff({"few": before, "many": before, "none": before}, {"few": few, "many": many, "none": before})
    assert delta.positions("few").tolist() == [3, 500]
    assert delta.names == ("few", "many")
    assert delta.moved["many"].positions is None
    assert delta.kept == 1002


def test_a_tensor_of_several_pieces_is_checked_as_one(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    monkeypatch.setattr(fingerprint, "PIECE", 4 * 64)
    for shape, grown in [((5, 30), (7, 30)), ((64,), (64,)), ((192,), (193,)), ((63,), (70,))]:
        for density in (0.0, 0.05, 0.9, 1.0):
            before = noise(torch.float32, shape, generator)
            after = noise(torch.float32, grown, generator)
            after[: shape[0]] = disturbed(before, density, generator)
            Delta.diff({"x": before}, {"x": after}).apply_(target := {"x": before})
            assert same_bits(target, {"x": after})


@pytest.mark.parametrize("sparsified", [False, True])
@pytest.mark.parametrize("name", MODELS)
def test_a_model_keeps_what_it_is_but_its_values(name: str, sparsified: bool) -> None:
    base = MODELS[name]()
    after = tuned(base, 1)
    model = copy.deepcopy(base)
    if sparsified:
        sparsify(model, random_mask(model))
    tensors = {
        name: (t, t.data_ptr(), t.stride(), t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()
    }
    undo = Delta.diff(base, after).apply_(model)
    assert same_bits(model, after)
    undo.revert_()
    assert same_bits(model, base)
    now = {name: (t, t.data_ptr(), t.stride(), t.requires_grad) for name, t in model.state_dict(keep_vars=True).items()}
    assert all(now[name][0] is one[0] and now[name][1:] == one[1:] for name, one in tensors.items())


def test_the_next_step_of_a_sparsified_model_starts_from_the_new_values() -> None:
    base, after = conv_net(), tuned(conv_net(), 1)
    mask = random_mask(base)
    sparse = sparsify(base, mask)
    optimiser = torch.optim.SGD(sparse.parameters(), lr=1.0)
    Delta.diff(conv_net(), after).apply_(base)
    base(torch.randn(2, 2, 4, 4).double()).sum().backward()
    gradients = [p.grad.clone() for p in sparse.parameters() if p.grad is not None]
    optimiser.step()
    names = [name for name in mask if mask[name].any()]
    assert len(gradients) == len(names)
    for name, gradient in zip(names, gradients, strict=True):
        expected = after.state_dict()[name].clone()
        expected[mask[name]] -= (
            gradient.flatten()[mask[name].flatten()]
            if mask[name].all()
            else _in_order(sparse.positions()[name], gradient)
        )
        assert torch.equal(base.state_dict()[name], expected), name


def _in_order(positions: Tensor, values: Tensor) -> Tensor:
    return values[positions.argsort()]


def test_tied_tensors_are_one_under_any_of_their_names(tmp_path: Path) -> None:
    base = Tied()
    after = tuned(base, 1, 1.0)
    delta = reloaded(Delta.diff(base, after), tmp_path)
    assert set(delta.names) == {"embedding.weight", "output.bias", "steps"}
    assert delta.tied == {"output.weight": "embedding.weight"}
    targets: list[dict[str, Tensor]] = [base.state_dict(), snapshot(base), snapshot(base), snapshot(base)]
    del targets[2]["output.weight"], targets[3]["embedding.weight"]
    expected = snapshot(after)
    for target in targets[1:]:
        undo = delta.apply_(target)
        assert same_bits(target, {name: expected[name] for name in target})
        undo.revert_()
        assert same_bits(target, {name: snapshot(base)[name] for name in target})
    delta.apply_(targets[0])
    assert same_bits(base, after)
    assert base.output.weight is base.embedding.weight


def test_two_tensors_that_are_one_here_must_be_equal_in_the_delta() -> None:
    loose = {name: tensor.clone() for name, tensor in Tied().state_dict().items()}
    base = Tied()
    base.load_state_dict(loose)
    after = {**loose, "embedding.weight": loose["embedding.weight"] + 1}
    assert "are one tensor here, and two that differ" in refusal(Delta.diff(loose, after).apply_, base)
    after["output.weight"] = after["embedding.weight"].clone()
    Delta.diff(loose, after).apply_(base)
    assert same_bits(base, after)
    loose = {**loose, "output.weight": loose["output.weight"] + 1}  # no longer tied
    delta = Delta.diff(tied := Tied(), loose)
    delta.apply_(target := snapshot(tied))
    assert same_bits(target, loose)
    assert "are one tensor here, and two that differ" in refusal(delta.apply_, tied)


def test_new_rows_new_tensors_and_removed_ones(tmp_path: Path) -> None:
    before = {"rows": torch.arange(6.0).view(3, 2), "gone": torch.ones(2), "stays": torch.ones(1)}
    after = {"rows": torch.arange(10.0).view(5, 2), "new": torch.rand(3), "stays": torch.ones(1)}
    delta = reloaded(Delta.diff(before, after), tmp_path)
    assert delta.removed == ("gone",)
    assert delta.positions("rows").tolist() == [6, 7, 8, 9]
    target = {**before, "mine": torch.ones(1)}
    assert refusal(delta.apply_, target) == "the delta is for another base: mine is not in it"
    target = dict(before)
    undo = delta.apply_(target)
    assert same_bits(target, after)
    assert torch.equal(before["rows"], torch.arange(6.0).view(3, 2))
    undo.revert_()
    assert list(target) == list(before)
    assert all(target[name] is before[name] for name in before)


def test_a_model_brings_the_new_rows_and_tensors_itself() -> None:
    before, after = nn.Sequential(nn.Embedding(5, 3)), nn.Sequential(nn.Embedding(7, 3), nn.Linear(3, 2))
    with torch.no_grad():
        after[0].weight[:5] = before[0].weight  # type: ignore[index, operator]
    delta = Delta.diff(before, after)
    assert "0.weight is float32 (5, 3), after the delta it is float32 (7, 3)" in refusal(
        delta.apply_, nn.Sequential(before[0], after[1])
    )
    assert "it has 1.weight, which is missing here" in refusal(delta.apply_, nn.Sequential(after[0]))
    target = copy.deepcopy(after)
    with torch.no_grad():
        target[0].weight[5:] = 0  # type: ignore[index, operator]
        target[1].weight.zero_()  # type: ignore[union-attr, operator]
    start = snapshot(target)
    undo = delta.apply_(target)
    assert same_bits(target, after)
    undo.revert_()
    assert same_bits(target, start)
    with torch.no_grad():
        target[0].weight[0, 0] += 1  # type: ignore[index, operator]
    assert "the values of 0.weight are not those" in refusal(delta.apply_, target)
    assert "0.weight, which a model cannot" in refusal(Delta.diff(before, {}).apply_, before)


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_new_rows_of_any_type(dtype: torch.dtype) -> None:
    all_rows = noise(dtype, (5, 4), torch.Generator().manual_seed(0))
    before, after = {"x": all_rows[:3].clone()}, {"x": all_rows}
    delta = Delta.diff(before, after)
    undo = delta.apply_(target := dict(before))
    assert same_bits(target, after)
    undo.revert_()
    assert target["x"] is before["x"]
    merged, _ = merge([delta, delta], before)
    assert merged.after == delta.after


def test_new_rows_without_entries_are_a_change_too() -> None:
    before, after = {"x": torch.zeros(2, 0)}, {"x": torch.zeros(5, 0)}
    delta = Delta.diff(before, after)
    assert delta.before != delta.after
    delta.apply_(before)
    assert same_bits(before, after)


def test_a_tensor_that_the_base_has_not_takes_the_place_of_one_of_another_shape() -> None:
    """A head that was trained anew, on a base that has one of more rows; a model has it already, or is refused."""
    below, head = {"w": torch.randn(4, 3)}, {"head": torch.randn(5, 3)}
    delta = Delta.diff(below, {"w": below["w"] + 1, "head": torch.ones(2, 3)})
    target = snapshot(below | head)
    undo = delta.apply_(target)
    assert same_bits(target, {"w": below["w"] + 1, "head": torch.ones(2, 3)})
    undo.revert_()
    assert same_bits(target, below | head)
    model = nn.Module()
    for name, tensor in target.items():
        model.register_buffer(name, tensor)
    words = "the delta is for another model: head is float32 (5, 3), the delta has float32 (2, 3)"
    assert refusal(delta.apply_, model) == words


def test_more_than_new_rows_is_refused() -> None:
    def why(before: Tensor, after: Tensor) -> str:
        return refusal(Delta.diff, {"x": before}, {"x": after})

    assert why(torch.ones(2), torch.ones(2).half()).startswith("x is float32 (2,) before and float16 (2,) after;")
    for before, after in [((2, 3), (2, 4)), ((3, 2), (2, 2)), ((), (1,)), ((2,), (2, 1))]:
        assert str(after) in why(torch.ones(before), torch.ones(after))


def mistakes() -> list[tuple[str, Any]]:
    def without(name: str) -> nn.Module:
        model = tiny_bert()
        parent, _, last = name.rpartition(".")
        delattr(model.get_submodule(parent), last)
        return model

    def more() -> nn.Module:
        model = tiny_bert()
        model.register_parameter("extra", nn.Parameter(torch.ones(2)))
        return model

    def changed() -> nn.Module:
        model = tiny_bert()
        with torch.no_grad():
            model.get_parameter("bert.pooler.dense.weight")[0, 0] += 1
            model.get_parameter("classifier.weight")[0, 0] += 1
        return model

    return [
        ("extra is not in it", more),
        ("it has bert.pooler.dense.bias, which is missing here", lambda: without("bert.pooler.dense.bias")),
        (
            "bert.embeddings.word_embeddings.weight is float32 (20, 8), the delta's base has float64 (20, 8)",
            lambda: tiny_bert().float(),
        ),
        ("classifier.weight is float64 (4, 8), the delta's base has float64 (3, 8)", lambda: tiny_bert(4)),
        ("the values of bert.pooler.dense.weight are not those of the delta's base; strict=False", changed),
    ]


@pytest.mark.parametrize(("message", "make"), mistakes(), ids=[message[:20] for message, _ in mistakes()])
def test_another_base_is_refused_by_the_first_difference_and_left_alone(message: str, make: Any) -> None:
    delta = Delta.diff(tiny_bert(), tuned(tiny_bert(), 1))
    target = make()
    before = snapshot(target)
    assert refusal(delta.apply_, target).startswith(f"the delta is for another base: {message}")
    assert same_bits(target, before)
    if not message.endswith("strict=False"):
        assert refusal(delta.apply_, target, strict=False).startswith(f"the delta is for another base: {message}")
        assert same_bits(target, before)


def test_not_strict_applies_to_other_values_and_goes_back() -> None:
    base, other = conv_net(), tuned(conv_net(), 2)
    delta, before = Delta.diff(base, tuned(base, 1)), snapshot(other)
    assert "are not those of the delta's base" in refusal(delta.apply_, other)
    undo = delta.apply_(other, strict=False)
    for name in delta.names:
        found = other.state_dict()[name].flatten()[delta.positions(name)]
        assert torch.equal(found, delta.values(name))
    undo.revert_()
    assert same_bits(other, before)


def test_twice_is_refused_and_so_is_going_back_out_of_order() -> None:
    states = [conv_net(), tuned(conv_net(), 1), tuned(tuned(conv_net(), 1), 2)]
    first, second = Delta.diff(*states[:2]), Delta.diff(*states[1:])
    assert first.after == second.before
    model = copy.deepcopy(states[0])
    one = first.apply_(model)
    assert refusal(first.apply_, model) == "already applied: the model has the delta's result"
    assert same_bits(model, states[1])
    two = second.apply_(model)
    assert "applied after this one; revert that one first" in refusal(one.revert_)
    assert "values of" in refusal(first.apply_, model)
    assert same_bits(model, states[2])
    two.revert_()
    assert "reverted before" in refusal(two.revert_)
    one.revert_()
    assert same_bits(model, states[0])
    first.apply_(model)
    assert same_bits(model, states[1])


def test_out_of_order_is_seen_where_the_deltas_share_no_tensor() -> None:
    base = {"a": torch.zeros(2), "b": torch.zeros(2)}
    target = dict(base)
    first = Delta.diff(base, {**base, "a": torch.ones(2)}).apply_(target)
    second = Delta.diff(target, {**target, "b": torch.ones(2)}).apply_(target)
    assert "applied after this one" in refusal(first.revert_)
    second.revert_()
    first.revert_()
    assert same_bits(target, {"a": torch.zeros(2), "b": torch.zeros(2)})


def test_values_changed_meanwhile_are_not_lost() -> None:
    model = conv_net()
    undo = Delta.diff(model, tuned(model, 1)).apply_(model)
    weight = model.get_parameter("5.weight")
    with torch.no_grad():
        weight.add_(1)
    before = snapshot(model)
    assert refusal(undo.revert_).startswith("5.weight has other values by now")
    assert same_bits(model, before)
    with torch.no_grad():
        weight.sub_(1)
    model.float()
    assert "of another type or shape" in refusal(undo.revert_)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 3), min_size=1, max_size=12))
@settings(max_examples=40)
def test_any_valid_sequence_is_exact(seed: int, moves: list[int]) -> None:
    """Forth with new deltas and back with undos, in any order that is allowed; what is not is refused."""
    generator = torch.Generator().manual_seed(seed)
    target = {
        f"{i}": noise(TYPES[int(i)], (3, 5), generator) for i in torch.randperm(len(TYPES), generator=generator)[:3]
    }
    states, undos = [snapshot(target)], []
    for move in moves:
        if move == 0 and undos:
            undos.pop().revert_()
            states.pop()
        elif move == 1 and len(undos) > 1:
            refusal(undos[0].revert_)
        else:
            after = {name: disturbed(tensor, move / 3, generator) for name, tensor in target.items()}
            undos.append(Delta.diff(target, after).apply_(target))
            states.append(after)
        assert same_bits(target, states[-1])
    while undos:
        undos.pop().revert_()
    assert same_bits(target, states[0])


@pytest.mark.parametrize("when", [0, 3, 7])
def test_a_failure_in_the_middle_leaves_nothing_behind(when: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Memory may run out between two tensors; here the write of one fails half-way."""
    base = tiny_bert()
    after = tuned(base, 1)
    delta, model = Delta.diff(base, after), copy.deepcopy(base)
    write, count = TensorDelta.write_, [0]

    def fail(self: TensorDelta, tensor: Tensor, values: Tensor) -> None:
        count[0] += 1
        write(self, tensor, values)
        if count[0] == when + 1:
            raise MemoryError

    monkeypatch.setattr(TensorDelta, "write_", fail)
    with pytest.raises(MemoryError):
        delta.apply_(model, strict=False)
    assert count[0] == 2 * (when + 1)
    assert same_bits(model, base)
    undo = delta.apply_(model)
    count[0] = 0
    with pytest.raises(MemoryError):
        undo.revert_()
    assert same_bits(model, after)
    undo.revert_()
    assert same_bits(model, base)


def test_memory_that_tensors_share_is_not_written_twice() -> None:
    memory = torch.zeros(6)
    target = {"a": memory[:4], "b": memory[2:]}
    base = {name: tensor.clone() for name, tensor in target.items()}
    delta = Delta.diff(base, {**base, "a": torch.ones(4)})
    assert refusal(delta.apply_, target) == "a and b share memory, but are not tied; copy one of them"
    expanded = {"a": torch.zeros(1).expand(4), "b": torch.zeros(4)}
    assert refusal(delta.apply_, expanded).startswith("a is expanded")
    assert not memory.any()
    assert not expanded["a"].any()


def test_what_a_delta_cannot_hold_is_named() -> None:
    one = torch.ones(2)
    for value, reason in [
        (3, "is a int, not a tensor"),
        (one.to_sparse(), "is sparse"),
        (torch.ones(2, device="meta"), "has no values yet"),
        (one.to(torch.complex128), "has entries of torch.complex128"),
        (one.to(torch.complex64).conj(), "is sparse, nested or a lazy view"),
    ]:
        assert f"step {reason}" in refusal(Delta.diff, {"step": value}, {"step": value})
    for name in ("", "a\nb", "a\x1b[2J", 7, "__metadata__", "a" * 4097):
        assert "cannot be the name of a tensor" in refusal(Delta.diff, {name: one}, {name: one})
    assert "has no values yet" in refusal(Delta.whole, nn.LazyLinear(3))
    assert refusal(Delta.whole({"a": one}).apply_, "base").startswith("a str is no model and no dict of tensors")


def test_whole_is_the_model_for_any_of_its_kind(tmp_path: Path) -> None:
    model, other = Tied(), Tied()
    delta = reloaded(Delta.whole(model), tmp_path)
    before = snapshot(other)
    undo = delta.apply_(other)
    assert same_bits(other, model)
    assert delta.after == Delta.diff(model, model).before
    undo.revert_()
    assert same_bits(other, before)
    assert "float64" in refusal(delta.apply_, Tied().double())
    assert all(bool(mask.all()) for mask in delta.mask(other).values())


def test_the_mask_of_a_delta_is_where_it_has_values() -> None:
    base = tiny_bert()
    after = tuned(base, 1, 0.05)
    mask = Delta.diff(base, after).mask(base)
    assert list(mask) == [name for name, _ in base.named_parameters()]
    for name, p in base.named_parameters():
        assert torch.equal(mask[name], p != after.get_parameter(name)) or mask[name].all()
    assert sum(int(m.sum()) for m in mask.values()) < 0.1 * sum(p.numel() for p in base.parameters())


def test_a_delta_says_what_it_is() -> None:
    delta = Delta.diff({"x": torch.zeros(1000), "y": torch.zeros(5)}, {"x": torch.eye(1000)[7], "y": torch.zeros(5)})
    assert repr(delta) == (f"Delta(1 of 1,005 entries in 1 of 2 tensors, {delta.before[:8]} -> {delta.after[:8]})")
