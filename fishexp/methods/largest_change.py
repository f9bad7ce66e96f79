"""Largest change: weights matter by how far full training moves them (LT-SFT; Ansell et al., 2022)."""

from typing import Annotated

from annotated_types import Ge, Gt

from fishexp.errors import FishexpError
from fishexp.masks.allocation import SelectionSettings
from fishexp.masks.topk import Scores
from fishexp.sparse.handle import copy_plain
from fishexp.sparse.parameter import weights
from fishexp.training.apart import Passes, draw_seed, train_apart
from fishexp.training.problem import Problem
from fishexp.training.trainer import OptimizerName, limit_warmup, linear_schedule, make_optimizer

# keys of the yaml that are used after `scores` is called
RUN_SETTINGS = SelectionSettings
# longer than training does, so that runs with the same weights and examples share them (fishexp/run/cached_scores.py)
SCORES_TAKE_LONG = True


def scores(
    problem: Problem,
    *,
    full_epochs: Annotated[int, Ge(1)],
    full_lr: Annotated[float, Gt(0)],
    full_optimiser: OptimizerName,
    full_batch_size: Annotated[int, Ge(1)],
    full_accumulate: Annotated[int, Ge(1)],
    full_weight_decay: Annotated[float, Ge(0)],
    full_warmup: Annotated[float, Ge(0)],
    full_clip: Annotated[float, Gt(0)] | None,
    full_drop_last: bool,
) -> Scores:
    """Score each weight by the absolute difference between its values after full training of a copy, and before.

    The copy trains as ``method=full`` does, in the order of examples and with the dropout of a seed that is drawn from
    the stream of the method. Sparse training then begins with the weights as they were.

    Raises:
        FishexpError: If there are several workers that train apart.

    Source:
        Ansell, Ponti, Korhonen & Vulić, "Composable Sparse Fine-Tuning for Cross-Lingual Transfer", arXiv:2110.07560.
    """
    if (workers := problem.collectives.world_size) > 1 and not problem.data_parallel:
        raise FishexpError(f"method=largest_change trains a copy, alone, got {workers} workers; take regime=transfer")
    copy = copy_plain(problem.model)
    parameters = weights(copy)
    optimizer = make_optimizer(full_optimiser, parameters.values(), full_lr, full_weight_decay)
    passes = Passes(full_epochs, full_batch_size, full_accumulate, full_drop_last)
    steps = passes.epoch_steps(problem)
    schedule = linear_schedule(optimizer, steps * full_epochs, int(steps * limit_warmup(full_warmup, full_epochs)))
    names = {"prefix": "method.full_", "what": "full training"}
    train_apart(problem, copy, optimizer, schedule, passes, clip=full_clip, seed=draw_seed(problem), **names)
    return {name: (parameters[name].detach() - p.detach()).abs() for name, p in weights(problem.model).items()}
