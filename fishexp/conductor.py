"""Several workers on their way together: they train apart, merge, and get new masks."""

from dataclasses import dataclass
from typing import Any

from fishexp.choice import Choice
from fishexp.common import Common
from fishexp.course import Recipe
from fishexp.delta import Delta
from fishexp.examples import Metrics
from fishexp.exchange import Exchange, Reduce, Wire
from fishexp.kept import weights
from fishexp.loop import evaluate
from fishexp.masks import Mask
from fishexp.merging import Merge
from fishexp.packed import restored, stored
from fishexp.problem import Problem
from fishexp.settings import Decay
from fishexp.snapshots import Snapshots
from fishexp.timetable import Timetable
from fishexp.tracking import Log
from fishexp.worker import Worker, problem_of


@dataclass(frozen=True)
class Plan:
    """When and how workers merge; :func:`fishexp.regimes.distributed.train` says what each means."""

    sync_every: int
    merge: Merge
    disjoint: bool
    warmup_epochs: int
    refresh_every: int | None
    shard: bool
    wire: Wire
    reduce: Reduce
    snapshot_steps: int


class Conductor:
    """The workers of this process, on their way together with all others."""

    def __init__(
        self, problem: Problem, choose: Choice, log: Log, snapshots: Snapshots, decay: Decay, recipe: Recipe, plan: Plan
    ) -> None:
        self.problem, self.choose, self.log, self.decay, self.recipe = problem, choose, log, decay, recipe
        self.crew, self.disjoint = problem.crew, plan.disjoint and problem.crew.size > 1
        self.refresh_every = None if choose.fixed else plan.refresh_every
        self.stores = snapshots.workers or {0: snapshots}
        for store in self.stores.values():
            store.about = snapshots.about
        self.workers = [
            Worker(
                r, problem_of(problem, r, shard=plan.shard), log, self.stores[r], recipe, quiet=r != self.crew.local[0]
            )
            for r in self.crew.local
        ]
        self.common = Common([worker.problem.model for worker in self.workers], self.crew.local, problem.head)
        original = problem.as_original
        self.exchange = Exchange(self.crew, self.common, plan.merge, plan.wire, plan.reduce, as_original=original)
        steps = self.workers[0].course.epoch_steps, recipe["epochs"], plan.sync_every
        self.timetable = Timetable(*steps, plan.warmup_epochs, plan.snapshot_steps, as_original=original)
        self.masks: list[Mask] = []
        self.dense = True  # what merges, as far as masks do not say otherwise
        self.masked_merges = self.settled = 0
        self.sent_sparse: int | None = None
        self.metrics: dict[str, Any] | None = None  # of what the workers have in common

    def go(self) -> tuple[Metrics, Delta | None, dict[str, int]]:
        """All epochs, or what is left of them: metrics, delta and bytes of an :class:`fishexp.regimes.Outcome`."""
        self.crew.sent = 0  # what the workers had to agree on before is no training
        with self.workers[0].course.bar():
            self._go()
        return self._outcome()

    def _go(self) -> None:
        if self.stores[self.crew.local[0]].latest:
            self._resume()
        elif self.timetable.warmup == 0:
            self._remask()
        else:
            for worker in self.workers:
                worker.ledger.all_move()
                worker.move(None, self.decay)
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
            if step == self.timetable.warmup or (merges and self._refreshes(step)):
                self._remask()
            if self.timetable.ends_epoch(step):
                self._end_epoch()
            if self.timetable.saves(step):
                self._save()
        self.exchange.meet(step, [worker.failure for worker in self.workers])

    def _merge(self, step: int) -> None:
        self.exchange.merge(step, [worker.failure for worker in self.workers])
        self.settled, self.metrics = step, None
        if not self.dense:
            self.sent_sparse = self.exchange.bytes
        if self.masks:
            self.masked_merges += 1
            if self.dense and self.decay == "kept":  # the original's first merge after its warm-up was of all weights
                self._mask_exchange()

    def _refreshes(self, step: int) -> bool:
        every = self.refresh_every
        return bool(self.masks) and every is not None and self.masked_merges % every == 0 < self.timetable.total - step

    def _remask(self) -> None:
        """New masks, chosen by what the workers have in common."""
        model = self.problem.model
        mode, held = model.training, self.settled == self.workers[0].course.place.steps
        with self.common.restored():
            self.masks = self.choose.disjoint(self.crew.size) if self.disjoint else [self.choose()]
            buffers = {name: buffer.clone() for name, buffer in model.named_buffers()}
        model.train(mode)
        for worker in self.workers:
            if self.problem.as_original:  # its scoring moves running statistics
                for name, buffer in worker.problem.model.named_buffers():
                    buffer.copy_(buffers[name])
            if self.decay == "all" or all(bool(kept.all()) for mask in self.masks for kept in mask.values()):
                worker.ledger.all_move()
            worker.ledger.add(self.masks)
            worker.move(self.masks[worker.rank if self.disjoint else 0], self.decay)
        if held and self.decay == "kept":
            self._mask_exchange()

    def _mask_exchange(self) -> None:
        self.dense = False
        self.exchange.begin(self.masks)

    def _end_epoch(self) -> None:
        """Evaluate what the workers have in common, unless that is what it was."""
        first = self.workers[0]
        if first.rank == 0:
            if self.metrics is None:
                with self.log.clock("evaluate"), self.common.restored():
                    self.metrics = evaluate(first.problem, self.recipe["evaluation_batch_size"])
            first.course.end_epoch(self.metrics)
        for worker in self.workers[first.rank == 0 :]:
            worker.course.next_epoch()

    def _save(self) -> None:
        about = {
            "dense": self.dense,
            "merges": [self.exchange.count, self.masked_merges, self.settled],
            "sent": [self.crew.sent, self.sent_sparse],
            "common_metrics": self.metrics,
        }
        tensors = stored(self.masks) | self.common.state()
        for worker, digest in zip(self.workers, self.exchange.digests, strict=True):
            worker.save(tensors, {**about, "digest": digest}, self.settled)

    def _resume(self) -> None:
        digests = []
        for worker, store in zip(self.workers, self.stores.values(), strict=True):
            snapshot = store.latest
            assert snapshot is not None  # all workers have one of the same step, or none has
            worker.restore_weights(snapshot)
            self.masks = restored(snapshot.tensors, worker.problem.model)
            mask = self.masks[worker.rank if self.disjoint else 0] if self.masks else None
            worker.resume(snapshot, mask, self.decay)
            digests.append(snapshot.about["digest"])
            store.latest = None
        about = snapshot.about
        self.dense, self.metrics = about["dense"], about["common_metrics"]
        self.exchange.count, self.masked_merges, self.settled = about["merges"]
        self.crew.sent, self.sent_sparse = about["sent"]
        self.exchange.begin(None if self.dense else self.masks)
        self.common.resume(snapshot.tensors)
        self.exchange.digests = digests

    def _outcome(self) -> tuple[Metrics, Delta | None, dict[str, int]]:
        """What the workers have in common now."""
        model, size = self.problem.model, self.crew.size
        entries = sum(p.numel() for p in weights(model).values()) + sum(len(b.flatten()) for b in self.common.buffers)
        dense = 8 * entries * (size - 1) // size
        sent = {
            "per_merge": self.exchange.bytes if self.sent_sparse is None else self.sent_sparse,
            "dense_merge": dense,
            "sent": self.crew.sent,
            "dense_sent": self.exchange.count * dense,
            "merges": self.exchange.count,
        }
        first = self.workers[0]
        delta = None if first.ledger.whole else first.ledger.delta(self.problem.head)
        return first.course.metrics, delta, sent
