"""The forward and the backward pass of a batch, as training runs them."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import TypeAlias

from torch import Tensor, nn

from fishexp.fisher.batches import Inputs
from fishexp.fisher.cuda_graphs import TOLERANCE, GraphedPasses
from fishexp.training.problem import Problem

StepPasses: TypeAlias = Callable[[Inputs, Tensor, float], Tensor]  # of a batch and its share of a step's loss


def run_passes(problem: Problem, inputs: Inputs, labels: Tensor, share: float = 1.0) -> Tensor:
    """Run the forward and the backward pass of a batch: the gradients of what trains are in ``.grad`` afterwards.

    Args:
        share: Factor of the loss, before gradients are taken.

    Returns:
        The mean loss times ``share``, detached.
    """
    loss = problem.loss(problem.logits(inputs), labels) * share
    loss.backward()  # gradients of the kept entries, and of nothing else
    return loss.detach()


def graphed_passes(problem: Problem, parameters: Sequence[nn.Parameter], say: Callable[[str], None]) -> StepPasses:
    """Return what does as :func:`run_passes`, on a GPU by replays of CUDA graphs where a step is of one batch.

    Args:
        parameters: What trains.
        say: Told that there are graphs, or why there are none; the same line again and again.
    """
    run = partial(run_passes, problem)
    replay = GraphedPasses(problem.model, problem.device, run, parameters, TOLERANCE[problem.precision], say)

    def passes(inputs: Inputs, labels: Tensor, share: float) -> Tensor:
        return replay(inputs, labels) if share == 1 else run(inputs, labels, share)

    return passes
