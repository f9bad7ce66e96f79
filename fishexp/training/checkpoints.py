"""Every epoch of a run on disk: the first model once, then a delta an epoch."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from safetensors.torch import load_file, save_model
from torch import nn

from fishexp.delta import Delta
from fishexp.delta.fingerprint import digest
from fishexp.delta.tensors import source
from fishexp.errors import FishexpError
from fishexp.system.atomic import replacing, sync

FOLDER = "checkpoints"


class Checkpoints:
    """The epochs of the run in ``folder``, one file each.

    ``epoch-0003.safetensors`` is a delta against the epoch before. ``dense-0002.safetensors`` has all of the model.
    ``keyframe-0010.safetensors`` is a delta against the last dense epoch, or the first model if there is none.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder / FOLDER, folder / BASE

    @property
    def last(self) -> int:
        """The last epoch that is there; 0 if there is none."""
        return max(self._files(), default=0)

    def begin(self, model: nn.Module) -> None:
        """``model`` is the first one."""
        if not self.base.exists():
            with replacing(self.base) as new:
                save_model(model, str(new))
        self.folder.mkdir(exist_ok=True)
        sync(self.folder.parent)

    def clear(self) -> None:
        """Forget the epochs of an earlier run in the same folder."""
        if self.folder.exists():
            shutil.rmtree(self.folder)

    def add(self, epoch: int, delta: Delta) -> None:
        """Write ``epoch`` as a delta against the one before."""
        delta.save(self.folder / f"epoch-{epoch:04d}.safetensors")

    def add_keyframe(self, epoch: int, model: nn.Module) -> None:
        """Write ``epoch`` as a delta against the last dense epoch or the first model."""
        weights = load_file(self.base)
        for file in self._chain(epoch - 1)[:1]:
            if file.name.startswith("dense"):
                Delta.load(file).apply_(weights)
        Delta.diff(weights, model).save(self.folder / f"keyframe-{epoch:04d}.safetensors")

    def add_dense(self, epoch: int, model: nn.Module) -> None:
        """Write all of the model after ``epoch``."""
        Delta.whole(model).save(self.folder / f"dense-{epoch:04d}.safetensors")

    def restore_(self, model: nn.Module, epoch: int) -> None:
        """Make ``model``, which has the weights of the first one, that of ``epoch``; 0 is the first one itself.

        Raises:
            FishexpError: If there is no such epoch.
            DeltaError: If a file is damaged or does not belong to the others.
        """
        if not 0 <= epoch <= self.last:
            raise FishexpError(f"epoch={epoch}: {self.folder} has the epochs 0 to {self.last}")
        for file in self._chain(epoch):
            Delta.load(file).apply_(model)

    def _chain(self, epoch: int) -> list[Path]:
        """What makes the model of ``epoch`` of the first one."""
        files = {number: file for number, file in self._files().items() if number <= epoch}
        dense = max((n for n, file in files.items() if file.name.startswith("dense")), default=0)
        keyframe = max((n for n, file in files.items() if n > dense and file.name.startswith("keyframe")), default=0)
        needed = [dense] * (dense > 0) + list(range(keyframe or dense + 1, epoch + 1))
        for number in needed:
            if number not in files:
                raise FishexpError(f"epoch={epoch}: {self.folder} lacks epoch {number}, on which it is built")
        return [files[number] for number in needed]

    def bytes(self) -> dict[str, int]:
        """Of all checkpoints together, of the largest, and of one on average."""
        sizes = [file.stat().st_size for file in self._files().values()]
        return {"checkpoints": sum(sizes), "largest_checkpoint": max(sizes), "delta": sum(sizes) // len(sizes)}

    def _files(self) -> dict[int, Path]:
        """Epoch -> its file."""
        files = self.folder.glob("[a-z]*-[0-9]*.safetensors")
        return {int(file.stem.rpartition("-")[2]): file for file in files}


BASE, SHARED = "base.safetensors", "bases"


def store_base(network: nn.Module, folder: Path, outputs: Path) -> None:
    """Leave the weights as they are in ``folder``; a hard link, so that the runs of a sweep share one file."""
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
    """Of a run that does not need it; the shared file goes with the last that does."""
    base = folder / BASE
    if not base.exists():
        return
    inode = base.stat().st_ino
    base.unlink()
    for file in (outputs / SHARED).glob("*.safetensors"):
        with suppress(FileNotFoundError):  # another run was faster
            if file.stat().st_ino == inode and file.stat().st_nlink == 1:
                file.unlink()
