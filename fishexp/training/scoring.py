"""What methods learn from training examples: which examples they are, and the gradient of the loss over them."""

import logging
from collections.abc import Callable, Mapping, Sequence

import torch
from torch import Tensor

from fishexp.errors import FishexpError
from fishexp.fisher.batches import Batches
from fishexp.fisher.eval_mode import evaluation_mode, gradients_kept
from fishexp.sparse.parameter import weights
from fishexp.training.collectives import Collectives
from fishexp.training.problem import Problem

log = logging.getLogger(__name__)

# examples in a batch; it changes no score but through the statistics of a BatchNorm that has seen no batch yet
SCORING_BATCH = 32


def scoring_examples(problem: Problem, samples: int, workers: int) -> list[Tensor]:
    """Draw distinct training examples to score, and share them out: their indices for each worker.

    Args:
        samples: How many, of all workers together; all of them if there are fewer.

    Raises:
        FishexpError: If there are fewer examples than workers.
    """
    available = len(problem.data.train)
    if samples > available:
        log.warning("method.samples=%d: there are %d training examples, all are used", samples, available)
    index = problem.sample(samples)
    if len(index) < workers:
        raise FishexpError(f"method.samples={samples} leaves some of {workers} workers nothing to score; raise it")
    return [index[rank::workers] for rank in range(workers)]


def mean_gradient(problem: Problem, samples: int) -> dict[str, Tensor]:
    """Compute the gradient of the mean loss over ``samples`` training examples, not augmented, in evaluation mode.

    Returns:
        name of each weight -> its gradient, the same bits at all workers.

    Raises:
        FishexpError: If there are fewer examples than workers.
    """
    parameters = weights(problem.model)

    def summed_gradient(batches: Batches) -> Mapping[str, Tensor]:
        with gradients_kept(parameters.values()):
            for inputs, labels in batches:
                (problem.loss(problem.logits(inputs), labels) * len(labels)).backward()
            return {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in parameters.items()}

    sums = sum_over_examples(problem, samples, SCORING_BATCH, summed_gradient)
    examples = min(samples, len(problem.data.train))
    return {name: total / examples for name, total in sums.items()}


def sum_over_examples(
    problem: Problem, samples: int, batch_size: int, sums_of: Callable[[Batches], Mapping[str, Tensor]]
) -> Mapping[str, Tensor]:
    """Add up what ``sums_of`` finds in ``samples`` training examples, not augmented, with the model in evaluation mode.

    Each worker sees its share of the examples.

    Returns:
        What ``sums_of`` returned, the sum over the workers, the same bits at all of them.

    Raises:
        FishexpError: If there are fewer examples than workers.
    """
    collectives = problem.collectives
    shares, sums = scoring_examples(problem, samples, collectives.world_size), []
    with problem.progress(sum(len(shares[rank]) for rank in collectives.local_ranks), "scoring") as advance:
        for rank in collectives.local_ranks:
            with evaluation_mode(problem.model, problem.batches_of(shares[rank], batch_size)) as batches:
                sums.append(sums_of(_counted(batches, advance)))
    return sum_over_workers(collectives, sums)


def _counted(batches: Batches, advance: Callable[[int], None]) -> Batches:
    """Yield the batches, and say after each how many examples are done."""
    for inputs, labels in batches:
        yield inputs, labels
        advance(len(labels))


def sum_over_workers(collectives: Collectives, sums: Sequence[Mapping[str, Tensor]]) -> Mapping[str, Tensor]:
    """Add up what the workers found: name -> tensor, the same bits at all of them.

    Args:
        sums: Of each local worker; names, types and shapes are the same everywhere.
    """
    if collectives.world_size == 1:
        return sums[0]
    return {
        name: collectives.all_reduce([own[name].flatten() for own in sums]).view(like.shape)
        for name, like in sums[0].items()
    }
