"""The cost of merges, before a run: bytes that each worker sends, and seconds on a link of its own."""

import math
from collections.abc import Collection
from typing import NamedTuple

from torch import nn

from fishexp.distributed.synchronizer import Wire, header_bytes
from fishexp.sparse.parameter import weights
from fishexp.system.text_table import aligned_text
from fishexp.training.collectives import pieces

# bytes of a weight where all weights are sent, and of an entry of a buffer
_FLOAT32_BYTES = 4
# numbers of workers in the table
_WORLD_SIZES = (2, 4, 8, 16, 64, 256, 1024)
# share of the time for training below which merges take too much
_TRAINING_SHARE = 0.9
# how many times slower merges of all weights have to be to be called slower
_SLOWER = 1.1


class Link(NamedTuple):
    """Describe what connects each worker; it sends and receives at the same time.

    Attributes:
        bandwidth: Megabits a second.
        latency: Milliseconds from one worker to another.
    """

    bandwidth: float
    latency: float


class Cost(NamedTuple):
    """Hold what a merge costs each worker.

    Attributes:
        bytes: Bytes sent, without headers of network protocols.
        seconds: Seconds that it takes.
    """

    bytes: int
    seconds: float


class MergeVolume(NamedTuple):
    """Describe what workers exchange in a merge, without the scores of a new mask.

    Attributes:
        weights: Weights of the model.
        kept: Weights that each worker trains, ``head`` included.
        head: Weights of the classifier, which all workers train.
        buffer_tensors: Floating-point buffers of the model, such as running statistics.
        buffer_entries: Entries of these buffers, sent as float32.
        disjoint: Beside the head, no two workers train the same weight, as long as there are enough.
        value_bytes: Bytes of a kept weight as it is sent.
    """

    weights: int
    kept: int
    head: int
    buffer_tensors: int
    buffer_entries: int
    disjoint: bool
    value_bytes: int

    def cost(self, world_size: int, link: Link) -> Cost:
        """Predict the cost of a merge of the kept weights."""
        shared = self.head if self.disjoint else self.kept
        own = min(self.kept - shared, (self.weights - shared) // world_size)
        kept = (
            _ordered_all_reduce(world_size, shared, self.value_bytes),
            _all_gather(world_size, own * self.value_bytes),
        )
        return _sum([self._header(world_size), *kept, self._buffers(world_size)], link)

    def dense_cost(self, world_size: int, link: Link) -> Cost:
        """Predict the cost of a merge of all weights."""
        values = _ordered_all_reduce(world_size, self.weights, _FLOAT32_BYTES)
        return _sum([self._header(world_size), values, self._buffers(world_size)], link)

    def _header(self, world_size: int) -> "_Transfer":
        return _all_gather(world_size, header_bytes(self.buffer_tensors))

    def _buffers(self, world_size: int) -> "_Transfer":
        return _ordered_all_reduce(world_size, self.buffer_entries, _FLOAT32_BYTES)


def merge_volume(
    model: nn.Module, head: Collection[str], kept: int, *, disjoint: bool, decay_all: bool, wire: Wire
) -> MergeVolume:
    """Describe what workers exchange in a merge of a model, of which no more than the shapes are looked at.

    Args:
        head: Names of the classifier's parameters.
        kept: Weights that each worker trains, ``head`` included.
        disjoint: Beside the head, no two workers train the same weight.
        decay_all: Weight decay moves every weight.
    """
    parameters = weights(model)
    total = sum(p.numel() for p in parameters.values())
    buffers = [buffer.numel() for buffer in model.buffers() if buffer.is_floating_point()]
    return MergeVolume(
        weights=total,
        kept=total if decay_all else kept,
        head=sum(parameters[name].numel() for name in head),
        buffer_tensors=len(buffers),
        buffer_entries=sum(buffers),
        disjoint=disjoint and not decay_all,
        value_bytes=2 if wire == "bf16" else _FLOAT32_BYTES,
    )


def predict_cost(volume: MergeVolume, world_size: int, sync_every: int, warmup_epochs: int, link: Link) -> list[str]:
    """Write lines that tell whether merges are worth their time: a table, and what it means for this run.

    Args:
        world_size: Workers of this run, two or more.
        sync_every: Steps from one merge to the next.
        warmup_epochs: Epochs in which all weights train.
    """
    world_sizes = sorted({*_WORLD_SIZES, world_size})
    costs = {size: (volume.cost(size, link), volume.dense_cost(size, link)) for size in world_sizes}
    rows = [["workers", "MB a merge", "seconds", "dense MB", "seconds"]]
    for size, pair in costs.items():
        cells = [cell for cost in pair for cell in (_short(cost.bytes / 1e6), _short(cost.seconds))]
        rows.append([f"{size:,}", *cells])
    lines = aligned_text(rows)
    lines[1 + world_sizes.index(world_size)] += "  <- this run"

    kept, dense = costs[world_size]
    step, dense_step = (
        _short(cost.seconds * _TRAINING_SHARE / (1 - _TRAINING_SHARE) / sync_every) for cost in (kept, dense)
    )
    verdict = f"Worth it at {link.bandwidth:g} Mb/s and {link.latency:g} ms if a step takes {step} s or more "
    verdict += f"(sync_every={sync_every}): then {_TRAINING_SHARE:.0%} of the time goes into training."
    if dense.seconds > _SLOWER * kept.seconds:
        times = _short(dense.seconds / kept.seconds)
        verdict += f" Merges of all weights, {times} times slower, want steps of {dense_step} s."
    elif volume.kept < volume.weights:
        verdict += " Merges of all weights take no longer."
    if warmup_epochs and volume.kept < volume.weights:
        verdict += f" Those of the first {warmup_epochs} epochs are of all weights."
    return [*lines, verdict]


class _Transfer(NamedTuple):
    """Hold what a collective operation takes of each worker: bytes sent, and latencies that follow each other."""

    bytes: int
    latencies: int


def _ordered_all_reduce(world_size: int, entries: int, value_bytes: int) -> _Transfer:
    """Count what :meth:`Collectives.ordered_all_reduce` takes: all parts at once, and round a ring the results."""
    parts = [part for _, part in pieces(entries, world_size)]
    return _Transfer(2 * (world_size - 1) * sum(parts) * value_bytes, world_size * len(parts))


def _all_gather(world_size: int, row_bytes: int) -> _Transfer:
    """Count what :meth:`Collectives.all_gather` takes: every row, round a ring."""
    return _Transfer((world_size - 1) * row_bytes, (world_size - 1) * (row_bytes > 0))


def _sum(transfers: list[_Transfer], link: Link) -> Cost:
    """Add up what follows each other on a link."""
    sent, latencies = (sum(column) for column in zip(*transfers, strict=True))
    return Cost(sent, sent * 8 / (link.bandwidth * 1e6) + latencies * link.latency / 1e3)


def _short(number: float) -> str:
    """Write a number with three digits or so."""
    if number == 0:
        return "0"
    digits = 2 - math.floor(math.log10(number))
    return f"{number:,.{min(max(digits, 0), 4)}f}"
