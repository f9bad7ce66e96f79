"""FISH: weights matter as much as their Fisher information (Sung, Nair & Raffel, 2021)."""

import logging
from typing import Annotated

from annotated_types import Ge

from fishexp.fisher import diagonal_fisher
from fishexp.layers import Power
from fishexp.masks import Scores
from fishexp.problem import Problem
from fishexp.scoring import Labels

log = logging.getLogger(__name__)

# examples a pass; it changes no score but through the statistics of a BatchNorm that has seen no batch yet
BATCH = 32


def scores(problem: Problem, *, samples: Annotated[int, Ge(1)], labels: Labels, power: Power) -> Scores:
    """Fisher information of each weight over ``samples`` distinct training examples, not augmented.

    Computed in the run's precision, as training is; sums are in float32.

    Args:
        samples: If there are fewer training examples, all of them.
        labels: ``true_label``, ``expected`` (a backward pass per class) or ``sampled``.
        power: ``square`` or ``absolute``.
    """
    available = len(problem.data.train)
    if samples > available:
        log.warning("method.samples=%d: there are %d training examples, all are used", samples, available)
    original = problem.as_original
    if original:
        problem.model.train(problem.data.channels > 0)  # its ResNets were in training mode, its BERTs were not
    batches = problem.batches(BATCH, shuffle=True, limit=samples, augment=original)
    loss = problem.loss if labels == "true_label" else None
    with problem.progress(min(samples, available), "scoring") as advance, problem.autocast():
        return diagonal_fisher(
            problem.model, batches, labels, power, loss, problem.generator, as_is=original, advance=advance
        )
