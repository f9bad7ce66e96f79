"""Activation: weights matter by their size and by what comes in (Sun et al., 2024, arXiv:2306.11695)."""

import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Annotated, Any

import torch
from annotated_types import Ge
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from fishexp.errors import FishexpError
from fishexp.fisher.batches import Batches
from fishexp.fisher.eval_mode import gradients_kept
from fishexp.masks.allocation import SelectionSettings
from fishexp.masks.topk import Scores
from fishexp.sparse.parameter import weights
from fishexp.training.problem import Problem
from fishexp.training.scoring import SCORING_BATCH, sum_over_examples

log = logging.getLogger(__name__)

# keys of the yaml that are used after `scores` is called
RUN_SETTINGS = SelectionSettings
# as long as some steps of training do, so that runs with the same weights and examples share them
SCORES_TAKE_LONG = True


def scores(problem: Problem, *, samples: Annotated[int, Ge(1)]) -> Scores:
    """Score weights of linear layers and convolutions by |w| times the norm of the inputs that they are multiplied by.

    The norm is over all examples, tokens and places in an image. All other weights score 0: biases, normalisation
    layers, embeddings.

    Args:
        samples: Number of training examples; all of them if there are fewer.

    Raises:
        FishexpError: If the model has no linear layer and no convolution, or fewer examples than workers.
    """
    # sentences one by one: in a batch, padding would come in as well
    batch = SCORING_BATCH if problem.data.train.lengths is None else 1
    parameters = weights(problem.model)

    def summed_squares(batches: Batches) -> Mapping[str, Tensor]:
        with squared_inputs(problem.model) as found, torch.no_grad():
            for inputs, _ in batches:
                problem.logits(inputs)
        return found

    squares = sum_over_examples(problem, samples, batch, summed_squares)
    return {
        name: p.detach().abs() * squares[name].sqrt() if name in squares else torch.zeros_like(p)
        for name, p in parameters.items()
    }


@contextmanager
def squared_inputs(model: nn.Module) -> Iterator[Mapping[str, Tensor]]:
    """Sum up the squares of what comes in at linear layers and convolutions, in the forward passes of the block.

    A warning tells of layers that are not called, such as ``out_proj`` of torch's attention, which reads its weight.

    Yields:
        name of a weight -> for each of its entries, the sum of squares of the inputs that it is multiplied by.

    Raises:
        FishexpError: If there is no such layer.
    """
    names = {p: name for name, p in weights(model).items()}
    layers = [layer for layer in model.modules() if isinstance(layer, nn.Linear | _ConvNd) and layer.weight in names]
    if not layers:
        raise FishexpError("method=activation scores linear layers and convolutions, and this model has neither")
    found = {name: torch.zeros_like(p) for p, name in names.items() if any(layer.weight is p for layer in layers)}
    missed = set(found)

    def add(layer: Any, inputs: tuple[Tensor]) -> None:
        x = inputs[0].detach().to(layer.weight.dtype)
        device = x.device.type
        missed.discard(names[layer.weight])
        with torch.enable_grad(), torch.autocast(device, enabled=False):
            # with a gradient of ones, an entry's gradient is the sum of what it is multiplied by
            outputs = layer.forward(x.square())
            found[names[layer.weight]] += torch.autograd.grad(outputs.sum(), layer.weight)[0]

    with gradients_kept(names.keys()):
        handles = [layer.register_forward_pre_hook(add) for layer in layers]
        try:
            yield found
        finally:
            for handle in handles:
                handle.remove()
    if missed:
        first = next(name for name in found if name in missed)
        log.warning(
            "no input is seen of %d of %d linear layers and convolutions, such as %s, which the model does not call; "
            "their weights score 0",
            len(missed), len(found), first.removesuffix(".weight"),
        )  # fmt: skip
