"""Weights that are reached, or written, past their module: trained right or refused, never silently untrained."""

import copy
import pickle
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import spectral_norm, weight_norm
from torch.utils.checkpoint import checkpoint

from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.sparse import sparsify
from fishexp.sparse.modules import plain
from fishexp.sparse.parameter import weights
from tests.support.cases import conv_net, images
from tests.support.modules import mask_of, numbers, objective

PAST_ITS_MODULE = "a gradient reached lin.weight, which the mask keeps in part, past its module"


class Net(nn.Module):
    """Use a Linear, and its weight once more in the way of a case."""

    use: Any
    held: Any

    def __init__(self, reach: Callable[["Net"], Callable[[Tensor], Tensor]]) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.lin = nn.Linear(4, 4, bias=False).double()
        self.use = reach(self)

    def forward(self, x: Tensor) -> Tensor:
        return self.use(self.lin(x).tanh())


@dataclass
class Holder:
    w: Tensor


def by_closure(net: Net) -> Callable[[Tensor], Tensor]:
    weight = net.lin.weight
    return lambda x: F.linear(x, weight)


def by_default(net: Net) -> Callable[[Tensor], Tensor]:
    def use(x: Tensor, weight: Tensor = net.lin.weight) -> Tensor:
        return F.linear(x, weight)

    return use


def by_namespace(net: Net) -> Callable[[Tensor], Tensor]:
    net.held = SimpleNamespace(inner={"w": net.lin.weight})
    return lambda x: F.linear(x, net.held.inner["w"])


def by_dataclass(net: Net) -> Callable[[Tensor], Tensor]:
    net.held = Holder(net.lin.weight)
    return lambda x: F.linear(x, net.held.w)


def by_view(net: Net) -> Callable[[Tensor], Tensor]:
    net.held = net.lin.weight.t()
    return lambda x: x @ net.held


def by_hook(net: Net) -> Callable[[Tensor], Tensor]:
    weight = net.lin.weight
    net.lin.register_forward_hook(lambda module, inputs, output: torch.add(output, F.linear(inputs[0], weight)))  # type: ignore[arg-type]
    return lambda x: x


def by_tied_module(net: Net) -> Callable[[Tensor], Tensor]:
    other = nn.Linear(4, 4, bias=False)
    other.weight = net.lin.weight
    return lambda x: other(x)


def by_named_parameters(net: Net) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, dict(net.named_parameters())["lin.weight"])


def by_parameters_of_the_module(net: Net) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, net.lin._parameters["weight"])  # type: ignore[arg-type]


HELD = [by_closure, by_default, by_namespace, by_dataclass, by_view, by_hook, by_tied_module]


def by_bound_method(net: Net) -> Callable[[Tensor], Tensor]:
    call = net.lin.forward
    return lambda x: call(x)


def by_closure_over_the_module(net: Net) -> Callable[[Tensor], Tensor]:
    lin = net.lin
    return lambda x: F.linear(lin(x), lin.weight)


def by_attribute_of_the_model(net: Net) -> Callable[[Tensor], Tensor]:
    return lambda x: F.linear(x, net.get_submodule("lin").weight)  # type: ignore[arg-type]


def by_detached_weight(net: Net) -> Callable[[Tensor], Tensor]:
    """Reach it without wanting a gradient."""
    weight = net.lin.weight
    return lambda x: F.linear(x, weight.detach())


RIGHT = [by_bound_method, by_closure_over_the_module, by_attribute_of_the_model, by_detached_weight]


# what is looked up in the model by a closure over it: a copy would look in the original
LOOKED_UP = [by_named_parameters, by_parameters_of_the_module]


@pytest.mark.parametrize("reach", [*HELD, *LOOKED_UP])
def test_a_gradient_past_the_module_is_refused(reach: Any) -> None:
    model, inputs = Net(reach), numbers(3, 4).requires_grad_()
    sparse = sparsify(model, mask_of(model))
    with torch.no_grad():
        model(inputs)
    with pytest.raises(FishexpError, match=PAST_ITS_MODULE) as error:
        objective(model, inputs).backward()
    assert "\n" not in str(error.value)
    assert [p.requires_grad for p in model.parameters()] == [False, True]
    assert len(model._forward_hooks_always_called) == len(model._forward_pre_hooks) == 0
    sparse.restore()
    dense = Net(reach)
    for net in (model, dense):
        objective(net, inputs).backward()
    torch.testing.assert_close(model.lin.weight.grad, dense.lin.weight.grad, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("reach", HELD)
def test_it_is_refused_in_a_moved_model_and_under_checkpointing(reach: Any) -> None:
    for moved in (False, True):
        model, inputs = Net(reach), numbers(3, 4).requires_grad_()
        sparsify(model, mask_of(model))
        if moved:
            model.float().double()
        with pytest.raises(FishexpError, match=PAST_ITS_MODULE):
            (objective(model, inputs) if moved else checkpoint(model, inputs, use_reentrant=False).sum()).backward()


@pytest.mark.parametrize("copied", [copy.deepcopy, lambda pair: pickle.loads(pickle.dumps(pair))])
def test_it_is_refused_in_a_copy(copied: Callable[[Any], Any]) -> None:
    model = Net(lambda net: partial(F.linear, weight=torch.eye(4).double()))
    model.held = Holder(model.lin.weight)
    sparsify(model, mask_of(model))
    for _ in range(2):  # a copy of a copy, too
        model = copied(model)
    model.use = lambda x: F.linear(x, model.held.w)  # type: ignore[union-attr,arg-type]
    with pytest.raises(FishexpError, match=PAST_ITS_MODULE):
        objective(model, numbers(3, 4)).backward()


def test_the_first_pass_of_a_copy_is_watched_and_then_left_alone() -> None:
    model = conv_net()
    sparsify(model, mask_of(model))
    model = copy.deepcopy(model)
    frozen = weights(model)["0.weight"]
    with pytest.raises(RuntimeError, match="Expected 3D"):
        model(torch.zeros(1).double())
    assert not frozen.requires_grad
    seen = []
    model[0].register_forward_hook(lambda *_: seen.append(frozen.requires_grad))  # type: ignore[operator]
    for _ in range(2):
        objective(model, images()[0]).backward()
    assert seen == [True, False]
    assert frozen.grad is None


@pytest.mark.parametrize("reach", RIGHT)
def test_other_ways_to_a_weight_train_it_as_dense(reach: Any) -> None:
    model, dense = Net(reach), Net(reach)
    sparse = sparsify(model, mask_of(model))
    for net in (model, dense):
        objective(net, numbers(3, 4)).backward()
    (values,) = sparse.parameters()
    assert dense.lin.weight.grad is not None
    found, wanted = values.grad, dense.lin.weight.grad.take(sparse.positions()["lin.weight"])
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


def test_a_use_that_begins_in_a_later_step_is_refused_then() -> None:
    model = Net(lambda net: lambda x: x)
    weight = model.lin.weight
    sparse = sparsify(model, mask_of(model))
    optimiser = torch.optim.SGD(sparse.parameters(), 0.1)
    for _ in range(2):
        objective(model, numbers(3, 4)).backward()
        optimiser.step()
    model.use = lambda x: F.linear(x, weight)
    with pytest.raises(FishexpError, match=PAST_ITS_MODULE):
        objective(model, numbers(3, 4)).backward()


@pytest.mark.parametrize(
    "hold",
    [
        lambda w: {"a": [({"w": w},)]}, lambda w: ({1: (w,)},), lambda w: partial(F.linear, weight=w),
        lambda w: [partial(partial(F.linear, bias=None), weight=w)], lambda w: {"a": {w}},
    ],
)  # fmt: skip
def test_what_containers_and_partial_functions_hold_is_refused_at_once(hold: Any) -> None:
    model = Net(lambda net: lambda x: x)
    model.held = hold(model.lin.weight)
    with pytest.raises(FishexpError, match="held of a Net holds a weight that the mask keeps in part"):
        sparsify(model, mask_of(model))
    assert model.lin.weight.requires_grad


def test_the_model_has_its_own_parameters_again_when_it_is_plain() -> None:
    """Not copies of them: an optimiser and whatever else was made before still holds them."""
    model = conv_net()
    own = dict(model.named_parameters())
    sparsify(model, mask_of(model))
    model.half()
    with plain(model):
        assert all(p is own[name] for name, p in model.named_parameters())
        assert all(p.dtype == torch.float16 for p in own.values())
        (model[5].weight * 2).sum().backward()  # type: ignore[index,operator]
        assert own["5.weight"].grad is not None
    assert weights(model)["0.weight"] is not own["0.weight"]
    sparsify(model, {name: torch.ones_like(p, dtype=torch.bool) for name, p in own.items()})
    assert all(p is own[name] for name, p in model.named_parameters())


def test_two_parameters_in_the_same_memory_are_refused_and_neighbours_are_not() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    flat = torch.zeros(32)
    model[0].weight = nn.Parameter(flat[:16].view(4, 4))
    model[1].weight = nn.Parameter(flat[16:].view(4, 4))
    sparsify(model, mask_of(model, 0.5))
    model = nn.Sequential(nn.Linear(4, 4), nn.Linear(4, 4))
    model[1].weight = nn.Parameter(model.get_parameter("0.weight").detach().t()[1:])
    with pytest.raises(FishexpError, match=r"0.weight and 1.weight are two parameters in the same memory"):
        sparsify(model, mask_of(model, 0.5))
    whole = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    sparsify(model, whole | {"0.bias": torch.tensor([True, False, False, False])})


@pytest.mark.parametrize("post", [False, True])
def test_a_hook_on_a_gradient_that_is_not_formed_is_refused(post: bool) -> None:
    model = nn.Linear(4, 4)
    hook = model.weight.register_post_accumulate_grad_hook if post else model.weight.register_hook
    handle = hook(lambda gradient: None)  # type: ignore[arg-type]
    with pytest.raises(FishexpError, match="weight has a hook, which would not be called"):
        sparsify(model, mask_of(model))
    handle.remove()
    sparsify(model, mask_of(model))


TABLES: list[Callable[..., nn.Module]] = [nn.Embedding, nn.EmbeddingBag]


@pytest.mark.parametrize("table", TABLES)
@pytest.mark.parametrize("kept", ["part", "nothing"])
def test_a_table_that_its_forward_pass_moves_is_refused(table: Callable[..., nn.Module], kept: str) -> None:
    model = nn.Sequential(table(20, 8, max_norm=0.5), nn.Linear(8, 2))
    mask = mask_of(model)
    if kept == "nothing":
        mask["0.weight"][:] = False
    with pytest.raises(FishexpError, match=r"0.weight is a table with max_norm=0.5, whose forward pass moves entries"):
        sparsify(model, mask)


@pytest.mark.parametrize("table", TABLES)
def test_such_a_table_trains_whole_as_dense(table: Callable[..., nn.Module]) -> None:
    def build() -> nn.Module:
        torch.manual_seed(0)
        return nn.Sequential(table(20, 8, max_norm=0.5), nn.Linear(8, 2)).double()

    model, dense, ids = build(), build(), torch.arange(12).view(3, 4)
    mask: Mask = {name: torch.ones_like(p, dtype=torch.bool) for name, p in model.named_parameters()}
    mask["1.bias"][0] = False
    found = torch.optim.SGD(sparsify(model, mask).parameters(), 0.1)
    dense.get_parameter("1.bias").register_hook(lambda gradient: gradient * mask["1.bias"])
    for net, optimiser in ((model, found), (dense, torch.optim.SGD(dense.parameters(), 0.1))):
        for _ in range(3):
            objective(net, ids).backward()
            optimiser.step()
            optimiser.zero_grad()
    torch.testing.assert_close(dict(model.state_dict()), dict(dense.state_dict()), rtol=1e-12, atol=1e-12)


@pytest.mark.filterwarnings("ignore:.*weight_norm.*is deprecated:FutureWarning")
@pytest.mark.parametrize("norm", [spectral_norm, weight_norm])
def test_weights_that_hooks_compute_train_as_dense(norm: Callable[[nn.Module], nn.Module]) -> None:
    """Torch's norms of the old kind, which set a tensor beside the parameters in each forward pass."""

    def build() -> nn.Module:
        torch.manual_seed(0)
        return norm(nn.Linear(5, 3).double())

    model, dense = build(), build()
    sparse = sparsify(model, mask_of(model, 0.5))
    for net in (model, dense):
        objective(net, numbers(4, 5)).backward()
    gradients = {name: p.grad for name, p in dense.named_parameters()}
    for (name, at), values in zip(sparse.positions().items(), sparse.parameters(), strict=True):
        wanted = gradients[name].take(at)  # type: ignore[union-attr]
        torch.testing.assert_close(values.grad.flatten(), wanted, rtol=1e-12, atol=1e-12)  # type: ignore[union-attr]
