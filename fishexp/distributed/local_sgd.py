"""Local SGD: several workers train apart, merge now and then, and get new masks."""

from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, dataclass

from torch import Tensor, nn

from fishexp.data.datasets import Metrics
from fishexp.delta import Delta
from fishexp.distributed.schedule import Plan, Schedule
from fishexp.distributed.shared_state import SharedState
from fishexp.distributed.synchronizer import Synchronizer
from fishexp.distributed.worker import Worker, worker_problem
from fishexp.errors import FishexpError
from fishexp.masks.positions import (
    Positions,
    mask_to_positions,
    positions_for_file,
    positions_from_file,
    positions_to_mask,
)
from fishexp.masks.random_masks import Seeded
from fishexp.sparse.parameter import weights
from fishexp.training.evaluate import Evaluation, evaluate
from fishexp.training.logger import Logger
from fishexp.training.mask_selector import MaskSelector
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshot, Snapshots
from fishexp.training.trainable import Decay
from fishexp.training.trainer import Recipe

# bytes that a dense all-reduce sends of each entry: a float32 there and back
_DENSE_BYTES = 8


@dataclass
class LocalSGDState:
    """Hold how far the workers are, the same on all of them; a snapshot has all of it.

    Attributes:
        merges_dense: Whether merges are of all weights.
        merges: How many merges there were.
        masked_merges: How many of them there were since the warm-up.
        last_merge: Steps that the workers had taken at the last merge.
        settled: Steps that all workers are known to have taken.
        bytes_sent: Bytes that a worker had sent when the snapshot was taken.
        sparse_merge_bytes: Bytes that a worker sent in the last merge of the masks' entries; None before the first.
        shared_metrics: Metrics of what the workers hold in common; None if they have merged since.
    """

    merges_dense: bool = True
    merges: int = 0
    masked_merges: int = 0
    last_merge: int = 0
    settled: int = 0
    bytes_sent: int = 0
    sparse_merge_bytes: int | None = None
    shared_metrics: Metrics | None = None


class LocalSGD:
    """Train the workers of this process, together with the workers of all other processes.

    Attributes:
        masks: Entries of the masks: a single mask for all workers, or a mask for each; empty in the warm-up.
        state: How far the workers are.
        evaluation: Metrics and predictions of what the workers held in common when it was last evaluated.
    """

    evaluation: Evaluation

    def __init__(
        self,
        problem: Problem,
        choose: MaskSelector,
        logger: Logger,
        snapshots: Snapshots,
        decay: Decay,
        recipe: Recipe,
        plan: Plan,
    ) -> None:
        self.problem, self.choose, self.logger, self.recipe = problem, choose, logger, recipe
        self.decay: Decay = decay
        self.collectives = problem.collectives
        self.disjoint = plan.disjoint and self.collectives.world_size > 1
        self.refresh_every = None if choose.fixed else plan.refresh_every
        worker_snapshots = snapshots.workers or {0: snapshots}
        ranks = self.collectives.local_ranks
        self.workers = [
            Worker(
                rank,
                worker_problem(problem, rank, shard=plan.shard),
                logger,
                worker_snapshots[rank],
                recipe,
                quiet=rank != ranks[0],
            )
            for rank in ranks
        ]
        self.shared_state = SharedState([worker.problem.model for worker in self.workers], ranks, problem.head)
        self.synchronizer = Synchronizer(
            self.collectives, self.shared_state, plan.merge, plan.wire, plan.reduce, as_original=problem.as_original
        )
        self.schedule = Schedule(
            self.workers[0].trainer.epoch_steps,
            recipe["epochs"],
            plan.sync_every,
            plan.warmup_epochs,
            plan.snapshot_steps,
            as_original=problem.as_original,
        )
        self.masks: list[Positions] = []
        self.state = LocalSGDState()

    def train(self, resumed: list[Snapshot]) -> tuple[Evaluation, Delta | None, dict[str, int]]:
        """Train for all epochs, or what is left of them.

        Args:
            resumed: The local workers' snapshots to resume from, taken out of the list; empty for a run that begins.

        Returns:
            Evaluation, delta and bytes of a :class:`fishexp.regimes.Outcome`.
        """
        self.collectives.bytes_sent = 0  # what the workers had to agree on before is no training
        if resumed:
            self._resume(resumed)
        elif self.schedule.warmup == 0:
            self._select_masks()
        else:
            for worker in self.workers:
                worker.base_values.add_whole_model()
                worker.set_mask(None, self.decay)
        with self.workers[0].trainer.bar():
            self._train_all_steps()
        return self._outcome()

    def _train_all_steps(self) -> None:
        step = self.workers[0].trainer.progress.steps
        while step < self.schedule.total:
            stop = self.schedule.next_stop(step)
            with self.logger.clock("train"):
                for worker in self.workers:
                    worker.train(stop - step, ends_epoch=self.schedule.ends_epoch(stop))
                step = stop
                merges = self.schedule.merges(step)
                if merges:
                    self._merge(step)
                elif self.schedule.ends_epoch(step):
                    self._check_workers(step)
            if step == self.schedule.warmup or (merges and self._refreshes_masks(step)):
                self._select_masks()
            if self.schedule.ends_epoch(step):
                self._end_epoch()
            if self.schedule.saves(step):
                self._save()
        self._check_workers(step)

    def _check_workers(self, step: int) -> None:
        self.synchronizer.check_workers(step, [worker.failure for worker in self.workers])
        self.state.settled = step

    def _merge(self, step: int) -> None:
        self.synchronizer.merge(step, [worker.failure for worker in self.workers])
        state = self.state
        state.merges += 1
        state.last_merge = state.settled = step
        state.shared_metrics = None
        if not state.merges_dense:
            state.sparse_merge_bytes = self.synchronizer.merge_bytes
        if self.masks:
            state.masked_merges += 1
            if state.merges_dense and self.decay == "kept":  # the original's first merge after its warm-up was dense
                self._merge_masks_only()

    def _refreshes_masks(self, step: int) -> bool:
        """Tell whether new masks are due after a merge."""
        every, merges = self.refresh_every, self.state.masked_merges
        return bool(self.masks) and every is not None and merges % every == 0 < self.schedule.total - step

    def _select_masks(self) -> None:
        """Select new masks by what the workers hold in common."""
        model, step = self.problem.model, self.workers[0].trainer.progress.steps
        mode = model.training
        with self.shared_state.applied():
            masks = self.choose.disjoint(self.collectives.world_size) if self.disjoint else [self.choose()]
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.train(mode)
        self.masks = [mask_to_positions(mask, weights(model)) for mask in masks]
        seed = masks[0].seed if isinstance(masks[0], Seeded) else None
        whole = all(index is None for index in self.masks[0].values()) and len(self.masks[0]) == len(weights(model))
        for worker in self.workers:
            if step == 0:  # the original's scoring has moved running statistics
                for name, buffer in worker.problem.model.named_buffers():
                    buffer.copy_(buffers[name])
            if self.decay == "all" or whole:
                worker.base_values.add_whole_model()
            worker.base_values.add(self.masks, seed)
            worker.set_mask(masks[worker.rank if self.disjoint else 0], self.decay)
        if self.state.last_merge == step and self.decay == "kept":
            self._merge_masks_only()

    def _merge_masks_only(self) -> None:
        """Let the next merges be of the masks' entries; the workers hold the same weights now."""
        self.state.merges_dense = False
        self.synchronizer.set_masks(self.masks)

    def _end_epoch(self) -> None:
        """Evaluate what the workers hold in common, unless it is known already."""
        first = self.workers[0]
        single = self.collectives.world_size == 1  # its model is what all workers hold
        metrics = self.state.shared_metrics
        if metrics is None or single:
            with self.logger.clock("evaluate"), nullcontext() if single else self.shared_state.applied():
                self.evaluation = evaluate(first.problem, self.recipe["evaluation_batch_size"])
            metrics = self.evaluation.metrics
        self.state.shared_metrics = metrics
        first.trainer.end_epoch(metrics)
        for worker in self.workers[1:]:
            worker.trainer.begin_next_epoch()

    def _save(self) -> None:
        """Write a snapshot of each local worker."""
        self.state.bytes_sent = self.collectives.bytes_sent
        state = asdict(self.state)
        tensors = _mask_tensors(self.masks) | self.shared_state.state_dict()
        settled = self.state.settled if self.collectives.world_size > 1 else None
        for worker, digest in zip(self.workers, self.synchronizer.digests, strict=True):
            worker.save(tensors, {"local_sgd": state, "digest": digest}, settled)

    def _resume(self, resumed: list[Snapshot]) -> None:
        """Resume from the local workers' snapshots, and take them out of the list."""
        for worker, snapshot in zip(self.workers, resumed, strict=True):
            worker.restore_weights(snapshot)
            model = worker.problem.model
            self.masks = _read_masks(snapshot.tensors, model)
            mask = None
            if self.masks:
                mask = positions_to_mask(self.masks[worker.rank if self.disjoint else 0], weights(model))
            worker.resume(snapshot, mask, self.decay)
        about = resumed[0].about
        try:
            self.state = LocalSGDState(**about["local_sgd"])
        except (KeyError, TypeError):
            raise FishexpError("the snapshots are of another version of fishexp; resume=false begins anew") from None
        self.state.settled = about["steps"]  # as all workers have this snapshot
        self.collectives.bytes_sent = self.state.bytes_sent
        self.synchronizer.set_masks(None if self.state.merges_dense else self.masks)
        self.shared_state.load_state_dict(resumed[0].tensors)
        self.synchronizer.digests = [snapshot.about["digest"] for snapshot in resumed]
        resumed.clear()

    def _outcome(self) -> tuple[Evaluation, Delta | None, dict[str, int]]:
        """Return evaluation and delta of what the workers hold in common, and the bytes that were sent.

        The workers always merge after the last step, so that this process has evaluated what is returned.
        """
        world_size, parameters = self.collectives.world_size, weights(self.problem.model).values()
        buffers = self.shared_state.buffers
        entries = sum(p.numel() for p in parameters) + sum(len(buffer.flatten()) for buffer in buffers)
        dense = _DENSE_BYTES * entries * (world_size - 1) // world_size
        sparse, last = self.state.sparse_merge_bytes, self.synchronizer.merge_bytes
        sent = {
            "per_merge": last if sparse is None else sparse,
            "dense_merge": dense,
            "sent": self.collectives.bytes_sent,
            "dense_sent": self.state.merges * dense,
            "merges": self.state.merges,
        }
        first = self.workers[0]
        delta = None if first.base_values.whole or first.rank > 0 else first.base_values.delta(self.problem.fresh)
        return self.evaluation, delta, sent


def _mask_tensors(masks: list[Positions]) -> dict[str, Tensor]:
    """Return the masks as tensors of a snapshot: ``mask0.weight`` is of the first mask."""
    return {
        f"mask{number}.{name}": positions_for_file(index)
        for number, mask in enumerate(masks)
        for name, index in mask.items()
    }


def _read_masks(tensors: Mapping[str, Tensor], model: nn.Module) -> list[Positions]:
    """Read what :func:`_mask_tensors` put among the tensors of a snapshot of this model."""
    masks: list[Positions] = []
    while any(name.startswith(f"mask{len(masks)}.") for name in tensors):
        stem = f"mask{len(masks)}."
        parameters = {name: p for name, p in weights(model).items() if stem + name in tensors}
        masks.append({name: positions_from_file(tensors[stem + name], p) for name, p in parameters.items()})
    return masks
