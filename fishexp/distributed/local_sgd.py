"""Several workers on their way together: they train apart, merge, and get new masks."""

from contextlib import nullcontext
from typing import Any

from fishexp.data.datasets import Metrics
from fishexp.delta import Delta
from fishexp.distributed.flat_view import Places, mask_at, places, restored, stored
from fishexp.distributed.schedule import Plan, Schedule
from fishexp.distributed.shared_state import SharedState
from fishexp.distributed.synchronizer import Synchronizer
from fishexp.distributed.worker import Worker, worker_problem
from fishexp.masks.random_masks import Seeded
from fishexp.sparse.parameter import weights
from fishexp.training.evaluate import evaluate
from fishexp.training.logger import Logger
from fishexp.training.mask_selector import MaskSelector
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshots
from fishexp.training.trainable import Decay
from fishexp.training.trainer import Recipe


class LocalSGD:
    """The workers of this process, on their way together with all others."""

    def __init__(
        self,
        problem: Problem,
        choose: MaskSelector,
        log: Logger,
        snapshots: Snapshots,
        decay: Decay,
        recipe: Recipe,
        plan: Plan,
    ) -> None:
        self.problem, self.choose, self.log, self.recipe = problem, choose, log, recipe
        self.decay: Decay = decay
        self.collectives, self.disjoint = problem.collectives, plan.disjoint and problem.collectives.world_size > 1
        self.refresh_every = None if choose.fixed else plan.refresh_every
        self.snapshots, self.stores = snapshots, snapshots.workers or {0: snapshots}
        for store in self.stores.values():
            store.about = snapshots.about
        self.workers = [
            Worker(
                r,
                worker_problem(problem, r, shard=plan.shard),
                log,
                self.stores[r],
                recipe,
                quiet=r != self.collectives.local_ranks[0],
            )
            for r in self.collectives.local_ranks
        ]
        self.common = SharedState(
            [worker.problem.model for worker in self.workers], self.collectives.local_ranks, problem.head
        )
        original = problem.as_original
        self.exchange = Synchronizer(
            self.collectives, self.common, plan.merge, plan.wire, plan.reduce, as_original=original
        )
        steps = self.workers[0].course.epoch_steps, recipe["epochs"], plan.sync_every
        self.timetable = Schedule(*steps, plan.warmup_epochs, plan.snapshot_steps, as_original=original)
        self.moving: list[Places] = []  # the entries of the masks, of all workers; empty in the warm-up
        self.dense = True  # what merges, as far as masks do not say otherwise
        self.masked_merges = self.merged = self.settled = 0  # steps of the last merge, and that all have taken
        self.sent_sparse: int | None = None
        self.metrics: dict[str, Any] | None = None  # of what the workers have in common

    def go(self) -> tuple[Metrics, Delta | None, dict[str, int]]:
        """All epochs, or what is left of them: metrics, delta and bytes of an :class:`fishexp.regimes.Outcome`."""
        self.collectives.bytes_sent = 0  # what the workers had to agree on before is no training
        if self.stores[self.collectives.local_ranks[0]].latest:
            self._resume()
        elif self.timetable.warmup == 0:
            self._remask()
        else:
            for worker in self.workers:
                worker.ledger.all_move()
                worker.move(None, self.decay)
        with self.workers[0].course.bar():
            self._go()
        return self._outcome()

    def _go(self) -> None:
        step = self.workers[0].course.place.steps
        while step < self.timetable.total:
            stop = self.timetable.next(step)
            with self.log.clock("train"):
                for worker in self.workers:
                    worker.advance(stop - step, ends=self.timetable.ends_epoch(stop))
                step = stop
                merges = self.timetable.merges(step)
                if merges:
                    self._merge(step)
                elif self.timetable.ends_epoch(step):
                    self._meet(step)
            if step == self.timetable.warmup or (merges and self._refreshes(step)):
                self._remask()
            if self.timetable.ends_epoch(step):
                self._end_epoch()
            if self.timetable.saves(step):
                self._save()
        self._meet(step)

    def _meet(self, step: int) -> None:
        self.exchange.meet(step, [worker.failure for worker in self.workers])
        self.settled = step

    def _merge(self, step: int) -> None:
        self.exchange.merge(step, [worker.failure for worker in self.workers])
        self.merged = self.settled = step
        self.metrics = None
        if not self.dense:
            self.sent_sparse = self.exchange.bytes
        if self.moving:
            self.masked_merges += 1
            if self.dense and self.decay == "kept":  # the original's first merge after its warm-up was of all weights
                self._mask_exchange()

    def _refreshes(self, step: int) -> bool:
        every = self.refresh_every
        return bool(self.moving) and every is not None and self.masked_merges % every == 0 < self.timetable.total - step

    def _remask(self) -> None:
        """New masks, chosen by what the workers have in common."""
        model, step = self.problem.model, self.workers[0].course.place.steps
        mode = model.training
        with self.common.restored():
            masks = self.choose.disjoint(self.collectives.world_size) if self.disjoint else [self.choose()]
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.train(mode)
        self.moving = [places(mask, model) for mask in masks]
        seed = masks[0].seed if isinstance(masks[0], Seeded) else None
        whole = all(index is None for index in self.moving[0].values()) and len(self.moving[0]) == len(weights(model))
        for worker in self.workers:
            if step == 0:  # the original's scoring has moved running statistics
                for name, buffer in worker.problem.model.named_buffers():
                    buffer.copy_(buffers[name])
            if self.decay == "all" or whole:
                worker.ledger.all_move()
            worker.ledger.add(self.moving, seed)
            worker.move(masks[worker.rank if self.disjoint else 0], self.decay)
        if self.merged == step and self.decay == "kept":
            self._mask_exchange()

    def _mask_exchange(self) -> None:
        self.dense = False
        self.exchange.begin(self.moving)

    def _end_epoch(self) -> None:
        """Evaluate what the workers have in common, unless that is what it was."""
        first = self.workers[0]
        alone = self.collectives.world_size == 1  # what it has is what all have
        if self.metrics is None or alone:
            with self.log.clock("evaluate"), nullcontext() if alone else self.common.restored():
                self.metrics = evaluate(first.problem, self.recipe["evaluation_batch_size"])
        first.course.end_epoch(self.metrics)
        for worker in self.workers[1:]:
            worker.course.next_epoch()

    def _save(self) -> None:
        about = {
            "dense": self.dense,
            "merges": [self.exchange.count, self.masked_merges, self.merged],
            "sent": [self.collectives.bytes_sent, self.sent_sparse],
            "common_metrics": self.metrics,
        }
        tensors = stored(self.moving) | self.common.state()
        settled = self.settled if self.collectives.world_size > 1 else None
        for worker, digest in zip(self.workers, self.exchange.digests, strict=True):
            worker.save(tensors, {**about, "digest": digest}, settled)

    def _resume(self) -> None:
        found = [store.latest for store in self.stores.values()]
        read = [snapshot for snapshot in found if snapshot is not None]  # all have one of the same step, or none has
        for worker, snapshot in zip(self.workers, read, strict=True):
            worker.restore_weights(snapshot)
            model = worker.problem.model
            self.moving = restored(snapshot.tensors, model)
            mask = mask_at(self.moving[worker.rank if self.disjoint else 0], model) if self.moving else None
            worker.resume(snapshot, mask, self.decay)
        for store in (self.snapshots, *self.stores.values()):
            store.latest = None
        about = read[0].about
        self.dense, self.metrics = about["dense"], about["common_metrics"]
        self.exchange.count, self.masked_merges, self.merged = about["merges"]
        self.settled = about["steps"]
        self.collectives.bytes_sent, self.sent_sparse = about["sent"]
        self.exchange.begin(None if self.dense else self.moving)
        self.common.resume(read[0].tensors)
        self.exchange.digests = [snapshot.about["digest"] for snapshot in read]

    def _outcome(self) -> tuple[Metrics, Delta | None, dict[str, int]]:
        """What the workers have in common now."""
        model, size = self.problem.model, self.collectives.world_size
        entries = sum(p.numel() for p in weights(model).values()) + sum(len(b.flatten()) for b in self.common.buffers)
        dense = 8 * entries * (size - 1) // size
        sent = {
            "per_merge": self.exchange.bytes if self.sent_sparse is None else self.sent_sparse,
            "dense_merge": dense,
            "sent": self.collectives.bytes_sent,
            "dense_sent": self.exchange.count * dense,
            "merges": self.exchange.count,
        }
        first = self.workers[0]
        delta = None if first.ledger.whole or first.rank > 0 else first.ledger.delta(self.problem.head)
        return first.course.metrics, delta, sent
