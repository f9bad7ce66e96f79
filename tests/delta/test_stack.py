"""Several deltas on one base: one after the other, side by side, or merged."""

import copy
import itertools

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from fishexp import Delta, DeltaError
from fishexp.delta import Stack, merge
from tests.support.cases import conv_net, tiny_bert
from tests.support.checks import refusal
from tests.support.delta_cases import TYPES, Tied, disturbed, noise, same_bits, snapshot, tuned

FLOATS = [dtype for dtype in TYPES if dtype.is_floating_point]


def disjoint(model: nn.Module, count: int) -> list[nn.Module]:
    """Copies of a model, of which each has other entries changed."""
    generator = torch.Generator().manual_seed(3)
    results = [copy.deepcopy(model) for _ in range(count)]
    for tensors in zip(*(result.parameters() for result in results), strict=True):
        whose = torch.randint(2 * count, tensors[0].shape, generator=generator)
        for i, tensor in enumerate(tensors):
            tensor.data[whose == i] += 1 + i
    return results


def combined(base: nn.Module, results: list[nn.Module]) -> nn.Module:
    """The base with the changes of all, which do not meet."""
    together = copy.deepcopy(base)
    for result in results:
        for (name, p), q, old in zip(together.named_parameters(), result.parameters(), base.parameters(), strict=True):
            p.data = torch.where(q != old, q, p.data)
            assert name
    return together


def test_disjoint_deltas_are_exact_in_any_order() -> None:
    base = tiny_bert()
    results = disjoint(base, 3)
    deltas = [Delta.diff(base, result) for result in results]
    expected = combined(base, results)
    model = copy.deepcopy(base)
    stack = Stack(model)
    for order in itertools.permutations(range(3)):
        for i in order:
            stack.push(deltas[i])
        assert stack.deltas == tuple(deltas[i] for i in order)
        assert same_bits(model, expected)
        assert str(stack.report()) == "the deltas do not meet in any entry"
        assert stack.pop() is deltas[order[2]]
        assert same_bits(model, combined(base, [results[i] for i in order[:2]]))
        stack.switch(None)
        assert same_bits(model, base)


def test_a_chain_is_pushed_in_its_order_only() -> None:
    states = [tuned(conv_net(), 0)]
    for seed in range(1, 4):
        states.append(tuned(states[-1], seed))
    deltas = [Delta.diff(*pair) for pair in itertools.pairwise(states)]
    stack = Stack(model := copy.deepcopy(states[0]))
    assert "is neither what it was nor what it is now" in refusal(stack.push, deltas[1])
    for delta, state in zip(deltas, states[1:], strict=True):
        stack.push(delta)
        assert same_bits(model, state)
    assert "is neither what it was nor what it is now" in refusal(stack.push, deltas[1])
    assert stack.report().count > 0
    for state in reversed(states[:-1]):
        stack.pop()
        assert same_bits(model, state)
    assert refusal(stack.pop) == "no delta is on the stack"


def test_a_chain_goes_on_from_what_disjoint_deltas_made() -> None:
    """Nobody knows the fingerprint of a tensor that two deltas changed, until it is asked for."""
    base = tiny_bert()
    results = disjoint(base, 2)
    together = combined(base, results)
    after = tuned(together, 1)
    stack = Stack(model := copy.deepcopy(base))
    for result in results:
        stack.push(Delta.diff(base, result))
    stack.push(Delta.diff(together, after))
    assert same_bits(model, after)
    stack.switch(None)
    assert same_bits(model, base)


def test_overlaps_are_refused_with_a_report_or_the_last_one_wins() -> None:
    base = conv_net()
    one, other = copy.deepcopy(base), copy.deepcopy(base)
    with torch.no_grad():
        one.get_parameter("0.weight").flatten()[:10] += 1
        other.get_parameter("0.weight").flatten()[8:30:2] += 2  # 8 is of both
        one.get_parameter("5.bias")[0] = other.get_parameter("5.bias")[0] = 7  # the same value: no conflict
    first, second = Delta.diff(base, one), Delta.diff(base, other)
    stack = Stack(model := copy.deepcopy(base))
    stack.push(first)
    message = refusal(stack.push, second)
    assert message.startswith("the deltas meet in 1 entries of 1 tensors, 1 of them in 0.weight; pop the others")
    assert same_bits(model, one)
    stack.push(second, overlap="last")
    for name, p in model.named_parameters():
        moved = other.get_parameter(name) != base.get_parameter(name)
        assert torch.equal(p, torch.where(moved, other.get_parameter(name), one.get_parameter(name)))
    report = stack.report()
    assert (dict(report.entries), report.count, report.total) == ({"0.weight": 1}, 1, first.kept + second.kept)
    stack.pop()
    assert same_bits(model, one)
    assert "neither 'refuse' nor 'last'" in refusal(stack.push, second, overlap="first")  # type: ignore[arg-type]


def test_switching_is_all_or_nothing() -> None:
    base = tiny_bert()
    tasks = [tuned(base, seed) for seed in (1, 2)]
    deltas = [Delta.diff(base, task) for task in tasks]
    stack = Stack(model := copy.deepcopy(base))
    for i in (0, 1, 1, 0):
        stack.switch(deltas[i])
        assert same_bits(model, tasks[i])
        assert stack.deltas == (deltas[i],)
    foreign = Delta.diff(tasks[1], base)
    assert "is neither what it was" in refusal(stack.switch, foreign)
    assert "is not in it" in refusal(stack.switch, Delta.diff({}, {"x": torch.ones(1)}))
    assert same_bits(model, tasks[0])
    assert stack.deltas == (deltas[0],)
    with torch.no_grad():
        model.get_parameter("classifier.bias").add_(1)
    assert "has other values by now" in refusal(stack.switch, deltas[1])
    assert stack.deltas == (deltas[0],)


def test_a_stack_on_tied_and_grown_models() -> None:
    base = Tied()
    after = tuned(base, 1)
    stack = Stack(model := copy.deepcopy(base))
    loose = {name: tensor.clone() for name, tensor in snapshot(base).items()}
    stack.push(Delta.diff(loose, snapshot(after)))
    assert same_bits(model, after)
    small, large = nn.Embedding(3, 2), nn.Embedding(5, 2)
    with torch.no_grad():
        large.weight[:3] = small.weight
    grown = Delta.diff(small, large)
    stack = Stack(model := copy.deepcopy(large))
    for _ in range(2):
        stack.switch(grown)
        assert same_bits(model, large)
    small.weight.data[0] += 1
    assert "weight is neither" in refusal(stack.switch, Delta.diff(small, large))


def test_a_change_of_a_head_lies_on_heads_of_other_numbers_of_classes() -> None:
    base = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 3))
    bare = {name: value for name, value in snapshot(base).items() if name.startswith("0")}

    def with_head(classes: int) -> Delta:
        head = {"1.weight": torch.randn(classes, 4), "1.bias": torch.randn(classes)}
        return Delta.diff(bare, bare | head)

    after = copy.deepcopy(base)
    with torch.no_grad():
        after[1].get_parameter("weight")[0, 0] += 1
    stack, before = Stack(base), snapshot(base)
    heads = with_head(5), with_head(3)
    for delta in (*heads, Delta.diff(base, after)):
        stack.push(delta, "last")
    expected = heads[1].values("1.weight").clone()
    expected[0] = after[1].get_parameter("weight")[0, 0]
    assert torch.equal(base[1].get_parameter("weight").flatten(), expected)
    stack.switch(None)
    assert same_bits(base, before)


@given(st.integers(0, 2**32), st.lists(st.integers(0, 5), max_size=10))
@settings(max_examples=40)
def test_any_sequence_on_a_stack_is_exact(seed: int, moves: list[int]) -> None:
    """Compared with the values of those on the stack, written one after the other over the base."""
    generator = torch.Generator().manual_seed(seed)
    model = nn.ParameterDict({str(i): torch.rand(3, 4, generator=generator) for i in range(3)})
    base = snapshot(model)
    results = [{name: disturbed(t, 0.15, generator) for name, t in base.items()} for _ in range(4)]
    deltas = [Delta.diff(base, result) for result in results]
    stack, there = Stack(model), []
    for move in moves:
        if move < 4:
            try:
                stack.push(deltas[move], overlap="last" if seed % 2 else "refuse")
                there.append(move)
            except DeltaError as error:
                assert "meet in" in str(error)  # noqa: PT017
        elif move == 4 and there:
            assert stack.pop() is deltas[there.pop()]
        else:
            stack.switch(deltas[seed % 4])
            there = [seed % 4]
        expected = {name: tensor.clone() for name, tensor in base.items()}
        for i in there:
            for name in deltas[i].names:
                expected[name].view(-1)[deltas[i].positions(name)] = deltas[i].values(name)
        assert same_bits(model, expected)


@pytest.mark.parametrize("how", ["sum", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64, torch.float8_e4m3fn], ids=str)
def test_a_merge_adds_differences_and_leaves_what_one_delta_moves(dtype: torch.dtype, how: str) -> None:
    """Entry by entry, by the definition."""
    generator = torch.Generator().manual_seed(0)
    base = {"x": torch.randn(6, 7, generator=generator).to(dtype), "same": torch.ones(3)}
    tasks = []
    for density in (0.2, 0.5, 0.9):  # the last is stored whole
        task = base["x"].clone()
        chosen = torch.rand(6, 7, generator=generator) < density
        values = torch.randn(6, 7, generator=generator).to(dtype)
        tasks.append(torch.where(chosen, values.double(), task.double()).to(dtype))
    merged, overlap = merge([Delta.diff(base, {**base, "x": task}) for task in tasks], base, how)  # type: ignore[arg-type]
    merged.apply_(target := snapshot(base))
    collisions = 0
    for place, old in enumerate(base["x"].double().flatten().tolist()):
        new = [task.double().flatten()[place].item() for task in tasks]
        moved = [value for value in new if value != old]
        collisions += len(moved) > 1
        if len(moved) == 1:
            expected = moved[0]
        else:
            total = torch.tensor(0.0, dtype=torch.float64)
            for value in moved:
                total += value - old
            expected = (old + total / (len(moved) if how == "mean" and moved else 1)).item()
        assert target["x"].flatten()[place].double() == torch.tensor(expected, dtype=torch.float64).to(dtype).double()
    assert dict(overlap.entries) == {"x": collisions}
    assert collisions > 10
    assert merged.before == Delta.diff(base, base).before


def test_running_statistics_are_averaged_so_that_no_variance_is_less_than_nothing() -> None:
    norm = nn.BatchNorm1d(3).train()
    tasks = [copy.deepcopy(norm) for _ in range(2)]
    for seed, task in enumerate(tasks):
        for _ in range(20 + seed):
            task(0.1 * torch.randn(8, 3, generator=torch.Generator().manual_seed(seed)))
    with torch.no_grad():
        tasks[0].weight.add_(1)
        tasks[1].weight.add_(2)
    merged, _ = merge([Delta.diff(norm, task) for task in tasks], norm)
    merged.apply_(norm)
    for name in ("running_mean", "running_var"):
        first, second = (task.get_buffer(name) for task in tasks)
        torch.testing.assert_close(norm.get_buffer(name), (first + second) / 2)
    assert norm.get_buffer("num_batches_tracked") == 21
    assert norm.weight.tolist() == [4, 4, 4]


def test_a_merge_is_for_the_base_of_its_deltas() -> None:
    base = tiny_bert()
    a, b = tuned(base, 1), tuned(base, 2)
    deltas = [Delta.diff(base, a), Delta.diff(a, b)]
    assert refusal(merge, deltas, base).startswith(
        "delta 2 is for another base: bert.embeddings.word_embeddings.weight is"
    )
    assert "delta 1 is for another base" in refusal(merge, deltas, conv_net())
    with torch.no_grad():
        base.get_parameter("classifier.bias")[0] += 1
    assert "classifier.bias is float64 (3,), the delta's base has other values" in refusal(merge, deltas[:1], base)
    assert "neither 'sum' nor 'mean'" in refusal(merge, deltas, base, "max")  # type: ignore[arg-type]


def test_bits_of_one_delta_arrive_whatever_they_are() -> None:
    """NaN with a payload, -0.0, all types, more rows, new tensors, removed ones, ties."""
    generator = torch.Generator().manual_seed(0)
    base = {str(dtype): noise(dtype, (5, 8), generator) for dtype in TYPES} | {"gone": torch.ones(2)}
    one = {name: disturbed(tensor, 0.3, generator) for i, (name, tensor) in enumerate(base.items()) if i % 2}
    other = {name: disturbed(tensor, 0.9, generator) for i, (name, tensor) in enumerate(base.items()) if not i % 2}
    one["new"] = torch.ones(3)
    one["torch.float32"] = torch.cat([base["torch.float32"], torch.ones(2, 8)])
    first, second = {**base, **one}, {**base, **other}
    first["torch.float32"], second["torch.float32"] = one["torch.float32"], base["torch.float32"]
    for model in (first, second):
        model.pop("gone")
    merged, overlap = merge([Delta.diff(base, first), Delta.diff(base, second)], base)
    assert overlap.count == 0
    merged.apply_(target := snapshot(base))
    expected = {**base, **one, **other, "torch.float32": one["torch.float32"]}
    del expected["gone"]
    assert same_bits(target, expected)


def test_what_has_no_sum_must_agree() -> None:
    def merged(base: Tensor | None, *results: Tensor) -> Tensor:
        before = {} if base is None else {"x": base}
        delta, _ = merge([Delta.diff(before, {"x": result}) for result in results], before)
        delta.apply_(target := snapshot(before))
        return target["x"]

    zero, seven = torch.zeros(4, dtype=torch.int64), torch.full((4,), 7)
    assert merged(zero, seven, seven).tolist() == [7] * 4
    message = refusal(merged, zero, seven, seven + torch.tensor([0, 1, 0, 0]))
    assert message.startswith("x: the deltas have different values for 1 of its entries, which have no sum, being no")
    assert merged(zero, torch.tensor([1, 0, 0, 2]), torch.tensor([0, 3, 0, 2])).tolist() == [1, 3, 0, 2]
    assert merged(None, torch.ones(2), torch.ones(2)).tolist() == [1, 1]
    assert "different values for 1 of its entries" in refusal(merged, None, torch.ones(2), torch.tensor([1.0, 2.0]))
    rows = torch.zeros(2, 2)
    assert "shape (3, 2) and (4, 2)" in refusal(merged, rows, torch.zeros(3, 2), torch.zeros(4, 2))
    assert "shape (2,) and (3,)" in refusal(merged, None, torch.ones(2), torch.ones(3))
    assert merged(rows, torch.ones(3, 2), rows + 1).tolist() == [[2, 2], [2, 2], [1, 1]]
    gone = Delta.diff({"x": zero}, {})
    message = refusal(merge, [gone, Delta.diff({"x": zero}, {"x": seven})], {"x": zero})
    assert message == "x has new values in one delta and is removed by another"


def test_merging_a_delta_with_itself_by_the_mean_gives_itself() -> None:
    base = Tied()
    after = tuned(base, 1)
    delta = Delta.diff(base, after)
    merged, overlap = merge([delta, delta], snapshot(base), "mean")
    assert merged.after == delta.after
    assert overlap.count == sum(int((after.state_dict()[n] != base.state_dict()[n]).sum()) for n in delta.names)
