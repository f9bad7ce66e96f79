"""Training from scratch that keeps every epoch, each as a delta against the one before: the paper's Table 4."""

from collections.abc import Callable
from typing import Annotated, Literal, TypeAlias, Unpack

from annotated_types import Ge

from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.regimes import Outcome
from fishexp.training.checkpoints import Checkpoints
from fishexp.training.evaluate import evaluated
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshots
from fishexp.training.trainable import Decay, Trainable, snapshot_mask, transfer_optimizer_state
from fishexp.training.trainer import Recipe, Trainer

Momentum: TypeAlias = Literal["carry", "reset"]


def train(
    problem: Problem,
    choose: Callable[[], Mask],
    log: Logger,
    snapshots: Snapshots,
    decay: Decay,
    *,
    mask: Literal["fixed", "every_epoch"],
    momentum: Momentum,
    warmup_epochs: Annotated[int, Ge(0)],
    keyframe_every: Annotated[int, Ge(1)],
    **recipe: Unpack[Recipe],
) -> Outcome:
    """Train with the masks that ``choose`` gives, and write the model after each epoch into ``checkpoints/``.

    Args:
        choose: Scores the weights as they are and returns a mask.
        snapshots: If the latest is there, training goes on from it.
        decay: ``all`` moves every weight at every step, so that every checkpoint is as large as the model.
        mask: ``fixed``: chosen once, after the warm-up. ``every_epoch``: chosen anew as each epoch begins.
        momentum: At a new mask, ``carry`` keeps the optimiser's state of the entries that stay, and ``reset`` drops it.
            With ``decay=all`` entries never leave the optimiser, so ``carry`` keeps all of it, as the original does.
        warmup_epochs: Before the first mask every weight trains for so many epochs; their checkpoints are dense.
        keyframe_every: Every so many epochs the delta is against the first model, or that at the warm-up's end, so
            that no chain is longer.
    """
    epochs = recipe["epochs"]
    if epochs == 0:
        return Outcome(evaluated(problem, log, recipe["evaluation_batch_size"]))
    if warmup_epochs >= epochs:
        raise FishexpError(
            f"regime.warmup_epochs={warmup_epochs} leaves no epoch with a mask: regime.epochs={epochs}; lower it"
        )
    course = Trainer(problem, log, snapshots, recipe)
    kept = Checkpoints(log.folder)
    moving = None
    if snapshots.latest:
        epoch = snapshots.latest.about["epoch"]
        kept.restore_(problem.model, epoch - 1)
        masked = snapshot_mask(snapshots.latest, problem.model) if epoch > warmup_epochs else None
        moving = Trainable(problem.model, masked, decay)
        course.take_up(moving)
    else:
        kept.begin(problem.model)
    with course.bar():
        while (epoch := course.place.epoch) <= epochs:
            changes = epoch == 1 or epoch == warmup_epochs + 1 or (mask == "every_epoch" and epoch > warmup_epochs)
            if changes and course.place.batches == 0:
                moving = _next(problem, choose if epoch > warmup_epochs else None, decay, momentum, course, moving)
            assert moving is not None  # epoch 1 makes one
            course.epoch(moving)
            if moving.dense:
                kept.add_dense(epoch, problem.model)
            elif epoch % keyframe_every == 0:
                kept.add_keyframe(epoch, problem.model)
            else:
                kept.add(epoch, moving.delta())
            moving.rebase()
    return Outcome(course.metrics, bytes=kept.bytes())


def _next(
    problem: Problem,
    choose: Callable[[], Mask] | None,
    decay: Decay,
    momentum: Momentum,
    course: Trainer,
    before: Trainable | None,
) -> Trainable:
    """The entries of the next mask (None: all), and their optimiser."""
    old = course.optimiser if before else None
    moving = Trainable.chosen(problem.model, choose, decay) if choose else Trainable(problem.model, None, decay)
    course.optimise(moving.parameters)
    if before and old and momentum == "carry":
        transfer_optimizer_state(old, before, course.optimiser, moving)
    return moving
