"""Folders with all that is in them, behind links too."""

import os
from collections.abc import Iterator
from pathlib import Path


def walk(folder: Path) -> Iterator[tuple[Path, list[str], list[str]]]:
    """Walk a folder as ``os.walk`` does, and the folders that links lead to, but never round and round.

    Yields:
        A folder, the names of those in it, of which the caller may take some out, and the names of its files.
    """
    for here, folders, files in os.walk(folder, followlinks=True):
        place = Path(here)
        above = {path.resolve() for path in (place, *place.parents)}
        folders[:] = [name for name in folders if (place / name).resolve() not in above]
        yield place, folders, files
