"""Where the words of a worker go."""

import os
from collections.abc import Collection
from pathlib import Path


def log_file(folder: Path, rank: int) -> Path:
    """The log of a worker, which for the first one is that of the run."""
    return folder / f"workers/{rank}.txt" if rank else folder / "log.txt"


def redirect(folder: Path, rank: int, streams: Collection[int]) -> None:
    """Add what comes through these file descriptors of the process, whoever writes it, to the worker's log."""
    file = log_file(folder, rank)
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a") as opened:
        for stream in streams:
            os.dup2(opened.fileno(), stream)
