"""The lock of a run's folder: it holds one run at a time, and is the same folder from the first line to the last."""

import fcntl
import os
from contextlib import suppress
from pathlib import Path
from typing import IO

from fishexp.errors import BusyError, FishexpError, RunFailed
from fishexp.run.record import RECORD

LOCK = ".lock"  # file in the folder of a run


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
        file = (folder / LOCK).open("w")
    except OSError as error:
        raise FishexpError(f"{folder} cannot be written ({error.strerror}); choose another with outputs=") from None
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.close()
        raise BusyError(f"{folder}: another process is at this very run; wait for it, or change the seed") from None
    return file


def is_going_on(folder: Path) -> bool:
    """Tell whether a process is at the run of a folder.

    The lock is looked at only where no record was written since it was taken, as a run that starts at this very moment
    would take that for another process.
    """
    try:
        taken = (folder / LOCK).stat().st_mtime_ns
        with suppress(FileNotFoundError):
            if (folder / RECORD).stat().st_mtime_ns >= taken:
                return False
        with (folder / LOCK).open() as file:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    return False


def check_same(folder: Path, held: IO[str] | None) -> None:
    """Check that the folder which was locked is still there, under its name; without a lock there is none to check.

    Raises:
        RunFailed: If it was removed or moved, whatever has come in its place.
    """
    if held is None:
        return
    try:
        same = os.path.samestat(os.fstat(held.fileno()), (folder / LOCK).stat())
    except OSError:
        same = False
    if not same:
        raise RunFailed(f"{folder} was removed or moved while the run went on, with what was in it; run it again")
