"""One model, one mask chosen before the first step: the paper's parameter-efficient transfer."""

from collections import Counter
from collections.abc import Callable
from typing import Unpack

from fishexp.masks.topk import Mask
from fishexp.regimes import Outcome
from fishexp.training.evaluate import evaluate_only
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshot, Snapshots
from fishexp.training.trainable import Decay, Trainable, snapshot_mask
from fishexp.training.trainer import Recipe, Trainer


def train(
    problem: Problem,
    choose: Callable[[], Mask],
    logger: Logger,
    snapshots: Snapshots,
    resumed: list[Snapshot],
    decay: Decay,
    **recipe: Unpack[Recipe],
) -> Outcome:
    """Train the entries of the mask that ``choose`` returns, and evaluate after each epoch.

    Args:
        choose: Scores the weights and returns the mask; not called if there are no epochs or a snapshot has it.
        snapshots: Where snapshots are saved.
        resumed: The snapshot to resume from, which is taken out of the list: its tensors may be as large as the model.
            Empty for a run that begins.
        decay: ``kept``: weight decay reaches the kept entries only. ``all``: it reaches every weight, as in the
            original CIFAR-10 code; the optimiser's state is then as large as the model.
    """
    if recipe["epochs"] == 0:
        return Outcome(evaluate_only(problem, logger, recipe["evaluation_batch_size"]))
    trainer = Trainer(problem, logger, snapshots, recipe)
    if resumed:
        trainable = _resume(resumed.pop(), trainer, problem, decay)
    else:
        trainable = Trainable.chosen(problem.model, choose, decay, problem.costs)
        trainer.start_optimizer(trainable.parameters)
    with trainer.bar():
        while trainer.progress.epoch <= recipe["epochs"]:
            trainer.run_epoch(trainable)
            if trainer.progress.epoch == 2:
                _report_gradient_methods(trainable, logger)
    return Outcome(trainer.evaluation, trainable.delta(problem.fresh) if decay == "kept" else None)


def _resume(snapshot: Snapshot, trainer: Trainer, problem: Problem, decay: Decay) -> Trainable:
    trainable = Trainable(problem.model, snapshot_mask(snapshot, problem.model), decay, problem.costs)
    trainer.resume(snapshot, trainable)
    return trainable


def _report_gradient_methods(trainable: Trainable, logger: Logger) -> None:
    if trainable.sparse is not None and (methods := Counter(trainable.sparse.ways().values())):
        counts = ", ".join(f"{methods[method]} {method}" for method in sorted(methods))
        logger.say(f"gradients of {methods.total()} partly kept products in the last batch: {counts}")
