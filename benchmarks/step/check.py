"""Checks of a training step, in float64 on a few examples, which must hold before anything is timed."""

from collections.abc import Mapping
from copy import deepcopy
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.check import check_close, float64_batches
from benchmarks.step.case import StepCase
from benchmarks.step.contenders import backward
from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.sparse import sparsify
from fishexp.sparse.parameter import weights


def check_step(case: StepCase, model: nn.Module, mask: Mask) -> None:
    """Check that two steps of ours are those of dense AdamW with masked gradients, and that frozen entries are kept.

    Two steps, with different examples: after Adam's first step only the signs of the gradient show.

    Raises:
        FishexpError: If it is not so; names the first parameter that differs.
    """
    dense, sparse = (deepcopy(model).double().eval() for _ in range(2))
    for name, p in dense.named_parameters():
        p.register_hook(partial(torch.mul, mask[name].to(p.device)))
    device = next(model.parameters()).device
    for network, parameters in [
        (dense, list(dense.parameters())),
        (sparse, list(sparsify(sparse, mask).parameters())),
    ]:
        optimizer = torch.optim.AdamW(parameters, 1e-3, weight_decay=0.0, fused=True)
        for batch in float64_batches(4, 2, case.length, device):
            backward(network, batch, "fp32")
            optimizer.step()
            optimizer.zero_grad()
    check_close(f"{case.model}: two steps of ours", weights(sparse), dict(dense.named_parameters()))
    check_frozen(case, sparse, {name: p.double() for name, p in model.named_parameters()}, mask)


def check_frozen(case: StepCase, model: nn.Module, before: Mapping[str, Tensor], mask: Mask) -> None:
    """Check that entries outside ``mask`` are bit-identical to ``before``, and that some inside are not.

    Raises:
        FishexpError: If it is not so; names the parameter.
    """
    count = 0
    for name, p in weights(model).items():
        changed = p.detach() != before[name].detach()
        if (changed & ~mask[name].to(p.device)).any():
            raise FishexpError(f"{case.model}: entries of {name} outside the mask moved; nothing was timed")
        count += int(changed.sum())
    if count == 0:
        raise FishexpError(f"{case.model}: no entry moved; nothing was timed")
