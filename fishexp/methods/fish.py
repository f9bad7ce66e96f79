"""FISH: weights matter as much as their Fisher information (Sung, Nair & Raffel, 2021)."""

from collections.abc import Callable
from typing import Annotated

import torch
from annotated_types import Ge

from fishexp.distributed.pooled_topk import pooled_scores
from fishexp.fisher import diagonal_fisher
from fishexp.fisher.eval_mode import is_untrained
from fishexp.fisher.losses import Labels, Loss
from fishexp.fisher.powers import Power
from fishexp.masks.allocation import SelectionSettings
from fishexp.masks.topk import Scores
from fishexp.training.problem import Problem
from fishexp.training.scoring import SCORING_BATCH, scoring_examples
from fishexp.training.streams import stream

# keys of the yaml that are used after `scores` is called
RUN_SETTINGS = SelectionSettings
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
    original = problem.as_original
    if original:  # there ResNets were in training mode until they had been evaluated, and BERTs were not
        problem.model.train(any(map(is_untrained, problem.model.modules())))
    loss = problem.loss if problem.data.classes == 1 and labels == "true_label" else None  # else its cross-entropy
    with problem.progress(min(samples, len(problem.data.train)), "scoring") as advance, problem.autocast():
        if problem.collectives.world_size > 1 and not original:
            return _together(problem, samples, labels, power, loss, advance)
        (index,) = scoring_examples(problem, samples, 1)
        batches = problem.batches_of(index, SCORING_BATCH, problem.generator if original else None)
        return diagonal_fisher(
            problem.model,
            batches,
            labels,
            power,
            loss,
            problem.generator,
            as_is=original,
            advance=advance,
            cuda_graphs=problem.cuda_graphs,
        )


def _together(
    problem: Problem, samples: int, labels: Labels, power: Power, loss: Loss | None, advance: Callable[[int], None]
) -> Scores:
    """Score a share of the same sample on each worker, and pool the scores of all."""
    collectives = problem.collectives
    shares = scoring_examples(problem, samples, collectives.world_size)
    seed = int(torch.randint(2**62, (), generator=problem.generator))
    scored = []
    for rank in collectives.local_ranks:
        generator = stream(seed, "labels", rank)
        batches = problem.batches_of(shares[rank], SCORING_BATCH)
        scored.append(diagonal_fisher(problem.model, batches, labels, power, loss, generator, advance=advance))
    return pooled_scores(collectives, scored, [len(shares[rank]) for rank in collectives.local_ranks])
