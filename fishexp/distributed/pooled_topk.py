"""Scores that all workers compute together, each on its share of the examples: exact where a mask looks, in few bytes.

What decides the mask are the highest scores, and all that is sent is about these, in three phases:

- Each worker sends where its own best scores are. The mean over all workers is found at these positions: the lowest
  of its best is a bound, which the best of all positions reach.
- A mean of at least the bound takes one worker with at least its part of it. Each worker sends where it has that much.
- The mean over all workers is found at these positions too. All others are below the bound.

Source:
    Cao & Wang, "Efficient Top-K Query Calculation in Distributed Networks", PODC 2004.
"""

import re
from collections.abc import Collection, Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from fishexp.errors import FishexpError
from fishexp.masks import position_codec
from fishexp.masks.topk import Scores, largest
from fishexp.training.collectives import Collectives

MANY = 0.5  # a larger share of all entries is not worth its positions


def pooled_scores(
    collectives: Collectives, scores: Sequence[Scores], examples: Sequence[int], best: int, always: Collection[str] = ()
) -> Scores:
    """The mean over all workers' examples, of the entries that may be among the ``best`` highest.

    :func:`fishexp.masks.top_k` makes the same mask of it as of the mean of all entries.

    Args:
        scores: name -> float32, each local worker's mean over its examples. Names and shapes are the same everywhere,
            and so are ``best`` and ``always``.
        examples: How many each local worker had, below 2**29. The scores of one without any do not count.
        best: Entries outside ``always`` that a mask may keep.
        always: Parameters that a mask keeps whole: theirs are 0.

    Returns:
        name -> float32, on the scores' devices; the same bits at every worker. Summed in float64 in the order of the
        ranks, and rounded once. Entries that cannot be among the ``best``, ties included, may be 0 instead. All are
        exact where a score is negative or NaN, or where that takes fewer bytes. One worker's are its own.

    Raises:
        FishexpError: If what a worker sent is not what it should send.
        WorkerLost: If a worker is not there any more, or silent for too long.
    """
    if collectives.world_size == 1:
        return scores[0]
    texts = collectives.all_gather_text([str(number) for number in examples])
    weights = [int(_fields(rank, text, r"(\d{1,18})")[0]) for rank, text in enumerate(texts)]
    if not sum(weights):
        raise FishexpError("no worker has an example to score; take at least as many as there are workers")
    pool = _Pool(collectives, scores, weights, always)
    best = min(best, pool.numel)
    if best == 0:
        return pool.means
    first = pool.where_any([_best(own, best) for own in pool.scores])
    if first is None:
        return pool.all_means()
    found = pool.fetch(first)
    if len(found) < best:  # whatever is above 0 is known
        return pool.means
    bound = found.topk(best).values[-1].item()
    parts = [bound * sum(weights) / collectives.world_size / max(weights[rank], 1) for rank in collectives.local_ranks]
    second = pool.where_any([_above(own, part, first) for own, part in zip(pool.scores, parts, strict=True)])
    if second is None:
        return pool.all_means()
    pool.fetch(second)
    return pool.means


class _Pool:
    """The workers' scores as one row of entries each, and the means found so far."""

    def __init__(
        self, collectives: Collectives, scores: Sequence[Scores], weights: list[int], always: Collection[str]
    ) -> None:
        self.collectives, self.weights = collectives, weights
        self.means = {name: torch.zeros(s.shape, dtype=torch.float32, device=s.device) for name, s in scores[0].items()}
        self.names = [name for name in self.means if name not in always]
        self.ends = torch.tensor([0] + [self.means[name].numel() for name in self.names]).cumsum(0)
        self.numel = int(self.ends[-1])
        self.scores = [
            [own[name] if weights[rank] else torch.zeros(()).expand(own[name].shape) for name in self.names]
            for rank, own in zip(collectives.local_ranks, scores, strict=True)
        ]

    def where_any(self, places: Sequence[Tensor | None]) -> Tensor | None:
        """All workers' positions, (entries,) ascending; None where all the scores take fewer bytes, or have to be sent.

        Args:
            places: (entries,) int64, ascending, of each local worker; None if it has to send all.
        """
        codes = [
            None
            if own is None or len(own) > MANY * self.numel
            else (len(own), *position_codec.encode(own, (self.numel,)))
            for own in places
        ]
        texts = ["" if code is None else f"{code[0]} {len(code[2])} {code[1]}" for code in codes]
        heads = self.collectives.all_gather_text(texts)
        if not all(heads):
            return None
        fields = [_fields(rank, head, r"(\d{1,18}) (\d{1,18}) ([a-z ]+)") for rank, head in enumerate(heads)]
        counts, sizes = [int(count) for count, _, _ in fields], [int(size) for _, size, _ in fields]
        if max(counts) + len(heads) * max(sizes) / 8 >= self.numel:  # a position costs every worker 8 bytes / size
            return None
        if not any(counts):
            return torch.zeros(0, dtype=torch.int64)
        rows = self.collectives.all_gather(
            [F.pad(code[2], (0, max(sizes) - len(code[2]))) for code in codes if code is not None]
        )
        found = [
            position_codec.decode(row[:size], coding, count, (self.numel,))
            for row, size, count, (_, _, coding) in zip(rows, sizes, counts, fields, strict=True)
        ]
        return torch.cat(found).unique()

    def fetch(self, places: Tensor) -> Tensor:
        """The means at these positions, (entries,) float32, which are written into ``means`` as well."""
        pieces = [own - start for own, start in zip(self._split(places), self.ends, strict=False)]
        rows = [
            torch.cat([s.flatten()[piece.to(s.device)].cpu() for s, piece in zip(own, pieces, strict=True)])
            for own in self.scores
        ]
        found = self.collectives.ordered_all_reduce(rows, self._mean)
        for name, piece, values in zip(self.names, pieces, found.split([*map(len, pieces)]), strict=True):
            mean = self.means[name]
            mean.view(-1)[piece.to(mean.device)] = values.to(mean.device)
        return found

    def all_means(self) -> Scores:
        """The means of all entries."""
        for index, name in enumerate(self.names):
            rows = [own[index].flatten().cpu() for own in self.scores]
            self.means[name].view(-1).copy_(self.collectives.ordered_all_reduce(rows, self._mean))
        return self.means

    def _split(self, places: Tensor) -> tuple[Tensor, ...]:
        """Parameter by parameter."""
        return places.tensor_split(torch.searchsorted(places, self.ends[1:-1]))

    def _mean(self, values: Tensor, piece: slice) -> Tensor:
        total = torch.zeros_like(values[0], dtype=torch.float64)
        for weight, row in zip(self.weights, values, strict=True):
            total += row.double() * weight
        return (total / sum(self.weights)).float()


def _best(scores: Sequence[Tensor], count: int) -> Tensor | None:
    """Where the highest scores above 0 are, at most ``count``; None if a score is negative or NaN."""
    if not all((score >= 0).all() for score in scores):
        return None
    chosen = largest({str(index): score for index, score in enumerate(scores)}, count)
    return _places([mask & (score > 0) for mask, score in zip(chosen.values(), scores, strict=True)])


def _above(scores: Sequence[Tensor], bound: float, known: Tensor) -> Tensor:
    """Where scores above 0 reach the bound, but for known position_codec."""
    # one float32 less: then a mean of lower ones is below all means, no more than 2**-24 lower, that round to the bound
    least = torch.tensor(bound, dtype=torch.float32).nextafter(torch.tensor(0.0)).item()
    places = _places([(score >= least) & (score > 0) for score in scores])
    return places[~torch.isin(places, known, assume_unique=True)]


def _places(masks: Sequence[Tensor]) -> Tensor:
    """(entries,) int64, ascending, on the CPU: positions of true entries in all masks one behind the other."""
    found, start = [], 0
    for mask in masks:
        found.append(mask.flatten().nonzero().squeeze(1).cpu() + start)
        start += mask.numel()
    return torch.cat(found)


def _fields(rank: int, text: str, pattern: str) -> tuple[str, ...]:
    if (match := re.fullmatch(pattern, text)) is None:
        raise FishexpError(f"worker {rank} sent {text[:40]!r} instead of its scores; does it run the same version?")
    return match.groups()
