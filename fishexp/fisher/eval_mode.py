"""Evaluation mode for a while, after which the model is as it was."""

import copy
from collections import OrderedDict, defaultdict
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import TypeGuard

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from fishexp.fisher.batches import Batches, logits_of


@contextmanager
def evaluation_mode(model: nn.Module, batches: Batches) -> Iterator[Batches]:
    """Put the model in evaluation mode with usable BatchNorm statistics; restore modes, buffers and random streams.

    Yields:
        The batches, in a list if they had to be read for the statistics.
    """
    buffers = {buffer: buffer.clone() for buffer in model.buffers()}
    untrained = [module for module in model.modules() if is_untrained(module)]
    try:
        with attributes_kept(model), evaluating(model), forked_random_streams(model):
            if untrained:
                batches = list(batches)
                _calibrate(model, untrained, batches)
            yield batches
    finally:
        with torch.no_grad():
            for buffer, saved in buffers.items():
                buffer.copy_(saved)


@contextmanager
def attributes_kept(model: nn.Module) -> Iterator[None]:
    """Put back the attributes and buffers of all modules afterwards, and what they hold in dicts, lists and sets.

    A model may keep what it made of its weights, or what it was given. Of a batched pass it would be of no use: the
    gradients of its graph do not arrive at the weights.
    """
    containers = (dict, OrderedDict, defaultdict, list, set)
    before = [(vars(module), dict(vars(module))) for module in model.modules()]
    held = [(v, copy.copy(v)) for _, attributes in before for v in attributes.values() if type(v) in containers]
    try:
        yield
    finally:
        for container, items in held:
            container.clear()
            container.extend(items) if isinstance(container, list) else container.update(items)
        for current, attributes in before:
            current.clear()
            current.update(attributes)


@contextmanager
def gradients_kept(parameters: Collection[nn.Parameter]) -> Iterator[None]:
    """Let the parameters require gradients, and have none; put back afterwards what they required and had."""
    before = [(p, p.requires_grad, p.grad) for p in parameters]
    try:
        for p in parameters:
            p.requires_grad_(True).grad = None
        yield
    finally:
        for p, trains, grad in before:
            p.requires_grad_(trains).grad = grad


@contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Put the model in evaluation mode for a while."""
    modes = {module: module.training for module in model.modules()}
    try:
        model.eval()
        yield
    finally:
        for module, training in modes.items():
            module.training = training


@contextmanager
def forked_random_streams(model: nn.Module) -> Iterator[None]:
    """Restore the global random streams of the CPU and of the model's devices afterwards."""
    with torch.random.fork_rng(devices=list({p.device for p in model.parameters() if p.is_cuda})):
        yield


def is_untrained(norm: nn.Module) -> TypeGuard[_BatchNorm]:
    """Tell whether it is a BatchNorm with its initial statistics.

    The counter alone does not tell: published weights may lack it.
    """
    if (
        not isinstance(norm, _BatchNorm)
        or norm.running_mean is None
        or norm.running_var is None
        or norm.num_batches_tracked != 0
    ):
        return False
    return not bool(norm.running_mean.any()) and bool((norm.running_var == 1).all())


@torch.no_grad()
def _calibrate(model: nn.Module, norms: list[_BatchNorm], batches: Batches) -> None:
    """Give ``norms`` the mean of the batches' statistics, each batch counting alike."""
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.momentum = None  # a cumulative mean instead of an exponential one
        norm.train()
    sizes = [len(targets) for _, targets in batches]
    for (inputs, _), size in zip(batches, sizes, strict=True):
        if size > 1 or max(sizes) == 1:  # a single example has no variance over a 1x1 map
            logits_of(model, inputs)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
