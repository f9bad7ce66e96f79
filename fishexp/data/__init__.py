"""What is learned: one file a data set, each with ``load(*, ...) -> Data``."""

import os
from pathlib import Path


def default_root(name: str) -> Path | None:
    """``$FISHEXP_DATA/name`` where that variable is set: one folder for all data sets."""
    base = os.environ.get("FISHEXP_DATA")
    return Path(base, name) if base else None
