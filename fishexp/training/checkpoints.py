"""The model of every epoch on disk: the weights that training began with (the base) once, then a delta an epoch."""

import os
import re
import shutil
from collections.abc import Collection, Iterator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import NamedTuple

from safetensors.torch import load_file, save_model
from torch import nn

from fishexp.delta import Delta
from fishexp.delta.fingerprint import Fingerprint, digest
from fishexp.delta.sources import source
from fishexp.errors import DeltaError, FishexpError, RunFailed
from fishexp.system.atomic import replacing, sync, writing

FOLDER = "checkpoints"  # of the epochs, in a run folder
BASE = "base.safetensors"  # the weights that training began with, in a run folder
SHARED = "bases"  # folder of the bases that the runs of a sweep share, in the folder of outputs


class Weights(NamedTuple):
    """Know weights by their fingerprints, to find out whether a file has them.

    Attributes:
        fingerprints: Name -> fingerprint of each tensor.
        tied: Another name of a tensor -> its name in ``fingerprints``.
        new: Names of tensors that the file may have too, whatever their values.
    """

    fingerprints: Mapping[str, Fingerprint]
    tied: Mapping[str, str]
    new: Collection[str] = ()

    @classmethod
    def of(cls, model: nn.Module) -> "Weights":
        """Take the weights and buffers of a model as they are now."""
        tensors = source(model)
        return cls(tensors.fingerprints(), tensors.tied)

    @classmethod
    def before(cls, delta: Delta) -> "Weights":
        """Take the weights that a delta is for; a new head stands in their file too."""
        return cls(delta.base, delta.tied, delta.moved)

    def are_in(self, file: Path) -> bool:
        """Tell whether a file holds these weights, all of them, to the bit."""
        if not file.exists():
            return False
        try:
            there = source(file).fingerprints()
        except (DeltaError, OSError):
            return False
        found = {self.tied.get(name, name): fingerprint for name, fingerprint in there.items()}
        return self.fingerprints.items() <= found.items() and found.keys() <= {*self.fingerprints, *self.new}


class Checkpoints:
    """Keep the model of each epoch of a run, one file an epoch.

    ``epoch-0003.safetensors`` is a delta against the epoch before. ``dense-0002.safetensors`` has all of the model.
    ``keyframe-0010.safetensors`` is a delta against the last dense epoch, or against the base if there is none.

    Args:
        folder: Folder of the run.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder / FOLDER, folder / BASE

    @property
    def last(self) -> int:
        """Return the last epoch that is there; 0 if there is none."""
        return max(self._files(), default=0)

    def begin(self, model: nn.Module) -> None:
        """Write ``model`` as the base, unless the base is there, and is ``model`` to the bit."""
        self._initial = Weights.of(model)
        if not self._initial.are_in(self.base):
            with writing(self.base), replacing(self.base) as new:
                save_model(model, str(new))
        with writing(self.folder):
            self.folder.mkdir(exist_ok=True)
            sync(self.folder.parent)

    def finish(self, epochs: int) -> None:
        """Read the base and the file of every epoch back, once all are written.

        Raises:
            RunFailed: If one is not what was written.
        """
        try:
            self.check(epochs)
        except FishexpError as error:
            raise RunFailed(f"{error}; somebody else was at the files; run it again") from None
        if not self._initial.are_in(self.base):
            raise RunFailed(f"{self.base} is not what was written; start again with resume=true")

    def clear(self) -> None:
        """Remove the epochs of an earlier run in the same folder."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def add(self, epoch: int, delta: Delta) -> None:
        """Write ``epoch`` as a delta against the epoch before."""
        self._save(delta, f"epoch-{epoch:04d}.safetensors")

    def add_keyframe(self, epoch: int, model: nn.Module) -> None:
        """Write ``epoch`` as a delta against the last dense epoch or the base."""
        weights = load_file(self.base)
        dense = [number for number, file in self._files().items() if file.name.startswith("dense")]
        if dense:
            self._read(max(dense), epoch).apply_(weights)
        self._save(Delta.diff(weights, model), f"keyframe-{epoch:04d}.safetensors")

    def add_dense(self, epoch: int, model: nn.Module) -> None:
        """Write all of the model after ``epoch``."""
        self._save(Delta.whole(model), f"dense-{epoch:04d}.safetensors")

    def _save(self, delta: Delta, name: str) -> None:
        """Write the file of an epoch.

        Raises:
            RunFailed: If it cannot be written.
        """
        with writing(self.folder / name):
            delta.save(self.folder / name)

    def restore_(self, model: nn.Module, epoch: int) -> None:
        """Give ``model``, which has the weights of the base, those of ``epoch``; 0 is the base itself.

        Raises:
            FishexpError: If the file of the epoch, or one on which it is built, is missing; names the last whole epoch.
            DeltaError: Likewise if it is damaged; or if a file does not belong to the others.
        """
        for number in self._chain(epoch):
            self._read(number, epoch).apply_(model)

    def check(self, epochs: int) -> None:
        """Read the file of every epoch from 1 to ``epochs``.

        Raises:
            FishexpError: If one is missing; names the last whole epoch.
            DeltaError: If one is damaged; likewise.
        """
        for number in range(1, epochs + 1):
            self._read(number, number)

    def _chain(self, epoch: int) -> Iterator[int]:
        """List the epochs whose files turn the base into the model of ``epoch``, in order."""
        kinds = {number: file.name.partition("-")[0] for number, file in self._files().items() if number <= epoch}
        dense = max((number for number, kind in kinds.items() if kind == "dense"), default=0)
        keyframe = max((n for n, kind in kinds.items() if n > dense and kind == "keyframe"), default=0)
        if dense:
            yield dense
        yield from range(keyframe or dense + 1, epoch + 1)

    def _read(self, number: int, epoch: int) -> Delta:
        """Read the file of an epoch, for the model of ``epoch``."""
        try:
            return self._file(number)
        except FishexpError as error:
            whole = f"the last whole epoch before it is {self._last_whole(min(epoch - 1, self.last))}"
            raise type(error)(f"epoch={epoch}: {error}; {whole}") from None

    def _file(self, number: int) -> Delta:
        """Read the file of an epoch."""
        file = self._files().get(number)
        if file is None:
            raise FishexpError(f"{self.folder} lacks *-{number:04d}.safetensors, the file of epoch {number}")
        try:
            return Delta.load(file)
        except OSError as error:
            raise DeltaError(f"{file} cannot be read ({error.strerror})") from None

    def _last_whole(self, epoch: int) -> int:
        """Find the last epoch, ``epoch`` or one before, whose files can all be read."""
        readable: dict[int, bool] = {}
        while not all(self._is_readable(number, readable) for number in self._chain(epoch)):
            epoch -= 1
        return epoch

    def _is_readable(self, number: int, known: dict[int, bool]) -> bool:
        """Tell whether the file of an epoch can be read; looked up in ``known``, or noted there."""
        if number not in known:
            try:
                self._file(number)
                known[number] = True
            except FishexpError:
                known[number] = False
        return known[number]

    def bytes(self) -> dict[str, int]:
        """Measure all checkpoints together, the largest, and the mean, in bytes."""
        sizes = [file.stat().st_size for file in self._files().values()]
        return {"checkpoints": sum(sizes), "largest_checkpoint": max(sizes), "delta": sum(sizes) // len(sizes)}

    def _files(self) -> dict[int, Path]:
        """Find the file of each epoch."""
        files = {
            file: re.fullmatch(r"(?:epoch|dense|keyframe)-(\d{4,9})", file.stem)
            for file in self.folder.glob("*.safetensors")
        }
        return {int(match[1]): file for file, match in files.items() if match}


def store_base(network: nn.Module, folder: Path, outputs: Path) -> None:
    """Write the weights that training begins with to a run folder, unless they are there, to the bit.

    The runs of a sweep share one file by hard links.
    """
    weights = Weights.of(network)
    if weights.are_in(folder / BASE):
        return
    shared = outputs / SHARED / f"{digest(weights.fingerprints)[:16]}.safetensors"
    if not weights.are_in(shared):
        with writing(shared):
            shared.parent.mkdir(exist_ok=True)
            with replacing(shared) as new:
                save_model(network, str(new))
    with writing(folder / BASE), replacing(folder / BASE) as new:
        new.unlink()
        try:
            os.link(shared, new)
        except OSError:  # a file system without links, or another run has just dropped the shared file
            save_model(network, str(new))


def drop_base(folder: Path, outputs: Path) -> None:
    """Remove the base of a run that does not need it; the shared file goes with the last run that does."""
    base = folder / BASE
    if not base.exists():
        return
    inode = base.stat().st_ino
    base.unlink()
    for file in (outputs / SHARED).glob("*.safetensors"):
        with suppress(FileNotFoundError):  # another run was faster
            if file.stat().st_ino == inode and file.stat().st_nlink == 1:
                file.unlink()
