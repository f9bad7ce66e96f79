"""The removal of run folders: of runs that are not going on, and of nothing else; records stay as they are."""

import os
import re
import shutil
from collections.abc import Sequence
from contextlib import ExitStack, suppress
from pathlib import Path

from fishexp.errors import FishexpError
from fishexp.run.record import RECORD
from fishexp.run.run_folder import LOCK, lock
from fishexp.runs.find import Run
from fishexp.system.text_table import write_bytes

# name of a run folder, and files of which one is in each
_NAME = re.compile(r"seed\d+-[0-9a-f]{8}")
_ONE_OF = (RECORD, "config.yaml", LOCK)


def remove(runs: Sequence[Run], *, ask: bool) -> list[str]:
    """Remove the folders of runs, all of them or none; return a line about each.

    Args:
        ask: Have the user confirm it.

    Raises:
        FishexpError: If one is going on, has no folder, or what is there is no run folder; or the user says no.
    """
    folders = [_checked(run) for run in runs]
    sizes = [_size(folder) for folder in folders]
    with ExitStack() as held:
        for folder in folders:
            held.enter_context(lock(folder))
        if ask:
            _confirm(folders, sum(sizes))
        for run, folder in zip(runs, folders, strict=True):
            _remove(folder, run.outputs)
    return [
        f"{folder} is removed ({write_bytes(size)}); its record stays{f' in {run.file}' if run.file else ' nowhere'}"
        for run, folder, size in zip(runs, folders, sizes, strict=True)
    ]


def _checked(run: Run) -> Path:
    """Return the folder of a run, if it is one, and no link leads to it or out of it."""
    folder = run.folder
    if folder is None:
        raise FishexpError(f"the folder of run {run.id} is gone already; its record stays in {run.file}")
    inside = folder.absolute().relative_to(run.outputs.absolute())
    if folder.resolve() != run.outputs.resolve() / inside:
        raise FishexpError(f"{folder} is behind a link, which is not followed; remove it by hand")
    if not _NAME.fullmatch(folder.name) or not any((folder / name).is_file() for name in _ONE_OF):
        raise FishexpError(f"{folder} is no folder of a run; remove it by hand")
    if (folder / LOCK).is_symlink():
        raise FishexpError(f"{folder / LOCK} is a link, as no run leaves; remove it by hand")
    return folder


def _size(folder: Path) -> int:
    """Count the bytes of the files in a folder."""
    files = (Path(here, name) for here, _, names in os.walk(folder) for name in names)
    return sum(file.lstat().st_size for file in files)


def _confirm(folders: Sequence[Path], size: int) -> None:
    print("\n".join(map(str, folders)))
    try:
        answer = input(f"remove {len(folders)} folder{'s' * (len(folders) > 1)}, {write_bytes(size)}? [y/N] ")
    except EOFError:
        answer = ""
        print()
    if answer.strip().lower() not in ("y", "yes"):
        raise FishexpError("nothing is removed; answer y, or give --yes")


def _remove(folder: Path, outputs: Path) -> None:
    """Remove a run folder, what it shares with no other run, and the folders above it that are empty then."""
    from fishexp.training.checkpoints import drop_base  # which needs torch

    drop_base(folder, outputs)
    shutil.rmtree(folder)
    with suppress(OSError):  # not empty
        for above in folder.parents:
            if above.absolute() == outputs.absolute():
                return
            above.rmdir()
