"""FISH: weights matter as much as their Fisher information (Sung, Nair & Raffel, 2021)."""

import logging
from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge

from fishexp.distributed.pooled_topk import pooled_scores
from fishexp.errors import FishexpError
from fishexp.fisher import diagonal_fisher
from fishexp.fisher.eval_mode import is_untrained
from fishexp.fisher.losses import Labels, Loss
from fishexp.fisher.powers import Power
from fishexp.masks.topk import Scores
from fishexp.masks.units import UnitSettings
from fishexp.training.problem import Problem
from fishexp.training.streams import stream

log = logging.getLogger(__name__)

# keys of the yaml that are used after `scores` is called
RUN_SETTINGS = UnitSettings
# examples in a batch; it changes no score but through the statistics of a BatchNorm that has seen no batch yet
_BATCH_SIZE = 32
# as long as training does, so that runs with the same weights and examples share them (fishexp/run/cached_scores.py)
SCORES_TAKE_LONG = True


def scores(problem: Problem, *, samples: Annotated[int, Ge(1)], labels: Labels, power: Power) -> Scores:
    """Score each weight by its Fisher information over ``samples`` distinct training examples, not augmented.

    It is computed in the run's precision, as training is; sums are in float32.

    Args:
        samples: Number of training examples; all of them if there are fewer.
        labels: ``true_label``, ``expected`` (a backward pass for each class) or ``sampled``; of these, several workers
            draw others than one.
        power: ``square`` or ``absolute``.

    Raises:
        FishexpError: If there are fewer examples than workers.
    """
    available = len(problem.data.train)
    if samples > available:
        log.warning("method.samples=%d: there are %d training examples, all are used", samples, available)
    original = problem.as_original
    if original:  # there ResNets were in training mode until they had been evaluated, and BERTs were not
        problem.model.train(any(map(is_untrained, problem.model.modules())))
    loss = problem.loss if problem.data.classes == 1 and labels == "true_label" else None  # else its cross-entropy
    with problem.progress(min(samples, available), "scoring") as advance, problem.autocast():
        if problem.collectives.world_size > 1 and not original:
            return _together(problem, samples, labels, power, loss, advance)
        batches = problem.batches(_BATCH_SIZE, shuffle=True, limit=samples, augment=original)
        return diagonal_fisher(
            problem.model, batches, labels, power, loss, problem.generator, as_is=original, advance=advance
        )


def _together(
    problem: Problem, samples: int, labels: Labels, power: Power, loss: Loss | None, advance: Callable[[int], None]
) -> Scores:
    """Score a share of the same sample on each worker, and pool the scores of all."""
    collectives, index = problem.collectives, problem.sample(samples)
    world_size = collectives.world_size
    if len(index) < world_size:
        raise FishexpError(f"method.samples={samples} leaves some of {world_size} workers nothing to score; raise it")
    seed = int(torch.randint(2**62, (), generator=problem.generator))
    shares = {rank: index[rank::world_size] for rank in collectives.local_ranks}
    scored = []
    for rank, share in shares.items():
        generator = stream(seed, "labels", rank)
        batches = problem.batches_of(share, _BATCH_SIZE)
        scored.append(diagonal_fisher(problem.model, batches, labels, power, loss, generator, advance=advance))
    return pooled_scores(collectives, scored, [len(share) for share in shares.values()])
