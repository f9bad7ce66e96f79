"""Whoever writes the kept values, in a step or not, the model computes with them, as in masked dense training."""

import copy
import warnings
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy
import pytest
import schedulefree
import torch
import torch.distributed as dist
from pytorch_optimizer import SAM, Lookahead
from torch import Tensor, nn, optim
from torch.distributed.algorithms.model_averaging.averagers import PeriodicModelAverager
from torch.nn import functional as F
from torch.nn.utils import parameters_to_vector, vector_to_parameters
from torch.optim.optimizer import _global_optimizer_post_hooks, _global_optimizer_pre_hooks
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torch.utils.checkpoint import checkpoint

from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.sparse import Sparse, parameter, sparsify
from fishexp.sparse.parameter import SparseParameter, weights
from fishexp.training.collectives import Collectives
from tests.support.cases import NETS, conv_net, images
from tests.support.modules import built, mask_of, objective, random_mask
from tests.support.workers import Workers

with warnings.catch_warnings():
    warnings.simplefilter("ignore", DeprecationWarning)  # of torch.jit, which torch 2.11 uses itself
    from torch.distributed.optim import PostLocalSGDOptimizer  # type: ignore[attr-defined]

# how an optimiser is made of parameters; no weight decay, which dense training would let reach every weight
OPTIMIZERS: dict[str, Callable[[Iterable[nn.Parameter]], Any]] = {
    "SGD": lambda p: optim.SGD(p, 0.1, momentum=0.9, nesterov=True, foreach=False),
    "SGD, foreach": lambda p: optim.SGD(p, 0.1, momentum=0.9, foreach=True),
    "SGD, fused": lambda p: optim.SGD(p, 0.1, momentum=0.9, fused=True),
    "Adam, amsgrad": lambda p: optim.Adam(p, 0.01, amsgrad=True),
    "AdamW": lambda p: optim.AdamW(p, 0.01, weight_decay=0, foreach=False),
    "AdamW, foreach": lambda p: optim.AdamW(p, 0.01, weight_decay=0, foreach=True),
    "AdamW, fused": lambda p: optim.AdamW(p, 0.01, weight_decay=0, fused=True),
    "Adadelta": lambda p: optim.Adadelta(p),
    "Adagrad": lambda p: optim.Adagrad(p),
    "Adamax": lambda p: optim.Adamax(p),
    "ASGD": lambda p: optim.ASGD(p, lambd=0),
    "NAdam": lambda p: optim.NAdam(p),
    "RAdam": lambda p: optim.RAdam(p, 0.01),
    "RMSprop": lambda p: optim.RMSprop(p, momentum=0.9),
    "Rprop": lambda p: optim.Rprop(p),
    "LBFGS": lambda p: optim.LBFGS(p, 0.1, max_iter=4),
    "LBFGS, strong Wolfe": lambda p: optim.LBFGS(p, max_iter=4, line_search_fn="strong_wolfe"),
    "Lookahead": lambda p: Lookahead(optim.AdamW(p, 0.01, weight_decay=0), k=2),
    "SAM": lambda p: SAM(p, optim.SGD, rho=0.5, lr=0.1),
    "SAM, adaptive": lambda p: SAM(p, optim.AdamW, rho=0.5, adaptive=True, lr=0.01, weight_decay=0),
    "schedule-free SGD": lambda p: schedulefree.SGDScheduleFree(p, 0.1, foreach=False),
    "schedule-free AdamW": lambda p: schedulefree.AdamWScheduleFree(p, 0.01, foreach=True),
}

# relative and absolute error, in float64 and over five steps; some round to float32 or amplify the order of additions
TOLERANCE = {"SAM": 1e-7, "SAM, adaptive": 1e-7, "LBFGS, strong Wolfe": 1e-9}


@pytest.fixture(params=["looks", "never waits"])
def route(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Reconcile as on the CPU, and as on devices for which the host does not wait."""
    if request.param == "never waits":
        monkeypatch.setattr(parameter, "waits_for", lambda tensor: True)
    return request.param


def masked(model: nn.Module, mask: Mask) -> nn.Module:
    """Let a dense model train the entries of the mask, as their gradients are the only ones."""
    for name, p in model.named_parameters():
        p.register_hook(lambda gradient, kept=mask[name]: gradient * kept)
    return model


def pair(net: str = "conv") -> tuple[nn.Module, Sparse, nn.Module]:
    """Build a sparse model and a dense one that trains the same entries."""
    build, _ = NETS[net]
    model, mask = build().eval(), random_mask(build())
    return model, sparsify(model, mask), masked(build().eval(), mask)


def loss_of(model: nn.Module, data: tuple[Any, Tensor]) -> Tensor:
    inputs, labels = data
    return F.cross_entropy(model(**inputs).logits if isinstance(inputs, dict) else model(inputs), labels)


def step(model: nn.Module, optimizer: Any, data: tuple[Any, Tensor]) -> None:
    """Take a step as each kind of optimiser asks for it."""

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = loss_of(model, data)
        loss.backward()
        return loss

    closure()
    if isinstance(optimizer, SAM):
        optimizer.first_step(zero_grad=True)
        loss_of(model, data).backward()
        optimizer.second_step(zero_grad=True)
    elif isinstance(optimizer, optim.LBFGS):
        optimizer.step(closure)
    else:
        optimizer.step()
        optimizer.zero_grad()


def assert_same(model: nn.Module, dense: nn.Module, data: tuple[Any, Tensor], tolerance: float = 1e-11) -> None:
    """Compare inference, and every tensor of ``state_dict()``."""
    with torch.no_grad():
        torch.testing.assert_close(loss_of(model, data), loss_of(dense, data), rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(dict(model.state_dict()), dict(dense.state_dict()), rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("net", NETS)
@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equals_masked_dense_training_after_every_step(name: str, net: str, route: str) -> None:
    model, sparse, dense = pair(net)
    data = NETS[net][1]()
    optimizers = OPTIMIZERS[name](sparse.parameters()), OPTIMIZERS[name](dense.parameters())
    averages = hasattr(optimizers[0], "eval")  # of what it evaluates at
    before = copy.deepcopy(dense.state_dict())
    for number in range(5):
        for one, optimizer in zip((model, dense), optimizers, strict=True):
            if averages:
                optimizer.train()
            step(one, optimizer, data)
            if averages:
                optimizer.eval()
        if number % 2 == 0:  # and through two steps without a look at anything
            assert_same(model, dense, data, TOLERANCE.get(name, 1e-11))
    assert any(not torch.equal(now, before[key]) for key, now in dense.state_dict().items())


def test_muon_is_refused() -> None:
    """It orthogonalises whole matrices, and the kept entries are none."""
    _, sparse, _ = pair()
    with pytest.raises(ValueError, match="Muon only supports 2D parameters"):
        optim.Muon(sparse.parameters())


def test_importing_fishexp_leaves_other_optimisers_alone() -> None:
    hooks = [*_global_optimizer_pre_hooks.values(), *_global_optimizer_post_hooks.values()]
    assert [hook for hook in hooks if hook.__module__.startswith("fishexp")] == []


def halve(parameters: list[nn.Parameter]) -> None:
    for p in parameters:
        p.data.mul_(0.5)


def shift(parameters: list[nn.Parameter]) -> None:
    vector_to_parameters(parameters_to_vector(parameters) * 0.5, parameters)


def replace_storage(parameters: list[nn.Parameter]) -> None:
    for p in parameters:
        p.data = p.data * 0.5


@torch.no_grad()
def multiply(parameters: list[nn.Parameter]) -> None:
    for p in parameters:
        p.mul_(0.5)


@pytest.mark.parametrize("write", [halve, shift, replace_storage, multiply])
def test_values_written_outside_an_optimiser_are_those_of_the_model(write: Callable[[list], None], route: str) -> None:
    model, sparse, dense = pair()
    mask, data = random_mask(conv_net()), images()
    optimizers = OPTIMIZERS["AdamW, fused"](sparse.parameters()), OPTIMIZERS["AdamW, fused"](dense.parameters())
    for _ in range(2):
        for one, optimizer in zip((model, dense), optimizers, strict=True):
            step(one, optimizer, data)
        write(list(sparse.parameters()))
        for name, p in dense.named_parameters():
            p.data[mask[name]] *= 0.5
        assert_same(model, dense, data)


def test_an_average_of_the_values_takes_their_place_and_goes_again(route: str) -> None:
    """An exponential moving average, copied into what trains to evaluate, and back to train on."""
    model, sparse, dense = pair()
    nets = [(model, list(sparse.parameters())), (dense, list(dense.parameters()))]
    optimizers = [OPTIMIZERS["AdamW, fused"](parameters) for _, parameters in nets]
    averages = [[p.detach().clone() for p in parameters] for _, parameters in nets]
    for _ in range(4):
        for (one, parameters), optimizer, average in zip(nets, optimizers, averages, strict=True):
            step(one, optimizer, images())
            for mean, p in zip(average, parameters, strict=True):
                mean.lerp_(p.detach(), 0.3)
        trained = [[p.detach().clone() for p in parameters] for _, parameters in nets]
        for (_, parameters), average in zip(nets, averages, strict=True):
            for p, value in zip(parameters, average, strict=True):
                p.data.copy_(value)
        assert_same(model, dense, images())
        for (_, parameters), values in zip(nets, trained, strict=True):
            for p, value in zip(parameters, values, strict=True):
                p.data.copy_(value)
        assert_same(model, dense, images())


@pytest.mark.filterwarnings("ignore:both the kept entries of a weight and the weight itself were written:UserWarning")
def test_an_averaged_model_of_torch(route: str) -> None:
    """It averages every parameter it finds, weights that lag behind too."""
    model, sparse, dense = pair()
    averaged = [AveragedModel(net, multi_avg_fn=get_ema_multi_avg_fn(0.7)) for net in (model, dense)]
    optimizers = [OPTIMIZERS["AdamW"](sparse.parameters()), OPTIMIZERS["AdamW"](dense.parameters())]
    for _ in range(3):
        for net, optimizer, average in zip((model, dense), optimizers, averaged, strict=True):
            step(net, optimizer, images())
            average.update_parameters(net)
        assert_same(averaged[0].module, averaged[1].module, images())


@torch.no_grad()
def copy_into(module: nn.Module, weight: Tensor) -> None:
    module.weight.copy_(weight)  # type: ignore[operator]


def copy_into_data(module: nn.Module, weight: Tensor) -> None:
    with torch.no_grad():
        module.weight.data.copy_(weight)  # type: ignore[operator]


def assign_data(module: nn.Module, weight: Tensor) -> None:
    with torch.no_grad():
        module.weight.data = weight.clone()


def assign(module: nn.Module, weight: Tensor) -> None:
    module.weight = nn.Parameter(weight.clone())


@pytest.mark.parametrize("write", [copy_into, copy_into_data, assign_data, assign])
def test_a_weight_that_is_written_is_where_training_goes_on(write: Callable[..., None], route: str) -> None:
    """After a step, too, whose values are in the weight when it is read to be written."""
    model, sparse, dense = pair()
    optimizers = OPTIMIZERS["SGD, fused"](sparse.parameters()), OPTIMIZERS["SGD, fused"](dense.parameters())
    for number in range(3):
        for one, optimizer in zip((model, dense), optimizers, strict=True):
            step(one, optimizer, images())
        new = torch.randn(3, 16, generator=torch.Generator().manual_seed(number)).double()
        write(model[5], new)  # type: ignore[index]
        dense[5].weight.data.copy_(new)  # type: ignore[index]
        assert_same(model, dense, images())
    assert not model[5].weight_kept.weight.requires_grad  # type: ignore[index]


def test_where_values_and_weight_were_written_the_values_count_and_it_is_said() -> None:
    model, sparse, _ = pair()
    hidden = model[5]._parameters["weight"]  # type: ignore[index]
    with torch.no_grad():
        hidden.zero_()
        for p in sparse.parameters():
            p.fill_(2.0)
    with pytest.warns(UserWarning, match="the kept entries' values count"):
        found = model.state_dict()["5.weight"]
    assert torch.equal(found, 2.0 * random_mask(model)["5.weight"])


def test_a_parameter_that_was_taken_from_the_model_is_stale_until_the_next_read() -> None:
    model, sparse, _ = pair()
    raw = dict(model.named_parameters())["5.weight"]
    before = raw.detach().clone()
    halve(list(sparse.parameters()))
    assert torch.equal(raw, before)
    assert torch.equal(weights(model)["5.weight"], raw)
    assert not torch.equal(raw, before)


def test_bits_count_not_numbers() -> None:
    """NaN is no new value at every read, and -0.0 is another value than 0.0."""
    model, inputs = built("linear on sequences")
    values = sparsify(model, mask_of(model)).parameters().__next__()
    values.data[:2] = torch.tensor([0.0, torch.nan])
    model(inputs)
    version = model[0].weight_kept.weight._version  # type: ignore[index]
    model(inputs)
    assert model[0].weight_kept.weight._version == version  # type: ignore[index]
    values.data[0] = -0.0
    assert model.state_dict()["0.weight"][mask_of(model)["0.weight"]][0].signbit()


def test_two_forward_passes_after_a_step_may_precede_a_backward_pass(route: str) -> None:
    model, sparse, dense = pair()
    optimizers = OPTIMIZERS["AdamW, fused"](sparse.parameters()), OPTIMIZERS["AdamW, fused"](dense.parameters())
    for one, optimizer in zip((model, dense), optimizers, strict=True):
        step(one, optimizer, images())
        (loss_of(one, images()) + loss_of(one, images(3))).backward()
        optimizer.step()
    assert_same(model, dense, images())


def test_a_backward_pass_after_a_step_has_the_weights_of_its_forward_pass_or_is_refused() -> None:
    """A fused step, which torch does not notice in dense training, is noticed too."""
    for name in ("AdamW, foreach", "AdamW, fused"):
        for reads in (False, True):
            (model, inputs), (expected, _) = built("linear on sequences"), built("linear on sequences")
            mask = mask_of(model)
            sparse, other = sparsify(model, mask), sparsify(expected, mask)
            optimizer = OPTIMIZERS[name](sparse.parameters())
            first, second = objective(model, inputs), objective(model, inputs)
            first.backward()
            optimizer.step()
            optimizer.zero_grad()
            if reads:
                model(inputs)
                with pytest.raises(RuntimeError, match="modified by an inplace operation"):
                    second.backward()
            else:
                second.backward()
                objective(expected, inputs).backward()
                for found, wanted in zip(sparse.parameters(), other.parameters(), strict=True):
                    assert torch.equal(found.grad, wanted.grad)  # type: ignore[arg-type]


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_evaluation_right_after_a_step(mode: Callable[[], Any], route: str) -> None:
    model, sparse, dense = pair()
    for one, parameters in ((model, sparse.parameters()), (dense, dense.parameters())):
        optimizer = OPTIMIZERS["AdamW, fused"](parameters)
        for _ in range(2):
            step(one, optimizer, images())
            with mode():
                one(images()[0])
    assert_same(model, dense, images())


@pytest.fixture
def deterministic() -> Iterator[None]:
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.usefixtures("deterministic")
def test_deterministic_algorithms(route: str) -> None:
    model, sparse, dense = pair()
    model.to(memory_format=torch.channels_last)
    optimizers = OPTIMIZERS["AdamW, fused"](sparse.parameters()), OPTIMIZERS["AdamW, fused"](dense.parameters())
    for _ in range(2):
        for one, optimizer in zip((model, dense), optimizers, strict=True):
            step(one, optimizer, images())
    assert_same(model, dense, images())
    assert sparse.delta().kept > 0


@pytest.mark.parametrize("reentrant", [False, True])
def test_activation_checkpointing(reentrant: bool, route: str) -> None:
    model, sparse, dense = pair()
    inputs, labels = images()
    for one, parameters in ((model, sparse.parameters()), (dense, dense.parameters())):
        optimizer = OPTIMIZERS["AdamW, fused"](parameters)
        for _ in range(3):
            logits = checkpoint(one, inputs.clone().requires_grad_(), use_reentrant=reentrant)
            F.cross_entropy(logits, labels).backward()
            optimizer.step()
            optimizer.zero_grad()
    assert_same(model, dense, (inputs, labels))


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # of torch 2.11 itself
def test_a_compiled_model_trains_as_it_is() -> None:
    model, sparse, dense = pair()
    compiled: Any = torch.compile(model, backend="aot_eager")
    optimizers = OPTIMIZERS["AdamW, fused"](sparse.parameters()), OPTIMIZERS["AdamW, fused"](dense.parameters())
    for _ in range(3):
        for one, optimizer in zip((compiled, dense), optimizers, strict=True):
            step(one, optimizer, images())
        assert_same(model, dense, images())


def share(rank: int, number: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(10 * number + rank)
    return torch.randn(4, 2, 4, 4, generator=generator).double(), torch.randint(3, (4,), generator=generator)


def distributed_training(collectives: Collectives) -> list[list[dict[str, Any]]]:
    """Train sparse and dense in several processes: with DDP, and with torch's local SGD."""
    rank, found = collectives.local_ranks[0], []
    for averages in (False, True):
        states = []
        model, sparse, dense = pair()
        for net, parameters in ((model, sparse.parameters()), (dense, dense.parameters())):
            optimizer: Any = OPTIMIZERS["AdamW, fused"](parameters)
            if averages:
                optimizer = PostLocalSGDOptimizer(optimizer, PeriodicModelAverager(period=2, warmup_steps=1))
            wrapped = net if averages else nn.parallel.DistributedDataParallel(net)
            for number in range(4):
                step(wrapped, optimizer, share(rank, number))
            states.append({key: tensor.numpy() for key, tensor in net.state_dict().items()})
        found.append(states)
    assert dist.get_world_size() == 2
    return found


def test_two_ranks_hold_the_same_after_ddp_and_after_averaging(tmp_path: Path) -> None:
    with Workers(2, tmp_path, distributed_training) as workers:
        first, second = workers.results()
    for (sparse, dense), (other, _) in zip(first, second, strict=True):
        for key, value in sparse.items():
            numpy.testing.assert_allclose(value, dense[key], rtol=1e-12, atol=1e-12)
            numpy.testing.assert_array_equal(value, other[key])


def test_an_optimiser_of_an_earlier_mask_is_refused() -> None:
    model, inputs = built("linear on sequences")
    optimizer = optim.SGD(sparsify(model, mask_of(model)).parameters(), 0.1)
    objective(model, inputs).backward()
    sparsify(model, mask_of(model, 0.5))
    for call in (optimizer.step, optimizer.zero_grad):
        with pytest.raises(FishexpError, match="an optimiser of an earlier mask cannot step"):
            call()
    assert all(type(kept.values) is nn.Parameter for kept in model.modules() if isinstance(kept, SparseParameter))
