"""Every epoch of a run on disk: the first model once, then a delta an epoch."""

import shutil
from pathlib import Path

from safetensors.torch import save_model
from torch import nn

from fishexp.atomic import replacing
from fishexp.base import BASE
from fishexp.delta import Delta
from fishexp.errors import FishexpError

FOLDER = "checkpoints"


class Checkpoints:
    """The epochs of the run in ``folder``, one file each.

    ``epoch-0003.safetensors`` is a delta against the epoch before, ``keyframe-0010.safetensors`` against the first
    model.
    """

    def __init__(self, folder: Path) -> None:
        self.folder, self.base = folder / FOLDER, folder / BASE

    @property
    def last(self) -> int:
        """The number of epochs that are there."""
        return len(self._files())

    def begin(self, model: nn.Module) -> None:
        """Forget the epochs of an earlier run in the same folder; ``model`` is the first one of this."""
        if not self.base.exists():
            with replacing(self.base) as new:
                save_model(model, str(new))
        shutil.rmtree(self.folder, ignore_errors=True)
        self.folder.mkdir(parents=True)

    def add(self, epoch: int, delta: Delta) -> None:
        """Write ``epoch`` as a delta against the one before."""
        delta.save(self.folder / f"epoch-{epoch:04d}.safetensors")

    def add_keyframe(self, epoch: int, model: nn.Module) -> None:
        """Write ``epoch`` as a delta against the first model."""
        Delta.diff(self.base, model).save(self.folder / f"keyframe-{epoch:04d}.safetensors")

    def restore_(self, model: nn.Module, epoch: int) -> None:
        """Make ``model``, which has the weights of the first one, that of ``epoch``; 0 is the first one itself.

        Raises:
            FishexpError: If there is no such epoch.
            DeltaError: If a file is damaged or does not belong to the others.
        """
        files = self._files()
        if not 0 <= epoch <= len(files):
            raise FishexpError(f"epoch={epoch}: {self.folder} has the epochs 0 to {len(files)}")
        first = max((n for n in range(epoch) if files[n].name.startswith("keyframe")), default=0)
        for file in files[first:epoch]:
            Delta.load(file).apply_(model)

    def bytes(self) -> dict[str, int]:
        """Of all checkpoints together, of the largest, and of one on average."""
        sizes = [file.stat().st_size for file in self._files()]
        return {"checkpoints": sum(sizes), "largest_checkpoint": max(sizes), "delta": sum(sizes) // len(sizes)}

    def _files(self) -> list[Path]:
        """Those of epochs 1, 2, ..."""
        return sorted(self.folder.glob("*-[0-9]*.safetensors"), key=lambda file: int(file.stem.rpartition("-")[2]))
