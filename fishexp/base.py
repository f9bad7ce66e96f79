"""The model that training began with: on disk once, however many runs began with it."""

import os
from contextlib import suppress
from pathlib import Path

from safetensors.torch import save_model
from torch import nn

from fishexp.atomic import replacing
from fishexp.delta.fingerprint import digest
from fishexp.delta.tensors import source

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
