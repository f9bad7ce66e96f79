"""One model, one mask chosen before the first step: the paper's parameter-efficient transfer."""

from collections import Counter
from collections.abc import Callable
from typing import Unpack

from fishexp.masks.topk import Mask
from fishexp.regimes import Outcome
from fishexp.training.evaluate import evaluated
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshots
from fishexp.training.trainable import Decay, Trainable, snapshot_mask
from fishexp.training.trainer import Recipe, Trainer


def train(
    problem: Problem,
    choose: Callable[[], Mask],
    log: Logger,
    snapshots: Snapshots,
    decay: Decay,
    **recipe: Unpack[Recipe],
) -> Outcome:
    """Train the entries that ``choose`` names; evaluate after each epoch.

    Args:
        choose: Scores the weights and returns the mask; not called if there are no epochs or a snapshot has it.
        snapshots: If the latest is there, training goes on from it.
        decay: ``kept``: weight decay reaches the kept entries only. ``all``: it reaches every weight, as in the
            original CIFAR-10 code; the optimiser's state is then as large as the model.
    """
    if recipe["epochs"] == 0:
        return Outcome(evaluated(problem, log, recipe["evaluation_batch_size"]))
    course = Trainer(problem, log, snapshots, recipe)
    if snapshots.latest:
        moving = Trainable(problem.model, snapshot_mask(snapshots.latest, problem.model), decay)
        course.take_up(moving)
    else:
        moving = Trainable.chosen(problem.model, choose, decay)
        course.optimise(moving.parameters)
    with course.bar():
        while course.place.epoch <= recipe["epochs"]:
            course.epoch(moving)
            if course.place.epoch == 2:
                _say_ways(moving, log)
    return Outcome(course.metrics, moving.delta(problem.head) if decay == "kept" else None)


def _say_ways(moving: Trainable, log: Logger) -> None:
    if moving.sparse is not None and (ways := Counter(moving.sparse.ways().values())):
        counts = ", ".join(f"{ways[way]} {way}" for way in sorted(ways))
        log.say(f"gradients of {ways.total()} partly kept products in the last batch: {counts}")
