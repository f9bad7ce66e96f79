"""Snapshots: the state from which an interrupted run resumes as if nothing had happened."""

import hashlib
import json
import logging
import shutil
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from math import prod
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from fishexp.delta import Delta, planes
from fishexp.delta.fingerprint import CODES, DTYPES, raw
from fishexp.errors import FishexpError, RunFailed
from fishexp.system import signals
from fishexp.system.atomic import sync
from fishexp.training.collectives import Collectives, InProcessCollectives

log = logging.getLogger(__name__)

DELTA, STATE = "delta.safetensors", "state.safetensors"  # files of a snapshot
KEY = "fishexp.snapshot"  # of the metadata of STATE
_PLANE = "/plane"  # what comes between the name of a tensor and the number of its plane


@dataclass(frozen=True)
class Snapshot:
    """Hold the state of a run between two steps.

    Attributes:
        delta: Weights and buffers against those that training began with, or those of the last checkpoint.
        tensors: State of the optimiser and of the random streams.
        about: Progress and the like, values for JSON.
    """

    delta: Delta
    tensors: dict[str, Tensor]
    about: dict[str, Any]


class Snapshots:
    """Keep the newest snapshots of a run, each a folder that is there completely or not at all.

    Args:
        folder: Folder of the snapshots; made when the first is written.
        minutes: Minutes from one snapshot to the next.
        keep: Snapshots that stay on disk.
        collectives: Connects the workers of the run. Each of several workers has its own snapshots, at the same steps.
        facts: Called at each snapshot for what the run adds to :attr:`Snapshot.about`.

    Attributes:
        workers: rank -> the snapshots of each worker in this process; empty if the run has a single worker.
    """

    def __init__(
        self,
        folder: Path,
        minutes: float,
        keep: int = 2,
        collectives: Collectives | None = None,
        facts: Callable[[], dict[str, Any]] = dict,
    ) -> None:
        self.folder, self.minutes, self.keep, self._facts = folder, minutes, keep, facts
        self._collectives = collectives or InProcessCollectives()
        self._last = time.monotonic()
        self.workers: dict[int, Snapshots] = {}
        if self._collectives.world_size > 1:
            ranks = self._collectives.local_ranks
            self.workers = {rank: Snapshots(folder / f"worker{rank}", minutes, keep, facts=facts) for rank in ranks}

    def due(self) -> bool:
        """Tell whether it is time for another snapshot, or for a last one."""
        return signals.last_snapshot_wanted() or time.monotonic() - self._last >= 60 * self.minutes

    def save(self, steps: int, snapshot: Snapshot, settled: int | None = None) -> None:
        """Write the state after ``steps`` optimiser steps; older snapshots go once it is safe on disk.

        Args:
            settled: Steps that all workers are known to have taken. Other workers may not have later snapshots yet, so
                that older ones stay. None if there are no other workers.

        Raises:
            RunFailed: If it cannot be written; those before it are untouched.
        """
        folder, unfinished = self.folder / f"{steps:09d}", self.folder / "unfinished"
        try:
            shutil.rmtree(unfinished, ignore_errors=True)
            unfinished.mkdir(parents=True)
            snapshot.delta.save(unfinished / DELTA)
            about = {**snapshot.about, **self._facts()}
            digest = _digest(snapshot.tensors, about)
            tensors, coded = _as_planes(snapshot.tensors)
            text = json.dumps({"about": about, "digest": digest, "planes": coded})
            save_file(tensors, unfinished / STATE, {KEY: text})
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

    def load(self) -> list[Snapshot]:
        """Load the newest snapshot that can be read; of several workers the newest that all of them can read.

        Returns:
            The snapshot of each worker in this process; empty if there is none to resume from.
        """
        if not self.workers:
            read = (_read_or_remove(folder) for folder in reversed(self._folders()))
            return list(islice((snapshot for snapshot in read if snapshot is not None), 1))
        own = [sorted(int(f.name) for f in worker._folders()) for worker in self.workers.values()]
        texts = self._collectives.all_gather_text([json.dumps(own_steps) for own_steps in own])
        steps = set[int].intersection(*(set(json.loads(text)) for text in texts))
        for step in sorted(steps, reverse=True):
            read = [_read_or_remove(worker.folder / f"{step:09d}") for worker in self.workers.values()]
            whole = [torch.tensor([snapshot is not None]) for snapshot in read]
            if bool(self._collectives.all_gather(whole).all()):
                for worker in self.workers.values():
                    worker._remove_after(step)
                return [snapshot for snapshot in read if snapshot is not None]
        return []

    def _remove_after(self, step: int) -> None:
        """Remove later snapshots: some workers would have those of an earlier attempt, and others of this one."""
        for folder in self._folders():
            if int(folder.name) > step:
                shutil.rmtree(folder)

    def clear(self) -> None:
        """Remove all snapshots of the workers in this process."""
        for worker in self.workers.values():
            worker.clear()
        if not self.workers:
            shutil.rmtree(self.folder, ignore_errors=True)
        else:
            with suppress(OSError):  # those of other workers are there
                self.folder.rmdir()

    def _folders(self) -> list[Path]:
        """List the folders of the snapshots, oldest first."""
        return sorted(self.folder.glob("[0-9]" * 9))


def _read_or_remove(folder: Path) -> Snapshot | None:
    """Read a snapshot; remove it if it is damaged, as it would count as the newest, and return None.

    Raises:
        FishexpError: If its files are there and cannot be opened: it may be whole.
    """
    try:
        for file in (STATE, DELTA):  # safetensors says of any that it cannot open that it is missing
            (folder / file).open("rb").close()
        return _read(folder)
    except (FileNotFoundError, ValueError, LookupError, TypeError, SafetensorError) as error:
        log.warning("%s cannot be used (%s); an older one is tried", folder, error)
        shutil.rmtree(folder, ignore_errors=True)
        return None
    except OSError as error:
        raise FishexpError(
            f"the snapshot {folder} cannot be read ({error.strerror or error}); it is left as it is: mend that, or "
            "begin anew with resume=false"
        ) from None


def _read(folder: Path) -> Snapshot:
    with safe_open(folder / STATE, "pt") as file:
        found = json.loads((file.metadata() or {})[KEY])
        stored = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    tensors = _from_planes(stored, found["planes"])
    if found["digest"] != _digest(tensors, found["about"]):
        raise ValueError("its digest is another")
    return Snapshot(Delta.load(folder / DELTA), tensors, found["about"])


def _as_planes(tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], dict[str, tuple[str, list[int]]]]:
    """Take those tensors apart that take fewer bytes as planes, see :mod:`fishexp.delta.planes`.

    Returns:
        What to store, and name -> type and shape of each tensor of which that is planes.
    """
    stored: dict[str, Tensor] = {}
    coded: dict[str, tuple[str, list[int]]] = {}
    for name, tensor in tensors.items():
        found = planes.split(tensor.flatten())
        if found is None:
            stored[name] = tensor
        else:
            stored |= {f"{name}{_PLANE}{i}": plane for i, plane in enumerate(found)}
            coded[name] = CODES[tensor.dtype], list(tensor.shape)
    return stored, coded


def _from_planes(stored: dict[str, Tensor], coded: Mapping[str, tuple[str, list[int]]]) -> dict[str, Tensor]:
    """Put the tensors together that :func:`_as_planes` took apart."""
    tensors = dict(stored)
    for name, (code, shape) in coded.items():
        found = [tensors.pop(f"{name}{_PLANE}{i}") for i in range(planes.width(DTYPES[code]))]
        tensors[name] = planes.join(found, prod(shape), DTYPES[code]).view(shape)
    return tensors


def _digest(tensors: dict[str, Tensor], about: dict[str, Any]) -> str:
    digest = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(raw(tensors[name]))
    return digest.hexdigest()
