"""Processes for tests that begin with everything imported: they are forked from a server that did that once."""

import multiprocessing
from typing import Any

# what a run of the digits needs, and not `fishexp.__main__` itself, which runs anew in every process
_PRELOADED = (
    "pytest",
    "sklearn.datasets",
    "torchvision.models.resnet",
    "fishexp.data.digits",
    "fishexp.models.resnet",
    "fishexp.run.help",
    "fishexp.run.launch.local",
)


def context() -> Any:
    """Return the context whose processes the server forks."""
    found = multiprocessing.get_context("forkserver")
    found.set_forkserver_preload(list(_PRELOADED))
    return found
