"""Snapshots: what an interrupted run needs to go on as if nothing had happened."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fishexp.delta import Delta
from fishexp.errors import RunFailed
from fishexp.system.atomic import sync
from fishexp.training.collectives import Collectives, InProcessCollectives

log = logging.getLogger(__name__)

DELTA, STATE, KEY = "delta.safetensors", "state.safetensors", "fishexp.snapshot"


@dataclass(frozen=True)
class Snapshot:
    """The state of a run between two steps.

    Attributes:
        delta: The weights and buffers, against what training began with (or the last checkpoint).
        tensors: The optimiser's state, random streams.
        about: Whatever JSON can hold.
    """

    delta: Delta
    tensors: dict[str, Tensor]
    about: dict[str, Any]


class Snapshots:
    """The snapshots of one run, the newest few, each a folder that is there completely or not at all.

    Args:
        folder: Made when the first is written.
        minutes: Between two of them.
        keep: How many stay on disk.
        collectives: Connects the workers of the run. Each of several workers has its own snapshots, at the same steps.

    Attributes:
        about: Asked at each snapshot what else the run wants to find in :attr:`Snapshot.about`.
        latest: To go on from, of the first worker here; set by :meth:`load`.
        workers: rank -> the snapshots of each worker here, where there are several in all.
    """

    about: Callable[[], dict[str, Any]] = dict

    def __init__(self, folder: Path, minutes: float, keep: int = 2, collectives: Collectives | None = None) -> None:
        self.folder, self.minutes, self.keep = folder, minutes, keep
        self._collectives = collectives or InProcessCollectives()
        self._last = time.monotonic()
        self.latest: Snapshot | None = None
        self.workers: dict[int, Snapshots] = {}
        if self._collectives.world_size > 1:
            ranks = self._collectives.local_ranks
            self.workers = {rank: Snapshots(folder / f"worker{rank}", minutes, keep) for rank in ranks}

    def due(self) -> bool:
        """Whether it is time for another."""
        return time.monotonic() - self._last >= 60 * self.minutes

    def save(self, steps: int, snapshot: Snapshot, settled: int | None = None) -> None:
        """Write the state after so many optimiser steps; older snapshots go once it is safe on disk.

        Args:
            settled: Steps that all workers have taken: one of these or younger may be a snapshot that others do not
                have yet, so that older ones stay. None if there are no others.

        Raises:
            RunFailed: If it cannot be written; those before it are untouched.
        """
        folder, unfinished = self.folder / f"{steps:09d}", self.folder / "unfinished"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            snapshot.delta.save(unfinished / DELTA)
            about = {**snapshot.about, **self.about()}
            digest = _digest(snapshot.tensors, about)
            save_file(snapshot.tensors, unfinished / STATE, {KEY: json.dumps({"about": about, "digest": digest})})
            sync(unfinished / STATE)
            sync(unfinished)
            shutil.rmtree(folder, ignore_errors=True)
            unfinished.replace(folder)
            sync(self.folder)
        except (OSError, SafetensorError) as error:
            shutil.rmtree(unfinished, ignore_errors=True)
            kept = self._folders()
            state = f"the snapshot after {int(kept[-1].name):,} steps is whole" if kept else "there is none before it"
            reason = error.strerror if isinstance(error, OSError) else error
            raise RunFailed(
                f"no snapshot can be written to {self.folder} ({reason}); {state}; continue with resume=true"
            ) from None
        here = [folder for folder in self._folders() if settled is None or int(folder.name) < settled]
        for old in here[: -self.keep]:
            shutil.rmtree(old)
        self._last = time.monotonic()

    def load(self) -> None:
        """Set :attr:`latest` to the newest that can be read, if there is any; of several workers, by all of them."""
        if not self.workers:
            for folder in reversed(self._folders()):
                if self._can_read(folder):
                    return
            return
        own = [sorted(int(f.name) for f in worker._folders()) for worker in self.workers.values()]
        texts = self._collectives.all_gather_text([json.dumps(own_steps) for own_steps in own])
        steps = set[int].intersection(*(set(json.loads(text)) for text in texts))
        for step in sorted(steps, reverse=True):
            read = [worker._can_read(worker.folder / f"{step:09d}") for worker in self.workers.values()]
            if bool(self._collectives.all_gather([torch.tensor([done]) for done in read]).all()):
                self.latest = next(iter(self.workers.values())).latest
                for worker in self.workers.values():
                    worker._forget_after(step)
                return
        for worker in self.workers.values():
            worker.latest = None

    def _forget_after(self, step: int) -> None:
        """Of what comes then, some workers would have snapshots of an earlier attempt, and others of this one."""
        for folder in self._folders():
            if int(folder.name) > step:
                shutil.rmtree(folder)

    def _can_read(self, folder: Path) -> bool:
        """Whether this is the latest now; removed if it is damaged, or it would count as the newest."""
        try:
            self.latest = _read(folder)
        except (OSError, ValueError, LookupError, TypeError, SafetensorError) as error:
            log.warning("%s cannot be used (%s); an older one is tried", folder, error)
            shutil.rmtree(folder, ignore_errors=True)
            return False
        return True

    def clear(self) -> None:
        """Remove them all, but for those of workers elsewhere."""
        self.latest = None
        for worker in self.workers.values():
            worker.clear()
        if not self.workers:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            with suppress(OSError):  # other workers' are there
                self.folder.rmdir()

    def _folders(self) -> list[Path]:
        """Oldest first."""
        return sorted(self.folder.glob("[0-9]" * 9))


def _read(folder: Path) -> Snapshot:
    with safe_open(folder / STATE, "pt") as file:
        found = json.loads((file.metadata() or {})[KEY])
        tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    if found["digest"] != _digest(tensors, found["about"]):
        raise ValueError("its digest is another")
    return Snapshot(Delta.load(folder / DELTA), tensors, found["about"])


def _digest(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].numpy().data)
    return digest.hexdigest()
