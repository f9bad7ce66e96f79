"""Workers that train apart and exchange only the weights that move: the paper's Tables 2 and 3."""

from typing import Annotated, Literal, TypeAlias, Unpack

from annotated_types import Ge, Gt

from fishexp.distributed.cost import Link, Traffic, foretell
from fishexp.distributed.local_sgd import LocalSGD
from fishexp.distributed.merge import Merge
from fishexp.distributed.schedule import Plan
from fishexp.distributed.synchronizer import Reduce, Wire
from fishexp.errors import FishexpError
from fishexp.regimes import Outcome
from fishexp.sparse.parameter import weights
from fishexp.training.evaluate import evaluated
from fishexp.training.logger import Logger
from fishexp.training.mask_selector import MaskSelector
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshots
from fishexp.training.trainable import Decay
from fishexp.training.trainer import Recipe

Masks: TypeAlias = Literal["same", "disjoint"]


def train(
    problem: Problem,
    choose: MaskSelector,
    log: Logger,
    snapshots: Snapshots,
    decay: Decay,
    *,
    workers: Annotated[int, Ge(1)],
    sync_every: Annotated[int, Ge(1)],
    merge: Merge,
    masks: Masks,
    warmup_epochs: Annotated[int, Ge(0)],
    refresh_every: Annotated[int, Ge(1)] | None,
    shard: bool,
    backend: Literal["processes", "simulated"],
    wire: Wire,
    reduce: Reduce,
    snapshot_steps: Annotated[int, Ge(1)],
    restarts: Annotated[int, Ge(0)],
    timeout: Annotated[float, Gt(0)],
    bandwidth: Annotated[float, Gt(0)],
    latency: Annotated[float, Ge(0)],
    **recipe: Unpack[Recipe],
) -> Outcome:
    """Train on every worker; every ``sync_every`` steps, and after the last, all get what all have changed.

    Args:
        choose: Scores the weights that the workers have in common.
        snapshots: If the latest is there, training goes on from it.
        decay: ``all`` moves every weight at every step, so that every merge is dense.
        workers: As many as ``problem.collectives`` has.
        merge: Of the workers' changes. The head and running statistics are averaged in any case.
        masks: ``disjoint``: of the best workers x k scores each worker moves k of its own, and the head.
        warmup_epochs: Before the first mask every weight trains for so many epochs, and merges are dense.
        refresh_every: Merges from one mask to the next; None keeps the first. A method that names its mask outright
            has one.
        shard: Each worker has its part of the training examples; if not, all of them in its own order.
        backend: Whether the workers are processes; they are started before.
        reduce: ``ring`` is torch's all_reduce, whose last bits depend on the number of workers and on what carries it.
        snapshot_steps: Between two snapshots.
        restarts: Known to what starts the processes, as is ``timeout``.
        bandwidth: In megabits a second, for the cost that is foretold; ``latency`` is in milliseconds.
    """
    epochs = recipe["epochs"]
    if epochs == 0:
        return Outcome(evaluated(problem, log, recipe["evaluation_batch_size"]))
    if masks == "disjoint":
        choose.check_disjoint()
    if reduce == "ring" and merge == "sum":
        raise FishexpError(
            "regime.reduce=ring rounds a sum so that a change of one worker may get lost; take regime.reduce=ordered"
        )
    if len(problem.data.train) < workers:
        raise FishexpError(f"regime.workers={workers}: there are only {len(problem.data.train)} training examples")
    if choose.method == "full":
        warmup_epochs = 0  # every weight moves as it is
    if warmup_epochs >= epochs:
        raise FishexpError(
            f"regime.warmup_epochs={warmup_epochs} leaves no epoch with a mask: regime.epochs={epochs}; lower it"
        )
    disjoint = masks == "disjoint"
    if problem.as_original and choose.method == "random":
        disjoint = True  # the original's random masks always are
    plan = Plan(sync_every, merge, disjoint, warmup_epochs, refresh_every, shard, wire, reduce, snapshot_steps)
    if problem.collectives.world_size > 1:
        for line in _costs(problem, choose, plan, decay, Link(bandwidth, latency)):
            log.say(line)
    return Outcome(*LocalSGD(problem, choose, log, snapshots, decay, recipe, plan).go())


def _costs(problem: Problem, choose: MaskSelector, plan: Plan, decay: Decay, link: Link) -> list[str]:
    """What merges are going to cost."""
    own = weights(problem.model)
    kept = choose.count(problem.collectives.world_size if plan.disjoint else 1)
    total, head = sum(p.numel() for p in own.values()), sum(own[name].numel() for name in problem.head)
    traffic = Traffic(
        total,
        total if decay == "all" else kept,
        head,
        sum(b.numel() for b in problem.model.buffers() if b.is_floating_point()),
        plan.disjoint and decay == "kept",
        2 if plan.wire == "bf16" else 4,
    )
    return foretell(traffic, problem.collectives.world_size, plan.sync_every, plan.warmup_epochs, link)
