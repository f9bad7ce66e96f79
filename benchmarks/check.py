"""What must hold before anything is timed, in float64 on a few examples."""

from collections.abc import Mapping
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks import fishers
from benchmarks.cases import Batch, Case, batches
from benchmarks.contenders import backward
from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.sparse import sparsify
from fishexp.sparse.parameter import weights


def check_step(case: Case, model: nn.Module, mask: Mask) -> None:
    """Two steps of ours are those of dense AdamW with masked gradients; frozen entries stay bit-identical.

    Two, with different examples: Adam's first step tells little of a gradient but its sign.

    Raises:
        FishexpError: If it is not so; names the first parameter that differs.
    """
    dense, sparse = (deepcopy(model).double().eval() for _ in range(2))
    for name, p in dense.named_parameters():
        p.register_hook(partial(torch.mul, mask[name].to(p.device)))
    contenders = [(dense, list(dense.parameters())), (sparse, list(sparsify(sparse, mask).parameters()))]
    for network, parameters in contenders:
        optimiser = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.0, fused=True)
        for batch in _few(case, 4, 2, model):
            backward(network, batch, "fp32")
            optimiser.step()
            optimiser.zero_grad()
    _compare(f"{case.model}: two steps of ours", weights(sparse), dict(dense.named_parameters()))
    check_frozen(case, sparse, {name: p.double() for name, p in model.named_parameters()}, mask)


def check_frozen(case: Case, model: nn.Module, before: Mapping[str, Tensor], mask: Mask) -> None:
    """Entries outside ``mask`` are bit-identical to ``before``, and some inside are not.

    Raises:
        FishexpError: If it is not so; names the parameter.
    """
    moved = 0
    for name, p in weights(model).items():
        changed = p.detach() != before[name].detach()
        if (changed & ~mask[name].to(p.device)).any():
            raise FishexpError(f"{case.model}: entries of {name} outside the mask moved; nothing was timed")
        moved += int(changed.sum())
    if moved == 0:
        raise FishexpError(f"{case.model}: no entry moved; nothing was timed")


def check_fisher(case: Case, model: nn.Module, names: tuple[str, ...]) -> None:
    """The scores of each contender in ``names`` are those of the loop.

    Raises:
        FishexpError: If they are not; names the contender and the first parameter that differs.
    """
    model = deepcopy(model).double().eval()
    few = _few(case, 4, 3, model)
    expected = fishers.make("loop", model)(few)
    for name in names:
        _compare(f"{case.model}: the scores of {name}", fishers.make(name, model)(few), expected)


def _few(case: Case, examples: int, size: int, model: nn.Module) -> list[Batch]:
    """A few of the case's examples, images in float64."""
    few = batches(examples, size, case.length, next(model.parameters()).device)
    return [(inputs.double() if isinstance(inputs, Tensor) else inputs, labels) for inputs, labels in few]


def _compare(what: str, found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> None:
    """Equal but for float64's rounding; gradients that are zero in exact arithmetic are noise of this size."""
    if found.keys() != expected.keys():
        raise FishexpError(f"{what} name other parameters than the reference; nothing was timed")
    noise = 1e-12 * max(value.abs().max().item() for value in expected.values())
    for name, value in expected.items():
        if not torch.allclose(found[name], value, rtol=1e-7, atol=noise):
            error = (found[name] - value).abs().max().item()
            raise FishexpError(f"{what} differ from the reference by {error:.1e} at {name}; nothing was timed")
