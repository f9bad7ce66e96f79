"""Implementations of the diagonal Fisher information of a model's weights, at the true labels."""

import warnings
from collections.abc import Callable, Sequence
from copy import deepcopy
from typing import TypeAlias

import torch
from torch import nn
from torch.nn import functional as F

from benchmarks.models import Batch
from fishexp.fisher import diagonal_fisher
from fishexp.fisher.batches import logits_of, select
from fishexp.fisher.diagonal import Estimator
from fishexp.fisher.eval_mode import evaluation_mode
from fishexp.masks.topk import Scores

Scorer: TypeAlias = Callable[[Sequence[Batch]], Scores]

SUM = "sum_grad_squared"  # the attribute that BackPACK gives a parameter


def make(name: str, model: nn.Module) -> Scorer:
    """Make the contender of that name, for a model in evaluation mode."""
    made = {"loop": _loop, "batched": _batched, "ours": _ours, "check": _check, "BackPACK": _backpack}
    return made[name](model)


def _loop(model: nn.Module) -> Scorer:
    """Run a forward and a backward pass for each example; every ratio refers to this."""

    def score(batches: Sequence[Batch]) -> Scores:
        parameters = dict(model.named_parameters())
        totals = {name: torch.zeros_like(p) for name, p in parameters.items()}
        for inputs, labels in batches:
            for i in range(len(labels)):
                logits = logits_of(model, select(inputs, slice(i, i + 1), len(labels)))
                loss = F.cross_entropy(logits, labels[i : i + 1])
                gradients = torch.autograd.grad(loss, list(parameters.values()))
                for total, gradient in zip(totals.values(), gradients, strict=True):
                    total.addcmul_(gradient, gradient)
        return _mean(totals, batches)

    return score


def _mean(totals: Scores, batches: Sequence[Batch]) -> Scores:
    examples = sum(len(labels) for _, labels in batches)
    return {name: total / examples for name, total in totals.items()}


def _batched(model: nn.Module) -> Scorer:
    """Run a forward and a backward pass for each batch: not the Fisher information, but the least its passes cost."""

    def score(batches: Sequence[Batch]) -> Scores:
        totals = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for inputs, labels in batches:
            loss = F.cross_entropy(logits_of(model, inputs), labels)
            gradients = torch.autograd.grad(loss, list(model.parameters()))
            for total, gradient in zip(totals.values(), gradients, strict=True):
                total.add_(gradient)
        return totals

    return score


def _ours(model: nn.Module) -> Scorer:
    return lambda batches: diagonal_fisher(model, batches)


def _check(model: nn.Module) -> Scorer:
    """Score two examples of the first batch both ways, as ours does once, and return zeros."""
    totals = {p: torch.zeros(p.shape, dtype=p.dtype, device=p.device) for p in model.parameters()}

    def score(batches: Sequence[Batch]) -> Scores:
        with evaluation_mode(model, batches[:1]):
            estimator = Estimator(model, totals, "true_label", "square", None, torch.Generator())
            assert estimator.can_batch(*batches[0])
        return {name: totals[p] for name, p in model.named_parameters()}

    return score


def _backpack(model: nn.Module) -> Scorer:
    """Take the sum of squares that BackPACK forms in the backward pass of a batch's mean loss."""
    from backpack import backpack, extend  # pyright: ignore[reportMissingImports]
    from backpack.extensions import SumGradSquared  # pyright: ignore[reportMissingImports]

    extended = extend(deepcopy(model), use_converter=True).eval()  # a graph of modules with the same parameters
    cross_entropy = extend(nn.CrossEntropyLoss())

    def score(batches: Sequence[Batch]) -> Scores:
        totals = {name: torch.zeros_like(p) for name, p in model.named_parameters()}
        for inputs, labels in batches:
            loss = cross_entropy(logits_of(extended, inputs), labels)
            with backpack(SumGradSquared()), warnings.catch_warnings():
                warnings.filterwarnings("ignore", "Full backward hook")  # the images need no gradient
                loss.backward()
            for name, p in extended.named_parameters():
                totals[name].add_(getattr(p, SUM), alpha=len(labels) ** 2)
                p.grad = None
                delattr(p, SUM)
        return _mean(totals, batches)

    return score
