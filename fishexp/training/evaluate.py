"""Metrics and predictions of a model on the reported examples, in evaluation mode."""

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fishexp.data.datasets import Examples, Metrics
from fishexp.data.metrics import class_shares
from fishexp.errors import RunFailed
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem


@dataclass(frozen=True)
class Evaluation:
    """Hold how a model does on the reported examples.

    Attributes:
        metrics: The data set's metrics, the headline first, the loss and the shares of the largest classes.
        predicted: Reported set -> (examples,) in the order of the data set, on the CPU: the class of the largest logit,
            or the number that a regression predicts.
    """

    metrics: Metrics
    predicted: dict[str, Tensor]


@torch.no_grad()
def evaluate(problem: Problem, batch_size: int, sets: Mapping[str, Examples] | None = None) -> Evaluation:
    """Compute metrics and predictions of the model over the data set's reported examples, in evaluation mode.

    Workers in several processes, which have to hold the same weights, share the work.

    Args:
        batch_size: Examples a batch; changes speed only.
        sets: Sets of examples to look at instead, each with the last part of its metrics' names.

    Raises:
        RunFailed: If the loss is not finite.
    """
    problem.model.eval()
    metrics: Metrics = {}
    predicted: dict[str, Tensor] = {}
    for name, examples in (problem.data.valid if sets is None else sets).items():
        logits, labels = _outputs(problem, examples, batch_size)
        loss = problem.loss(logits, labels).item()
        if not math.isfinite(loss):
            kind = "reported" if sets is None else "held-out"
            raise RunFailed(f"the loss over the {len(labels)} {kind} examples is not finite; lower regime.lr")
        found = problem.data.metrics(logits, labels)
        found |= {"loss": loss}
        if problem.data.classes > 1:
            found |= class_shares(logits, labels)
        metrics |= {f"{metric}_{name}" if name else metric: value for metric, value in found.items()}
        in_order = logits.argmax(-1) if problem.data.classes > 1 else logits.squeeze(-1)
        predicted[name] = torch.empty_like(in_order)
        predicted[name][problem.evaluation_order(examples)] = in_order
    return Evaluation(metrics, predicted)


def _outputs(problem: Problem, examples: Examples, batch_size: int) -> tuple[Tensor, Tensor]:
    """Compute the logits of all examples, and find their labels; both on the CPU, in the order of evaluation.

    A batch has the same bits whichever worker computes it.
    """
    collectives = problem.collectives
    shared = len(collectives.local_ranks) < collectives.world_size
    share = slice(collectives.local_ranks[0], None, collectives.world_size) if shared else slice(None)
    outputs = [problem.logits(inputs).cpu() for inputs, _ in problem.evaluation(examples, batch_size, share)]
    logits = torch.cat([torch.zeros(0, problem.data.classes), *outputs])
    labels = examples.labels[problem.evaluation_order(examples)].cpu()
    if not shared:
        return logits, labels
    batches = torch.arange(len(examples)).split(batch_size)
    world_size = collectives.world_size
    shares = [torch.cat([torch.arange(0), *batches[rank::world_size]]) for rank in range(world_size)]
    padded = logits.new_zeros(len(shares[0]), logits.shape[1])
    padded[: len(logits)] = logits
    bytes_sent = collectives.bytes_sent
    rows = collectives.all_gather([padded.flatten()]).view(world_size, *padded.shape)
    collectives.bytes_sent = bytes_sent  # what training sends is counted, not what looking at it does
    whole = logits.new_empty(len(examples), logits.shape[1])
    for row, index in zip(rows, shares, strict=True):
        whole[index] = row[: len(index)]
    return whole, labels


def evaluate_only(problem: Problem, log: Logger, batch_size: int) -> Evaluation:
    """Evaluate and report a model that is not to be trained at all."""
    with log.clock("evaluate"):
        evaluation = evaluate(problem, batch_size)
    log.epoch(0, evaluation.metrics)
    return evaluation
