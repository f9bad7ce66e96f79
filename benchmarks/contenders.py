"""Ways to train a part of a model's weights, each as a model and an optimiser; those of PEFT are in adapters.py."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from benchmarks import adapters
from benchmarks.cases import Batch
from fishexp.fisher.batches import logits_of
from fishexp.masks.topk import Mask
from fishexp.sparse import sparsify
from fishexp.sparse.sparsify import mask_gradients

LR, DECAY = 1e-5, 0.01


@dataclass
class Contender:
    """``trained`` is the number of weights that may move."""

    model: nn.Module
    optimiser: Optimizer
    trained: int


def make(name: str, model: nn.Module, mask: Mask, head: tuple[str, ...]) -> Contender:
    """The contender of that name; changes ``model``."""
    if name in adapters.MAKERS:
        model = adapters.MAKERS[name](model, mask, head)
        parameters = [p for p in model.parameters() if p.requires_grad]
        return Contender(model, _adamw(parameters), sum(p.numel() for p in parameters))
    optimiser = _OPTIMISERS[name](model, mask)
    weights = sum(p.numel() for p in model.parameters())
    return Contender(model, optimiser, weights if name == "dense" else sum(int(kept.sum()) for kept in mask.values()))


def backward(model: nn.Module, batch: Batch, precision: str) -> None:
    """Forward and backward pass; bf16 is autocast over float32 weights."""
    inputs, labels = batch
    with torch.autocast(labels.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = F.cross_entropy(logits_of(model, inputs), labels)
    loss.backward()


def step(contender: Contender, batch: Batch, precision: str) -> None:
    """What is timed."""
    backward(contender.model, batch, precision)
    contender.optimiser.step()
    contender.optimiser.zero_grad()


def _adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return AdamW(parameters, LR, weight_decay=DECAY, fused=True)


def _dense(model: nn.Module, mask: Mask) -> Optimizer:
    """All weights train; every ratio refers to this."""
    return _adamw(model.parameters())


def _original(model: nn.Module, mask: Mask) -> Optimizer:
    """The rule of the paper's code: dense gradients times a mask of 0 and 1, moments for all weights.

    AdamW is neither fused nor foreach: one tensor after the other, as the one in transformers was that the code used.
    """
    return AdamW(mask_gradients(model, mask), LR, weight_decay=DECAY, fused=False, foreach=False)


def _ours(model: nn.Module, mask: Mask) -> Optimizer:
    return _adamw(sparsify(model, mask).parameters())


def _floor(model: nn.Module, mask: Mask) -> Optimizer:
    """A bound that no way of training these entries is expected to beat: their gradients are zeros that cost nothing.

    Included: the forward pass; the gradient of every activation above the lowest kept entries, as their own gradients
    need it, and of none below; all of training the tensors that are kept whole, such as the head; fused AdamW on the
    other kept values, packed into a tensor for each weight tensor that has any. Not included: the gradient of any
    weight that is kept in part, taking the kept entries out of it, and putting new values back into the weights.
    """
    packed: list[tuple[nn.Parameter, Tensor]] = []
    whole: list[nn.Parameter] = []
    for module_name, module in model.named_modules():
        needed = False
        for name, weight in module.named_parameters(module_name, recurse=False):
            kept = mask[name]
            weight.requires_grad_(bool(kept.all()))
            if weight.requires_grad:
                whole.append(weight)
            elif kept.any():
                values = nn.Parameter(weight.detach()[kept.to(weight.device)])
                packed.append((values, torch.zeros_like(values)))
                needed = True
        if needed:
            module.register_forward_hook(_need_gradient)

    def attach(*_: object) -> None:
        for values, zeros in packed:
            values.grad = zeros

    optimiser = _adamw([*whole, *(values for values, _ in packed)])
    optimiser.register_step_pre_hook(attach)
    return optimiser


def _need_gradient(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    if output.requires_grad:
        return output
    reached = _Reached.apply(output, torch.zeros((), device=output.device, requires_grad=True))
    assert isinstance(reached, Tensor)
    return reached


class _Reached(torch.autograd.Function):
    """The first input as it is, but with a gradient that is formed and dropped; nothing is copied."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


_OPTIMISERS: dict[str, Callable[[nn.Module, Mask], Optimizer]] = {
    "dense": _dense,
    "original": _original,
    "floor": _floor,
    "ours": _ours,
}
