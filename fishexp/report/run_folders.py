"""Finding files of runs in the folders that hold run folders."""

from collections.abc import Sequence
from pathlib import Path

# a run folder in one of outputs: DATA/MODEL/METHOD/seed0-RUN_ID; experiments have one outputs each, side by side
_PATTERNS = ("*/*/*/seed*-*", "*/*/*/*/seed*-*")


def run_folders(outputs: Path) -> list[Path]:
    """List the run folders in a folder of outputs, whatever is in them."""
    return [folder for pattern in _PATTERNS for folder in sorted(outputs.glob(pattern)) if folder.is_dir()]


def files_named(name: str, folders: Sequence[Path]) -> dict[str, Path]:
    """Find the files of a name in all run folders in ``folders``: run_id -> file."""
    files = (file for folder in folders for pattern in _PATTERNS for file in sorted(folder.glob(f"{pattern}/{name}")))
    return {file.parent.name.rpartition("-")[2]: file for file in files}
