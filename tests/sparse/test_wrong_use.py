"""What would train the wrong entries, or nothing, is refused or said: ranks, optimisers, requires_grad."""

import copy
import gc
import pickle
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor, nn, optim
from torch.nn.parallel import DistributedDataParallel
from torch.utils.checkpoint import checkpoint

from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.sparse import Sparse, sparsify
from fishexp.sparse.parameter import weights
from fishexp.training.collectives import Collectives
from tests.support.modules import built, mask_of, numbers, objective
from tests.support.workers import Workers


def linears() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(5, 4), nn.Tanh(), nn.Linear(4, 4), nn.Linear(4, 4)).double()


def rolled(rank: int) -> Mask:
    """Keep as many entries of each weight on each rank, at other places."""
    return {name: kept.flatten().roll(rank).view_as(kept) for name, kept in mask_of(linears()).items()}


def of_whole_tensors(rank: int) -> Mask:
    """Keep the same entries in part on each rank, and of two biases of one shape another one."""
    mask = {name: torch.zeros_like(p, dtype=torch.bool) for name, p in linears().named_parameters()}
    mask["0.weight"][:2] = True
    mask["2.bias" if rank else "3.bias"][:] = True
    return mask


def steps_in_ddp(model: nn.Module, sparse: Sparse, rank: int, wrap: bool = True) -> str:
    """Take three steps; return the refusal, or how often the ranks were compared."""
    calls, all_reduce = [], dist.all_reduce

    def counted(*arguments: Any, **keywords: Any) -> Any:
        calls.append(arguments)
        return all_reduce(*arguments, **keywords)

    dist.all_reduce = counted
    optimizer = optim.SGD(sparse.parameters(), 0.1)
    try:
        wrapped = DistributedDataParallel(model) if wrap else model
        for number in range(3):
            objective(wrapped, numbers(2 + number, 5) + rank).backward()
            optimizer.step()
            optimizer.zero_grad()
    except FishexpError as error:
        return str(error)
    finally:
        dist.all_reduce = all_reduce
    return f"{len(calls)} comparisons"


class Checkpointed(nn.Module):
    """Recompute all layers in the backward pass, by torch's older way: no gradients in the forward pass."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = linears()

    def forward(self, x: Tensor) -> Tensor:
        return checkpoint(self.layers, x.requires_grad_(), use_reentrant=True)  # type: ignore[return-value]


def ranks(collectives: Collectives) -> dict[str, str]:
    """Say what came of each case on this rank."""
    rank, found = collectives.local_ranks[0], {}
    masks: dict[str, Mask] = {
        "same": mask_of(linears()), "rolled": rolled(rank), "of whole tensors": of_whole_tensors(rank)
    }  # fmt: skip
    for name, mask in masks.items():
        model = linears()
        found[name] = steps_in_ddp(model, sparsify(model, mask), rank)
    model = Checkpointed()
    sparse = sparsify(model, {f"layers.{name}": kept for name, kept in rolled(rank).items()})
    found["checkpointed"] = steps_in_ddp(model, sparse, rank)
    model = linears()
    found["apart"] = steps_in_ddp(model, sparsify(model, rolled(rank)), rank, wrap=False)
    model = linears()
    wrapped = DistributedDataParallel(model)
    sparsify(model, mask_of(model))
    try:
        wrapped(numbers(2, 5))
    except FishexpError as error:
        found["wrapped before"] = str(error)
    if rank == 0:  # the other has no part in this
        model = linears()
        found["alone"] = steps_in_ddp(model, sparsify(model, rolled(rank)), rank, wrap=False)
    return found


def test_ranks_of_ddp_with_other_masks_are_refused_on_all_of_them(tmp_path: Path) -> None:
    """And compared once, in DDP only: workers that train apart may have masks of their own."""
    with Workers(2, tmp_path, ranks) as workers:
        first, second = workers.results()
    assert first.pop("alone") == "0 comparisons"
    assert first == second
    assert first.pop("same") == "1 comparisons"
    assert first.pop("apart") == "0 comparisons"
    assert "sparsify first, then wrap" in first.pop("wrapped before")
    assert first.keys() == {"rolled", "of whole tensors", "checkpointed"}
    for name, message in first.items():
        assert "the ranks of DistributedDataParallel have different masks" in message, name


def all_of(model: nn.Module) -> list[nn.Parameter]:
    return list(model.parameters())


def head_of(model: nn.Module) -> list[nn.Parameter]:
    return list(model[2].parameters())  # type: ignore[index]


@pytest.mark.parametrize("chosen", [all_of, head_of])
def test_an_optimiser_made_before_sparsify_is_said_at_the_first_gradient(chosen: Callable[..., list]) -> None:
    model, inputs = built("linear on sequences")
    optimizer = optim.AdamW(chosen(model), 0.1)
    sparsify(model, mask_of(model))
    with pytest.warns(UserWarning, match="an optimiser holds .* it was made before sparsify; make one of sparse"):
        objective(model, inputs).backward()
    optimizer.step()


def test_an_optimiser_of_other_whole_weights_is_said_too() -> None:
    """Nothing is kept in part, and of both masks one weight is the same."""
    model, inputs = built("linear on sequences")
    kept = ({"0.bias", "2.bias"}, {"2.bias", "2.weight"})
    first, second = (
        {name: torch.full_like(p, name in names).bool() for name, p in weights(model).items()} for names in kept
    )
    optimizer = optim.SGD(sparsify(model, first).parameters(), 0.1)
    sparsify(model, second)
    with pytest.warns(UserWarning, match=r"an optimiser holds 0.bias, .* none holds the kept entries of 2.weight"):
        objective(model, inputs).backward()
    optimizer.step()


def test_a_mask_that_gives_way_before_the_first_gradient_leaves_no_hook(recwarn: pytest.WarningsRecorder) -> None:
    """Else a weight that it kept whole could not be kept in part, for a hook that nobody else has heard of."""
    model, inputs = built("linear on sequences")
    before = optim.SGD(model.parameters(), 0.1)
    names = {name: torch.full_like(p, name == "2.bias").bool() for name, p in weights(model).items()}
    sparsify(model, names).restore()
    assert not model.get_parameter("2.bias")._post_accumulate_grad_hooks
    sparsify(model, names)
    names["2.bias"][0] = False
    optimizer = optim.SGD(sparsify(model, names).parameters(), 0.1)
    objective(model, inputs).backward()
    optimizer.step()
    assert before.param_groups
    assert not recwarn.list


def two_optimizers(model: nn.Module, sparse: Sparse) -> object:
    return optim.AdamW(sparse.parameters())


def all_parameters(model: nn.Module, sparse: Sparse) -> object:
    return optim.AdamW(model.parameters())


def those_that_require_a_gradient(model: nn.Module, sparse: Sparse) -> object:
    return optim.AdamW([p for p in model.parameters() if p.requires_grad])


@pytest.mark.parametrize("make", [two_optimizers, all_parameters, those_that_require_a_gradient])
def test_an_earlier_optimiser_beside_one_of_the_kept_entries_is_none_of_our_business(make: Callable[..., Any]) -> None:
    model, inputs = built("linear on sequences")
    earlier = optim.AdamW(model.parameters())
    sparse = sparsify(model, mask_of(model))
    later = make(model, sparse)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for _ in range(2):
            objective(model, inputs).backward()
            later.step()
            earlier.step()


def test_an_earlier_optimiser_that_gets_the_kept_entries_trains_them() -> None:
    model, inputs = built("linear on sequences")
    optimizer = optim.SGD(model.parameters(), 0.1, weight_decay=0.1)
    before, mask = copy.deepcopy(model.state_dict()), mask_of(model)
    sparse = sparsify(model, mask)
    optimizer.add_param_group({"params": list(sparse.parameters())})
    objective(model, inputs).backward()
    optimizer.step()
    for name, weight in weights(model).items():
        assert torch.equal(weight != before[name], mask[name]), name


def test_other_holders_of_the_weights_are_no_optimisers() -> None:
    model, inputs = built("linear on sequences")
    held = [model[0].weight], {"params": [1], "weight": model[2].weight}, {"params": model[2].bias}  # type: ignore[index]
    sparsify(model, mask_of(model))
    objective(model, inputs).backward()
    assert len(held) == 3


def test_where_only_the_model_holds_its_weights_nobody_looks_for_optimisers(monkeypatch: pytest.MonkeyPatch) -> None:
    """To go through all objects of the process takes time."""
    for case in ("tied", "linear on sequences", "transformer"):
        model, inputs = built(case)
        sparse = sparsify(model, mask_of(model))
        monkeypatch.setattr(gc, "get_referrers", None)
        objective(model, inputs).backward()
        monkeypatch.undo()
        assert sum(p.grad is not None for p in sparse.parameters()) > 0


def test_an_optimiser_of_all_parameters_moves_no_entry_outside_the_mask() -> None:
    """Its weight decay and momentum do not, as frozen weights have no gradient."""
    model, inputs = built("linear on sequences")
    before, mask = copy.deepcopy(model.state_dict()), mask_of(model)
    mask["0.bias"][:] = False
    sparsify(model, mask)
    optimizer = optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)
    for _ in range(3):
        objective(model, inputs).backward()
        optimizer.step()
        model.zero_grad(set_to_none=False)
    for name, weight in weights(model).items():
        assert torch.equal(weight != before[name], mask[name]), name


def as_it_is(model: nn.Module) -> nn.Module:
    return model


def pickled(model: nn.Module) -> nn.Module:
    return pickle.loads(pickle.dumps(model))


@pytest.mark.parametrize("made", [as_it_is, copy.deepcopy, pickled])
@pytest.mark.parametrize("opened", ["all", "partly kept", "frozen"])
def test_requires_grad_after_sparsify_is_refused_at_the_first_backward_pass(
    opened: str, made: Callable[[nn.Module], nn.Module]
) -> None:
    """Also where no entry of the weight is kept, and in copies."""
    model, inputs = built("linear on sequences")
    before, mask = copy.deepcopy(model.state_dict()), mask_of(model)
    mask["2.weight"][:] = False
    sparsify(model, mask)
    model = made(model)
    if opened == "all":
        model.requires_grad_(True)
    else:
        model.get_submodule("0" if opened == "partly kept" else "2")._parameters["weight"].requires_grad_(True)  # type: ignore[union-attr]
    optimizer = optim.AdamW(model.parameters(), 0.1, weight_decay=0.1)
    with pytest.raises(FishexpError, match=r"\.\w+ got a gradient as a whole, but the mask freezes entries of it"):
        objective(model, inputs).backward()
    optimizer.step()
    for name, weight in weights(model).items():
        assert not bool((weight != before[name])[~mask[name]].any()), name


def test_a_model_whose_weights_are_open_can_be_restored_and_sparsified_anew() -> None:
    for again in (True, False):
        model, inputs = built("linear on sequences")
        sparse = sparsify(model, mask_of(model))
        model.requires_grad_(True)
        if again:
            sparse = sparsify(model, mask_of(model, 0.5))
        else:
            sparse.restore()
        objective(model, inputs).backward()
        assert all((p.grad is None) == again for p in weights(model).values())
