"""One model, one mask chosen before the first step: the paper's parameter-efficient transfer."""

from collections import Counter
from collections.abc import Callable
from typing import Unpack

from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.regimes import Outcome
from fishexp.training.adapted import Adapted, Adapter
from fishexp.training.data_parallel import begin_own_streams, check_batch_size, check_same_weights
from fishexp.training.epoch_choice import EpochChoice
from fishexp.training.evaluate import evaluate_only
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshot, Snapshots
from fishexp.training.trainable import Decay, Trainable, snapshot_mask
from fishexp.training.trainer import Recipe, Trainer

# processes that torchrun starts train one model together
DATA_PARALLEL = True
# it can take the best epoch, and stop where none is better
CHOOSES_EPOCH = True


def train(
    problem: Problem,
    choose: Callable[[], Mask] | Adapter,
    logger: Logger,
    snapshots: Snapshots,
    resumed: list[Snapshot],
    decay: Decay,
    **recipe: Unpack[Recipe],
) -> Outcome:
    """Train the entries of the mask that ``choose`` returns, or the adapters, and evaluate after each epoch.

    Several processes, which torchrun starts, train one model: see :mod:`fishexp.training.data_parallel`.

    Args:
        choose: Scores the weights and returns the mask; not called if there are no epochs or a snapshot has it. Or puts
            adapters into the model.
        snapshots: Where snapshots are saved.
        resumed: The snapshot to resume from, which is taken out of the list: its tensors may be as large as the model.
            Empty for a run that begins.
        decay: ``kept``: weight decay reaches the kept entries only. ``all``: it reaches every weight, as in the
            original CIFAR-10 code; the optimiser's state is then as large as the model.

    Raises:
        FishexpError: If decay is to reach every weight where adapters train, or there are more processes than examples
            in a batch.
    """
    if recipe["epochs"] == 0:
        return Outcome(evaluate_only(problem, logger, recipe["evaluation_batch_size"]))
    if decay == "all" and isinstance(choose, Adapter):
        raise FishexpError("decay=all reaches weights, and the method trains adapters beside them; take decay=kept")
    check_batch_size(problem, recipe["batch_size"])
    choice = None
    if recipe["best"] or recipe["patience"] is not None:
        choice = EpochChoice(problem, recipe["epochs"], recipe["patience"], recipe["best"], recipe["metric"])
    trainer = Trainer(problem, logger, snapshots, recipe, choice=choice)
    trainable = _begin(problem, choose, trainer, resumed, decay)
    with trainer.bar():
        while not trainer.ended:
            trainer.run_epoch(trainable)
            if trainer.progress.epoch == 2:
                _report_gradient_methods(trainable, logger)
    epochs = trainer.finish(trainable)
    if isinstance(trainable, Adapted):
        return Outcome(trainer.evaluation, trainable.finish(problem.fresh), epochs=epochs)
    delta = trainable.delta(problem.fresh) if decay == "kept" else None
    return Outcome(trainer.evaluation, delta, epochs=epochs)


def _begin(
    problem: Problem,
    choose: Callable[[], Mask] | Adapter,
    trainer: Trainer,
    resumed: list[Snapshot],
    decay: Decay,
) -> Trainable | Adapted:
    """Make what trains, and its optimiser, as at first or as a snapshot has them."""
    snapshot = resumed.pop() if resumed else None
    if isinstance(choose, Adapter):
        trainable = choose()
    elif snapshot:
        trainable = Trainable(problem.model, snapshot_mask(snapshot, problem.model), decay, problem.costs)
    else:
        trainable = Trainable.chosen(problem.model, choose, decay, problem.costs)
    begin_own_streams(problem)
    if snapshot:
        trainer.resume(snapshot, trainable)
    else:
        trainer.start_optimizer(trainable.parameters)
    check_same_weights(problem, trainable, "as training begins")
    return trainable


def _report_gradient_methods(trainable: Trainable | Adapted, logger: Logger) -> None:
    if trainable.sparse is not None and (methods := Counter(trainable.sparse.ways().values())):
        counts = ", ".join(f"{methods[method]} {method}" for method in sorted(methods))
        logger.say(f"gradients of {methods.total()} partly kept products in the last batch: {counts}")
