"""Data sets: a file for each, with ``load(*, ...) -> Dataset``, and how their examples are held and measured."""

import os
from pathlib import Path


def default_root(name: str) -> Path | None:
    """Return the folder ``$FISHEXP_DATA/name``, or None if that variable is not set."""
    base = os.environ.get("FISHEXP_DATA")
    return Path(base, name) if base else None
