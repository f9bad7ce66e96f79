"""Training from scratch that keeps every epoch, each as a delta against the one before: the paper's Table 4."""

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias, Unpack

from annotated_types import Ge

from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.regimes import Outcome, check_warmup
from fishexp.training.checkpoints import Checkpoints
from fishexp.training.evaluate import evaluate_only
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshot, Snapshots
from fishexp.training.trainable import Decay, Trainable, snapshot_mask, transfer_optimizer_state
from fishexp.training.trainer import Recipe, Trainer

Momentum: TypeAlias = Literal["carry", "reset"]


def train(
    problem: Problem,
    choose: Callable[[], Mask],
    logger: Logger,
    snapshots: Snapshots,
    resumed: list[Snapshot],
    decay: Decay,
    *,
    mask: Literal["fixed", "every_epoch"],
    momentum: Momentum,
    warmup_epochs: Annotated[int, Ge(0)],
    keyframe_every: Annotated[int, Ge(1)],
    **recipe: Unpack[Recipe],
) -> Outcome:
    """Train the entries of the masks that ``choose`` returns, and keep the model of each epoch in ``checkpoints/``.

    Args:
        choose: Scores the weights as they are now and returns a mask.
        snapshots: Where snapshots are saved.
        resumed: The snapshot to resume from, taken out of the list; empty for a run that begins.
        decay: ``all`` moves every weight at every step, so that every checkpoint is as large as the model.
        mask: ``fixed``: selected once, after the warm-up. ``every_epoch``: selected anew as each epoch begins.
        momentum: At a new mask, ``carry`` keeps the optimiser's state of the entries that stay, and ``reset`` drops it.
            With ``decay=all`` entries never leave the optimiser, so ``carry`` keeps all of it, as the original does.
        warmup_epochs: Epochs before the first mask, in which every weight trains; their checkpoints are dense.
        keyframe_every: Epochs from one keyframe to the next. Its delta is against the base, or the model at the end
            of the warm-up, so that no chain of deltas is longer.
    """
    epochs = recipe["epochs"]
    if epochs == 0:
        return Outcome(evaluate_only(problem, logger, recipe["evaluation_batch_size"]))
    check_warmup(warmup_epochs, epochs)
    trainer = Trainer(problem, logger, snapshots, recipe)
    checkpoints = Checkpoints(logger.folder)
    checkpoints.begin(problem.model)
    trainable = None
    if resumed:
        trainable = _resume(resumed.pop(), trainer, checkpoints, problem, decay, warmup_epochs)
    with trainer.bar():
        while (epoch := trainer.progress.epoch) <= epochs:
            new_mask = epoch == 1 or epoch == warmup_epochs + 1 or (mask == "every_epoch" and epoch > warmup_epochs)
            if new_mask and trainer.progress.batches == 0:
                trainable = _next_trainable(
                    problem, choose if epoch > warmup_epochs else None, decay, momentum, trainer, trainable
                )
            assert trainable is not None  # epoch 1 makes one
            trainer.run_epoch(trainable)
            if trainable.dense:
                checkpoints.add_dense(epoch, problem.model)
            elif epoch % keyframe_every == 0:
                checkpoints.add_keyframe(epoch, problem.model)
            else:
                checkpoints.add(epoch, trainable.delta())
            trainable.rebase()
    checkpoints.finish(epochs)
    return Outcome(trainer.evaluation, bytes=checkpoints.bytes())


def _resume(
    snapshot: Snapshot, trainer: Trainer, checkpoints: Checkpoints, problem: Problem, decay: Decay, warmup_epochs: int
) -> Trainable:
    epoch = snapshot.about["epoch"]
    try:
        checkpoints.check(epoch - 1)
    except FishexpError as error:
        raise FishexpError(f"{error}; resume=false begins anew") from None
    checkpoints.restore_(problem.model, epoch - 1)
    mask = snapshot_mask(snapshot, problem.model) if epoch > warmup_epochs else None
    trainable = Trainable(problem.model, mask, decay, problem.costs)
    trainer.resume(snapshot, trainable)
    return trainable


def _next_trainable(
    problem: Problem,
    choose: Callable[[], Mask] | None,
    decay: Decay,
    momentum: Momentum,
    trainer: Trainer,
    before: Trainable | None,
) -> Trainable:
    """Make the entries of the next mask trainable (all weights if ``choose`` is None), and start their optimiser."""
    old = trainer.optimizer if before else None
    if choose:
        trainable = Trainable.chosen(problem.model, choose, decay, problem.costs)
    else:
        trainable = Trainable(problem.model, None, decay, problem.costs)
    trainer.start_optimizer(trainable.parameters)
    if before and old and momentum == "carry":
        transfer_optimizer_state(old, before, trainer.optimizer, trainable)
    return trainable
