"""The lock of a run's folder: it holds one run at a time, and is the same folder from the first line to the last."""

import fcntl
import os
from pathlib import Path
from typing import IO

from fishexp.errors import BusyError, FishexpError, RunFailed

_LOCK = ".lock"  # file in the folder of a run


def lock(folder: Path) -> IO[str]:
    """Make the folder of a run, and lock it, so that no other process carries out the same run.

    Returns:
        The lock; it is held until it is closed.

    Raises:
        BusyError: If another process holds it.
        FishexpError: If the folder cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / _LOCK).open("w")
    except OSError as error:
        raise FishexpError(f"{folder} cannot be written ({error.strerror}); choose another with outputs=") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BusyError(f"{folder}: another process is at this very run; wait for it, or change the seed") from None
    return file


def check_same(folder: Path, held: IO[str] | None) -> None:
    """Check that the folder which was locked is still there, under its name; without a lock there is none to check.

    Raises:
        RunFailed: If it was removed or moved, whatever has come in its place.
    """
    if held is None:
        return
    try:
        same = os.path.samestat(os.fstat(held.fileno()), (folder / _LOCK).stat())
    except OSError:
        same = False
    if not same:
        raise RunFailed(f"{folder} was removed or moved while the run went on, with what was in it; run it again")
