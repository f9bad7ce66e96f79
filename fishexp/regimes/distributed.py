"""Workers that train apart and exchange only the weights that move: the paper's Tables 2 and 3."""

from typing import Annotated, Literal, TypeAlias, Unpack

from annotated_types import Ge, Gt

from fishexp.distributed.context import LaunchSettings
from fishexp.distributed.cost import Link, merge_volume, predict_cost
from fishexp.distributed.local_sgd import LocalSGD
from fishexp.distributed.merge import Merge
from fishexp.distributed.schedule import Plan
from fishexp.distributed.synchronizer import Reduce, Wire
from fishexp.errors import FishexpError
from fishexp.regimes import Outcome, check_warmup
from fishexp.training.evaluate import evaluate_only
from fishexp.training.logger import Logger
from fishexp.training.mask_selector import MaskSelector
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshot, Snapshots
from fishexp.training.trainable import Decay
from fishexp.training.trainer import Recipe

Masks: TypeAlias = Literal["same", "disjoint"]
# keys of the yaml that are used before `train` is called
RUN_SETTINGS = LaunchSettings


def train(
    problem: Problem,
    choose: MaskSelector,
    logger: Logger,
    snapshots: Snapshots,
    resumed: list[Snapshot],
    decay: Decay,
    *,
    sync_every: Annotated[int, Ge(1)],
    merge: Merge,
    masks: Masks,
    warmup_epochs: Annotated[int, Ge(0)],
    refresh_every: Annotated[int, Ge(1)] | None,
    shard: bool,
    wire: Wire,
    reduce: Reduce,
    snapshot_steps: Annotated[int, Ge(1)],
    bandwidth: Annotated[float, Gt(0)],
    latency: Annotated[float, Ge(0)],
    **recipe: Unpack[Recipe],
) -> Outcome:
    """Train on every worker, and let all get what all have changed: every ``sync_every`` steps, and after the last.

    Args:
        choose: Scores the weights that the workers hold in common, and selects the masks.
        snapshots: Where snapshots are saved.
        resumed: The snapshots of this process's workers to resume from, taken out of the list; empty for a run that
            begins.
        decay: ``all`` changes every weight at every step, so that every merge is dense.
        sync_every: Optimiser steps from one merge to the next.
        merge: How the workers' changes are merged. The head and running statistics are averaged in any case.
        masks: ``disjoint``: of the best workers x k scores each worker trains k of its own, and the head.
        warmup_epochs: Before the first mask every weight trains for so many epochs, and merges are dense.
        refresh_every: Merges from one mask to the next; None keeps the first. A method that names its mask outright
            has one mask.
        shard: Each worker has its part of the training examples; if not, all of them in its own order.
        wire: ``bf16`` sends changes with 8 significant bits.
        reduce: ``ring`` is torch's all_reduce, whose last bits depend on the number of workers and on the network
            library.
        snapshot_steps: Optimiser steps from one snapshot to the next.
        bandwidth: Of each worker's link, for the predicted cost; megabits a second.
        latency: From one worker to another, for the predicted cost; milliseconds.

    Raises:
        FishexpError: If settings contradict each other.
    """
    epochs = recipe["epochs"]
    if epochs == 0:
        return Outcome(evaluate_only(problem, logger, recipe["evaluation_batch_size"]))
    if masks == "disjoint":
        choose.check_disjoint()
    if reduce == "ring" and merge == "sum":
        raise FishexpError(
            "regime.reduce=ring rounds a sum so that a change of one worker may get lost; take regime.reduce=ordered"
        )
    if len(problem.data.train) < (workers := problem.collectives.world_size):
        raise FishexpError(f"regime.workers={workers}: there are only {len(problem.data.train)} training examples")
    if choose.method == "full":
        warmup_epochs = 0  # every weight moves as it is
    check_warmup(warmup_epochs, epochs)
    disjoint = masks == "disjoint"
    if problem.as_original and choose.method == "random":
        disjoint = True  # the original's random masks always are
    plan = Plan(sync_every, merge, disjoint, warmup_epochs, refresh_every, shard, wire, reduce, snapshot_steps)
    if problem.collectives.world_size > 1:
        for line in _predicted_cost(problem, choose, plan, decay, Link(bandwidth, latency)):
            logger.say(line)
    return Outcome(*LocalSGD(problem, choose, logger, snapshots, decay, recipe, plan).train(resumed))


def _predicted_cost(problem: Problem, choose: MaskSelector, plan: Plan, decay: Decay, link: Link) -> list[str]:
    """Write lines about what merges are going to cost."""
    world_size = problem.collectives.world_size
    kept = choose.count(world_size if plan.disjoint else 1)
    volume = merge_volume(
        problem.model, problem.head, kept, disjoint=plan.disjoint, decay_all=decay == "all", wire=plan.wire
    )
    return predict_cost(volume, world_size, plan.sync_every, plan.warmup_epochs, link)
