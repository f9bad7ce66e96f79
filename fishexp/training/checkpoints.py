"""The model of every epoch on disk: the weights that training began with (the base) once, then a delta an epoch."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file, save_model
from torch import nn

from fishexp.delta import Delta
from fishexp.delta.fingerprint import digest
from fishexp.delta.sources import source
from fishexp.errors import FishexpError
from fishexp.system.atomic import replacing, sync

FOLDER = "checkpoints"  # of the epochs, in a run folder
BASE = "base.safetensors"  # the weights that training began with, in a run folder
SHARED = "bases"  # folder of the bases that the runs of a sweep share, in the folder of outputs


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
        """Write ``model`` as the base, unless the base is there."""
        if not self.base.exists():
            with replacing(self.base) as new:
                save_model(model, str(new))
        self.folder.mkdir(exist_ok=True)
        sync(self.folder.parent)

    def clear(self) -> None:
        """Remove the epochs of an earlier run in the same folder."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def add(self, epoch: int, delta: Delta) -> None:
        """Write ``epoch`` as a delta against the epoch before."""
        delta.save(self.folder / f"epoch-{epoch:04d}.safetensors")

    def add_keyframe(self, epoch: int, model: nn.Module) -> None:
        """Write ``epoch`` as a delta against the last dense epoch or the base."""
        weights = load_file(self.base)
        for file in self._chain(epoch - 1)[:1]:
            if file.name.startswith("dense"):
                Delta.load(file).apply_(weights)
        Delta.diff(weights, model).save(self.folder / f"keyframe-{epoch:04d}.safetensors")

    def add_dense(self, epoch: int, model: nn.Module) -> None:
        """Write all of the model after ``epoch``."""
        Delta.whole(model).save(self.folder / f"dense-{epoch:04d}.safetensors")

    def restore_(self, model: nn.Module, epoch: int) -> None:
        """Give ``model``, which has the weights of the base, those of ``epoch``; 0 is the base itself.

        Raises:
            FishexpError: If there is no such epoch.
            DeltaError: If a file is damaged or does not belong to the others.
        """
        if not 0 <= epoch <= self.last:
            raise FishexpError(f"epoch={epoch}: {self.folder} has the epochs 0 to {self.last}")
        for file in self._chain(epoch):
            Delta.load(file).apply_(model)

    def _chain(self, epoch: int) -> list[Path]:
        """List the files that turn the base into the model of ``epoch``, in order."""
        files = {number: file for number, file in self._files().items() if number <= epoch}
        dense = max((n for n, file in files.items() if file.name.startswith("dense")), default=0)
        keyframe = max((n for n, file in files.items() if n > dense and file.name.startswith("keyframe")), default=0)
        needed = [dense] * (dense > 0) + list(range(keyframe or dense + 1, epoch + 1))
        for number in needed:
            if number not in files:
                raise FishexpError(f"epoch={epoch}: {self.folder} lacks epoch {number}, on which it is built")
        return [files[number] for number in needed]

    def bytes(self) -> dict[str, int]:
        """Measure all checkpoints together, the largest, and the mean, in bytes."""
        sizes = [file.stat().st_size for file in self._files().values()]
        return {"checkpoints": sum(sizes), "largest_checkpoint": max(sizes), "delta": sum(sizes) // len(sizes)}

    def _files(self) -> dict[int, Path]:
        """Find the file of each epoch."""
        files = self.folder.glob("[a-z]*-[0-9]*.safetensors")
        return {int(file.stem.rpartition("-")[2]): file for file in files}


def store_base(network: nn.Module, folder: Path, outputs: Path) -> None:
    """Write the weights that training begins with to a run folder; the runs of a sweep share one file by hard links."""
    shared = outputs / SHARED / f"{digest(source(network).fingerprints())[:16]}.safetensors"
    if not shared.exists():
        shared.parent.mkdir(exist_ok=True)
        with replacing(shared) as new:
            save_model(network, str(new))
    with replacing(folder / BASE) as new:
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
