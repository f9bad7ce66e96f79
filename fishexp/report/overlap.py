"""The overlap of masks: which share of the weights that one of them keeps another keeps, too."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import mean
from typing import Any, TypeAlias

import numpy as np

# seed -> (kept,) positions of the kept weights, see :func:`kept_positions`
Masks: TypeAlias = Mapping[int, "np.ndarray[Any, Any]"]


def masks_of(runs: Iterable[Mapping[str, Any]], deltas: Mapping[str, Path]) -> Masks:
    """Read the masks of runs whose deltas are at hand.

    Args:
        runs: Records of runs that differ in the seed alone.
        deltas: run_id -> the run's delta.

    Raises:
        FishexpError: As :func:`kept_positions` does.
    """
    found = {}
    for run in runs:
        file = deltas.get(run["run_id"])
        positions = kept_positions(file) if file is not None else None
        if positions is not None:
            found[run["config"]["seed"]] = positions
    return found


def kept_positions(file: Path) -> "np.ndarray[Any, Any] | None":
    """Read from a delta which entries the run's mask kept, where it kept a part of a weight.

    Returns:
        (kept,) their positions, all weights one behind the other by name; None if all were kept whole or not at all.

    Raises:
        FishexpError: If the file is damaged or of a version unknown here.
    """
    from fishexp.delta import Delta  # and torch with it: records alone need neither

    delta, start, positions = Delta.load(file), 0, []
    for name in sorted(delta.result):
        moved = delta.moved.get(name)
        if moved is not None and moved.kept is not None:
            positions.append(moved.kept.numpy() + start)
        start += delta.result[name].entries
    return np.concatenate(positions) if positions else None


def overlap(own: Masks, theirs: Masks) -> float | None:
    """Compute which share of the weights that ``own`` keep ``theirs`` keep, too: the mean over seeds of both."""
    seeds = own.keys() & theirs.keys()
    return mean(float(np.isin(own[seed], theirs[seed], assume_unique=True).mean()) for seed in seeds) if seeds else None
