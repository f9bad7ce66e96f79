"""Implementations of training a part of a model's weights, each as a model and an optimizer."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import AdamW, Optimizer

from benchmarks import adapters
from benchmarks.models import Batch
from benchmarks.step.case import GRAPHS
from fishexp.fisher.batches import logits_of
from fishexp.fisher.cuda_graphs import CudaCapture
from fishexp.masks.topk import Mask
from fishexp.sparse import sparsify
from fishexp.sparse.sparsify import mask_gradients

LEARNING_RATE = 1e-5
WEIGHT_DECAY = 0.01


@dataclass
class Contender:
    """Hold a model with its optimizer.

    Attributes:
        trained: Number of weights that may change.
        graphs: Whether its passes are replayed as a CUDA graph, as in runs of fishexp.
    """

    model: nn.Module
    optimizer: Optimizer
    trained: int
    graphs: bool = False


def make(name: str, model: nn.Module, mask: Mask, head: tuple[str, ...]) -> Contender:
    """Make the contender of that name; changes ``model``."""
    if name in GRAPHS:
        return replace(make(name.partition(",")[0], model, mask, head), graphs=True)
    if name in adapters.MAKERS:
        model = adapters.MAKERS[name](model, mask, head)
        parameters = [p for p in model.parameters() if p.requires_grad]
        return Contender(model, _adamw(parameters), sum(p.numel() for p in parameters))
    optimizer = _OPTIMIZERS[name](model, mask)
    total = sum(p.numel() for p in model.parameters())
    return Contender(model, optimizer, total if name == "dense" else sum(int(kept.sum()) for kept in mask.values()))


def backward(model: nn.Module, batch: Batch, precision: str) -> None:
    """Run the forward and the backward pass; bf16 is autocast over float32 weights."""
    inputs, labels = batch
    with torch.autocast(labels.device.type, torch.bfloat16, enabled=precision == "bf16"):
        loss = F.cross_entropy(logits_of(model, inputs), labels)
    loss.backward()


def step(contender: Contender, batch: Batch, precision: str) -> None:
    """Run a whole training step, which is timed."""
    backward(contender.model, batch, precision)
    contender.optimizer.step()
    contender.optimizer.zero_grad()


def stepper(contender: Contender, batch: Batch, precision: str) -> Callable[[], object]:
    """Return what runs a training step; captures its passes first where they are to be replayed."""
    if not contender.graphs:
        return partial(step, contender, batch, precision)
    parameters = [p for group in contender.optimizer.param_groups for p in group["params"]]
    for _ in range(3):
        step(contender, batch, precision)

    def passes() -> Tensor:
        contender.optimizer.zero_grad()
        backward(contender.model, batch, precision)
        return torch.zeros(())

    captured, _ = CudaCapture(batch[1].device).capture(passes)
    gradients = [p.grad for p in parameters]

    def replay() -> None:
        captured.replay()
        for p, gradient in zip(parameters, gradients, strict=True):
            p.grad = gradient
        contender.optimizer.step()
        contender.optimizer.zero_grad()

    return replay


def _adamw(parameters: Iterable[nn.Parameter]) -> Optimizer:
    return AdamW(parameters, LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=True)


def _dense(model: nn.Module, mask: Mask) -> Optimizer:
    """Train all weights; every ratio refers to this."""
    return _adamw(model.parameters())


def _original(model: nn.Module, mask: Mask) -> Optimizer:
    """Train by the rule of the paper's code: dense gradients times a mask of 0 and 1, moments for all weights.

    AdamW is neither fused nor foreach: it handles one tensor after the other, as did the AdamW of transformers that
    the code used.
    """
    return AdamW(mask_gradients(model, mask), LEARNING_RATE, weight_decay=WEIGHT_DECAY, fused=False, foreach=False)


def _ours(model: nn.Module, mask: Mask) -> Optimizer:
    return _adamw(sparsify(model, mask).parameters())


def _floor(model: nn.Module, mask: Mask) -> Optimizer:
    """Set a bound that no implementation is expected to beat: the kept entries' gradients are zeros that cost nothing.

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
            module.register_forward_hook(_require_gradient)

    def attach(*_: object) -> None:
        for values, zeros in packed:
            values.grad = zeros

    optimizer = _adamw([*whole, *(values for values, _ in packed)])
    optimizer.register_step_pre_hook(attach)
    return optimizer


def _require_gradient(module: nn.Module, inputs: object, output: Tensor) -> Tensor:
    if output.requires_grad:
        return output
    anchored = _DropGradient.apply(output, torch.zeros((), device=output.device, requires_grad=True))
    assert isinstance(anchored, Tensor)
    return anchored


class _DropGradient(torch.autograd.Function):
    """Return the first input without a copy; its gradient is computed, because of the second input, and dropped."""

    @staticmethod
    def forward(ctx: Any, output: Tensor, anchor: Tensor) -> Tensor:
        ctx.mark_dirty(output)
        return output

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None]:
        return None, None


_OPTIMIZERS: dict[str, Callable[[nn.Module, Mask], Optimizer]] = {
    "dense": _dense,
    "original": _original,
    "floor": _floor,
    "ours": _ours,
}
