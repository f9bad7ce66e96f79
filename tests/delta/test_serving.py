"""One model in memory that serves many tasks: heads of other sizes, a hundred deltas, several threads."""

import copy
import random
import threading
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from fishexp import Delta
from fishexp.delta import Stack, merge_tasks
from tests.support.cases import tiny_bert
from tests.support.checks import refusal
from tests.support.delta_cases import same_bits, snapshot, tuned

IDS = torch.tensor([[1, 2, 3, 4], [5, 6, 7, 8]])
WAIT = 30  # seconds that a thread may take before a test gives up


def logits(model: nn.Module) -> Tensor:
    with torch.no_grad():
        return model(IDS).logits


def backbone() -> dict[str, Tensor]:
    return {name: tensor for name, tensor in snapshot(tiny_bert()).items() if "classifier" not in name}


def classifier(classes: int) -> nn.Module:
    """The backbone, whose weights are the same for any number of classes, with a head."""
    model = tiny_bert(classes).eval()
    model.load_state_dict(backbone(), strict=False)
    return model


def tasks(classes: list[int]) -> tuple[list[Any], list[Delta]]:
    """Models that were tuned from the backbone with heads of so many classes, and their deltas."""
    models = [tuned(classifier(count), seed, 0.05) for seed, count in enumerate(classes)]
    return models, [Delta.diff(backbone(), model) for model in models]


def test_tasks_of_other_numbers_of_classes_take_turns_on_one_backbone() -> None:
    models, deltas = tasks([3, 2, 5, 1])
    resident = classifier(2)
    base, head = snapshot(resident), resident.get_parameter("classifier.weight")
    stack = Stack(resident)
    for i in (0, 1, 2, 3, 3, 0, 2, 1):
        stack.switch(deltas[i])
        assert same_bits(resident, models[i])
        assert torch.equal(logits(resident), logits(models[i]))
        assert resident.get_parameter("classifier.weight") is head  # who holds it sees the new head
    stack.switch(None)
    assert same_bits(resident, base)
    assert torch.equal(deltas[0].values("classifier.bias"), models[0].classifier.bias)  # theirs are not lent out


def test_one_merged_backbone_serves_a_head_for_each_task() -> None:
    _, deltas = tasks([3, 2])
    merged = merge_tasks(deltas, backbone())
    each = [merged.task(number) for number in range(2)]
    stack = Stack(classifier(4))
    for i in (0, 1, 0):
        expected = backbone()
        each[i].apply_(expected)
        with stack.using(each[i]) as model:
            assert same_bits(model, expected)


def test_a_head_with_changed_entries_is_not_thrown_away() -> None:
    models, deltas = tasks([3, 2])
    stack = Stack(resident := classifier(4))
    stack.push(deltas[0])
    with torch.no_grad():
        resident.get_parameter("classifier.weight")[2, 0] += 1
    assert "classifier.weight has other values by now" in refusal(stack.switch, deltas[1])
    with torch.no_grad():
        resident.get_parameter("classifier.weight").copy_(models[0].classifier.weight)
    stack.switch(deltas[1])
    assert same_bits(resident, models[1])


def test_heads_of_another_width_or_type_are_refused() -> None:
    models, _ = tasks([3])
    for name, odd in {
        "wide": torch.ones(2, 9).double(),
        "flat": torch.ones(2).double(),
        "float": torch.ones(2, 8),
    }.items():
        delta = Delta.diff(backbone(), snapshot(models[0]) | {"classifier.weight": odd})
        assert "the delta is for another model" in refusal(Stack(classifier(3)).push, delta), name
    whole = Delta.diff(backbone(), models[0])
    assert "the delta is for another model" in refusal(whole.apply_, classifier(2))  # only a stack exchanges heads


def test_a_hundred_deltas_are_exact_back_and_forth() -> None:
    base = classifier(2)
    models = [tuned(base, seed, 0.05) for seed in range(100)]
    deltas = [Delta.diff(base, model) for model in models]
    stack = Stack(resident := copy.deepcopy(base))
    order = [*range(100), *random.Random(0).choices(range(100), k=200)]
    for i in order:
        stack.switch(deltas[i])
        assert same_bits(resident, models[i])
    stack.switch(None)
    assert same_bits(resident, base)


def in_threads(functions: list[Callable[[], None]]) -> None:
    """Run functions in a thread each, and raise the first error of any."""
    errors: list[BaseException] = []

    def call(function: Callable[[], None]) -> None:
        try:
            function()
        except BaseException as error:
            errors.append(error)

    threads = [threading.Thread(target=call, args=(function,), daemon=True) for function in functions]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(WAIT)
        assert not thread.is_alive()
    for error in errors:
        raise error


def test_threads_that_want_other_tasks_never_see_a_mixture() -> None:
    models, deltas = tasks([3, 2, 5])
    expected = [logits(model) for model in models]
    stack = Stack(classifier(2))

    def serve(seed: int) -> None:
        for i in random.Random(seed).choices(range(3), k=40):
            with stack.using(deltas[i]) as model:
                assert torch.equal(logits(model), expected[i])

    in_threads([lambda seed=seed: serve(seed) for seed in range(6)])


def test_threads_with_the_same_task_compute_side_by_side() -> None:
    _, deltas = tasks([3])
    stack = Stack(classifier(3))
    both = threading.Barrier(2, timeout=WAIT)

    def serve() -> None:
        with stack.using(deltas[0]):
            both.wait()  # reached only if both are inside

    in_threads([serve, serve])


def test_whoever_waits_for_another_task_is_not_overtaken() -> None:
    _, deltas = tasks([3, 2])
    stack = Stack(classifier(3))
    order: list[str] = []

    def serve(name: str, i: int) -> None:
        with stack.using(deltas[i]):
            order.append(name)

    with stack.using(deltas[0]):
        other = threading.Thread(target=serve, args=("other", 1), daemon=True)
        other.start()
        other.join(0.2)
        same = threading.Thread(target=serve, args=("same", 0), daemon=True)
        same.start()
        same.join(0.2)
        assert order == []
        with stack.using(deltas[0]):  # this thread is inside already, and need not wait
            order.append("nested")
    for thread in (other, same):
        thread.join(WAIT)
    assert order == ["nested", "other", "same"]


@pytest.mark.parametrize("change", ["push", "switch", "using", "pop"])
def test_a_thread_cannot_change_what_it_uses(change: str) -> None:
    models, deltas = tasks([3, 2])
    stack = Stack(resident := classifier(3))

    def using(delta: Delta) -> None:
        with stack.using(delta):
            pass

    calls = {"push": stack.push, "switch": stack.switch, "using": using, "pop": lambda _: stack.pop()}
    with stack.using(deltas[0]):
        assert "this thread uses the model" in refusal(calls[change], deltas[1])
        assert same_bits(resident, models[0])
    stack.switch(deltas[1])
    assert same_bits(resident, models[1])


def test_a_delta_that_does_not_fit_leaves_the_stack_to_others() -> None:
    models, deltas = tasks([3])
    stack = Stack(resident := classifier(3))
    foreign = Delta.diff(models[0], classifier(3))
    with stack.using(deltas[0]):
        pass
    with pytest.raises(ValueError, match="for another base"), stack.using(foreign):
        pass
    with stack.using(deltas[0]), stack.using(deltas[0]) as model:
        assert model is resident
        assert same_bits(model, models[0])
    with stack.using(None):
        assert same_bits(resident, classifier(3))
