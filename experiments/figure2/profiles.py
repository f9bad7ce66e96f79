"""The profiles of Figure 2: how large it may be made."""

from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product

from experiments.lib.sentences import LARGE, SMALL, Cell, Task, study
from experiments.lib.study import Study

KEEPS = (0.0002, 0.001, 0.005, 0.021)
SAMPLES = (32, 256, 1024)
LABELS = ("true_label", "expected", "sampled")


def _cells(keeps: Sequence[float], samples: Sequence[int], labels: Sequence[str]) -> Iterator[Cell]:
    """Yield the cells of the grid."""
    for keep, count, label in product(keeps, samples, labels):
        yield Cell("fish", keep, samples=count, labels=label)


def _study(
    task: Task, keeps: Sequence[float], samples: Sequence[int], labels: Sequence[str], seeds: int
) -> Study[Cell]:
    """Return the study of a grid; cells take the rate chosen for their budget with 1,024 examples, true labels."""
    cells = list(_cells(keeps, samples, labels))
    sources = {cell: replace(cell, samples=1024, labels="true_label") for cell in cells}
    return replace(study(task, cells, range(seeds)), sources=sources)


PROFILES: dict[str, Sequence[Study[Cell]]] = {
    "cpu": [_study(SMALL["sst2"], (0.005,), (*SAMPLES, 3000), LABELS, 3)],
    "gpu": [
        _study(LARGE["sst2"], KEEPS, (*SAMPLES, 16384), LABELS, 3),
        _study(LARGE["stsb"], KEEPS, (*SAMPLES, 5749), LABELS[:1], 3),
    ],
}
