"""What merges cost, before a run: bytes that each worker sends, and seconds on a link of its own."""

import math
from typing import NamedTuple

from fishexp.training.collectives import pieces

DENSE = 4  # bytes of a weight where all are sent, and of a running statistic
HEADER = 40  # bytes by which workers check each other; a few more where many running statistics move
CROWDS = (2, 4, 8, 16, 64, 256, 1024)  # of workers
TRAINING = 0.9  # of the time: with less, merges take too much of it


class Link(NamedTuple):
    """What each worker is connected by. It sends while it receives."""

    bandwidth: float  # megabits a second
    latency: float  # milliseconds from one worker to another


class Cost(NamedTuple):
    """Of a merge, for each worker."""

    bytes: int  # sent, without headers of protocols
    seconds: float


class Traffic(NamedTuple):
    """What workers exchange in a merge, without the scores of a new mask.

    Attributes:
        weights: Of the model.
        kept: Weights that each worker moves, ``head`` included.
        head: Those of the classifier, which all workers move.
        buffers: Running statistics, sent as float32.
        disjoint: Beside the head, no two workers move the same weight, as long as there are enough.
        value_bytes: Of a kept weight as it is sent.
    """

    weights: int
    kept: int
    head: int
    buffers: int
    disjoint: bool
    value_bytes: int

    def cost(self, workers: int, link: Link) -> Cost:
        """Of a merge of the kept weights."""
        shared = self.head if self.disjoint else self.kept
        own = min(self.kept - shared, (self.weights - shared) // workers)
        kept = _combined(workers, shared, self.value_bytes), _gathered(workers, own * self.value_bytes)
        return _cost([_gathered(workers, HEADER), *kept, _combined(workers, self.buffers, DENSE)], link)

    def dense(self, workers: int, link: Link) -> Cost:
        """Of a merge of all weights."""
        parts = [_combined(workers, entries, DENSE) for entries in (self.weights, self.buffers)]
        return _cost([_gathered(workers, HEADER), *parts], link)


def foretell(traffic: Traffic, workers: int, sync_every: int, warmup_epochs: int, link: Link) -> list[str]:
    """Lines that tell whether merges are worth their time: a table, and what it means for this run.

    Args:
        workers: Of this run, two or more.
        sync_every: Steps from one merge to the next.
        warmup_epochs: Epochs in which all weights train.
    """
    crowds = sorted({*CROWDS, workers})
    costs = {crowd: (traffic.cost(crowd, link), traffic.dense(crowd, link)) for crowd in crowds}
    rows = [["workers", "MB a merge", "seconds", "dense MB", "seconds"]]
    for crowd, pair in costs.items():
        cells = [cell for cost in pair for cell in (_short(cost.bytes / 1e6), _short(cost.seconds))]
        rows.append([f"{crowd:,}", *cells])
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = ["  ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]
    lines[1 + crowds.index(workers)] += "  <- this run"

    kept, dense = costs[workers]
    step, dense_step = (_short(cost.seconds * TRAINING / (1 - TRAINING) / sync_every) for cost in (kept, dense))
    says = f"Worth it at {link.bandwidth:g} Mb/s and {link.latency:g} ms if a step takes {step} s or more "
    says += f"(sync_every={sync_every}): then {TRAINING:.0%} of the time goes into training."
    if dense.seconds > 1.1 * kept.seconds:
        times = _short(dense.seconds / kept.seconds)
        says += f" Merges of all weights, {times} times slower, want steps of {dense_step} s."
    elif traffic.kept < traffic.weights:
        says += " Merges of all weights take no longer."
    if warmup_epochs and traffic.kept < traffic.weights:
        says += f" Those of the first {warmup_epochs} epochs are of all weights."
    return [*lines, says]


def _cost(parts: list[tuple[int, int]], link: Link) -> Cost:
    sent, waits = (sum(column) for column in zip(*parts, strict=True))
    return Cost(sent, sent * 8 / (link.bandwidth * 1e6) + waits * link.latency / 1e3)


def _combined(workers: int, entries: int, value_bytes: int) -> tuple[int, int]:
    """Bytes, and latencies one after the other: all parts at once, and round a ring what became of them."""
    parts = [part for _, part in pieces(entries, workers)]
    return 2 * (workers - 1) * sum(parts) * value_bytes, workers * len(parts)


def _gathered(workers: int, size: int) -> tuple[int, int]:
    """The same of what goes to all others, round a ring."""
    return (workers - 1) * size, (workers - 1) * (size > 0)


def _short(number: float) -> str:
    """Three digits or so."""
    if number == 0:
        return "0"
    digits = 2 - math.floor(math.log10(number))
    return f"{number:,.{min(max(digits, 0), 4)}f}"
