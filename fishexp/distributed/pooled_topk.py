"""Scores that all workers compute together, each on its share of the examples.

The highest scores decide a mask, and all that is sent for it is about these, in three phases:

- Each worker sends where its own best scores are. The mean over all workers is found at these positions: the lowest
  of its best is a bound, which the best of all positions reach.
- A mean of at least the bound takes a worker with at least its part of it. Each worker sends where it has that much.
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
from fishexp.masks.selection import nan_error, select_largest
from fishexp.masks.topk import Best, LazyScores, Scores, check_scores
from fishexp.masks.units import Unit, unit_means
from fishexp.training.collectives import Collectives

# share of all entries above which a worker's positions are not worth sending
_LARGEST_SHARE = 0.5
# bytes that a worker sends of a mean: a float32 to whoever computes it, and a float32 to all
_MEAN_BYTES = 8
# characters of what another worker sent that an error quotes
_QUOTED = 40


def pooled_scores(collectives: Collectives, scores: Sequence[Scores], examples: Sequence[int]) -> Scores:
    """Pool the workers' scores: the mean over all workers' examples.

    Args:
        scores: name -> float32, each local worker's mean over its examples. Names and shapes are the same everywhere.
        examples: How many each local worker had, below 2**29. The scores of a worker without any do not count.

    Returns:
        :class:`PooledScores`; of a single worker its own scores.

    Raises:
        FishexpError: If no worker has an example, scores are no floats, or what a worker sent is not what it should
            send.
        WorkerLost: If a worker is not there any more, or silent for too long.
    """
    for own in scores:
        check_scores(own)
        if inexact := [name for name, score in own.items() if not score.is_floating_point()]:
            raise FishexpError(f"the scores of {inexact[0]} are {own[inexact[0]].dtype}; only floats are pooled")
    if collectives.world_size == 1:
        return scores[0]
    texts = collectives.all_gather_text([str(number) for number in examples])
    weights = [int(_fields(rank, text, r"(\d{1,18})")[0]) for rank, text in enumerate(texts)]
    if not sum(weights):
        raise FishexpError("no worker has an example to score; take at least as many as there are workers")
    return PooledScores(collectives, scores, weights)


class PooledScores(LazyScores):
    """Hold the local workers' scores, and compute the mean over all workers' examples where it is asked for.

    All workers have to ask for the same at the same time: it takes collective operations. A mean is summed in float64
    in the order of the ranks, and rounded once to float32: the same bits at every worker.

    As a mapping, it has all means, computed at the first access. :func:`fishexp.masks.top_k` asks for the best alone,
    which takes few bytes, and makes the same mask of them.

    Args:
        weights: How many examples each worker had.

    Raises:
        FishexpError: Where scores are asked for, if what a worker sent is not what it should send.
        WorkerLost: Where scores are asked for, if a worker is not there any more, or silent for too long.
    """

    def __init__(self, collectives: Collectives, scores: Sequence[Scores], weights: list[int]) -> None:
        self._collectives, self._scores, self._weights = collectives, scores, weights
        self.like = {name: score.new_zeros(()).expand(score.shape) for name, score in scores[0].items()}
        self._all: Scores | None = None

    def __getitem__(self, name: str) -> Tensor:
        if self._all is None:
            self._all = self._pool(()).compute_all()
        return self._all[name]

    def best(self, count: int, always: Collection[str]) -> Best:
        """Implement :meth:`LazyScores.best`."""
        self._refuse_nan(always)
        means = self._means_of_best(count, always) if self._all is None else self._all
        return Best({name: mean for name, mean in means.items() if name not in always}, count)

    def unit_means(self, unit: Unit, always: Collection[str]) -> Scores:
        """Implement :meth:`LazyScores.unit_means`: each worker sends a mean for each unit, far fewer than scores."""
        self._refuse_nan(always)
        left = [{name: score for name, score in own.items() if name not in always} for own in self._scores]
        return dict(PooledScores(self._collectives, [unit_means(own, unit) for own in left], self._weights))

    def _refuse_nan(self, names: Collection[str]) -> None:
        """Refuse scores of these names, which are kept whatever they are, on all workers if one has NaN there."""
        if not names:
            return
        texts = [
            next((name for name in names if self._weights[rank] and own[name].isnan().any()), "")
            for rank, own in zip(self._collectives.local_ranks, self._scores, strict=True)
        ]
        pattern = "(" + "|".join(map(re.escape, ["", *names])) + ")"
        for rank, text in enumerate(self._collectives.all_gather_text(texts)):
            if name := _fields(rank, text, pattern)[0]:
                raise nan_error(name)

    def _pool(self, always: Collection[str]) -> "_Pool":
        return _Pool(self._collectives, self._scores, self._weights, always)

    def _means_of_best(self, best: int, always: Collection[str]) -> Scores:
        """Compute the means of the entries that may be among the ``best`` highest outside ``always``.

        Returns:
            name -> float32, on the scores' devices. Entries that cannot be among the ``best``, ties included, may be 0
            instead of their mean, and so are those of ``always``. All are exact where a score is negative or NaN, or
            where that takes fewer bytes.
        """
        pool = self._pool(always)
        best = min(best, pool.numel)
        if best == 0:
            return pool.means
        first = pool.union([_best_positions(own, best) for own in pool.scores])
        if first is None:
            return pool.compute_all()
        found = pool.compute_at(first)
        if len(found) < best:  # whatever is above 0 is known
            return pool.means
        bound = found.topk(best).values[-1].item()
        part = bound * sum(self._weights) / self._collectives.world_size
        shares = [part / max(self._weights[rank], 1) for rank in self._collectives.local_ranks]
        second = pool.union(
            [_positions_above(own, share, first) for own, share in zip(pool.scores, shares, strict=True)]
        )
        if second is None:
            return pool.compute_all()
        pool.compute_at(second)
        return pool.means


class _Pool:
    """Hold the workers' scores as a row of entries each, and the means found so far.

    Args:
        weights: How many examples each worker had.

    Attributes:
        numel: Entries of a row: those of all parameters that a mask does not keep whole.
        scores: The local workers' scores of these parameters.
        means: name -> means of all parameters; 0 where they are not known.
    """

    def __init__(
        self, collectives: Collectives, scores: Sequence[Scores], weights: list[int], always: Collection[str]
    ) -> None:
        self._collectives, self._weights = collectives, weights
        self.means = {name: torch.zeros(s.shape, dtype=torch.float32, device=s.device) for name, s in scores[0].items()}
        self._names = [name for name in self.means if name not in always]
        self._bounds = torch.tensor([0] + [self.means[name].numel() for name in self._names]).cumsum(0)
        self.numel = int(self._bounds[-1])
        self.scores = [
            [own[name] if weights[rank] else torch.zeros(()).expand(own[name].shape) for name in self._names]
            for rank, own in zip(collectives.local_ranks, scores, strict=True)
        ]

    def union(self, positions: Sequence[Tensor | None]) -> Tensor | None:
        """Collect all workers' positions; None if sending all the scores takes fewer bytes, or is needed.

        Args:
            positions: (entries,) int64, ascending, of each local worker; None if it has to send all its scores.

        Returns:
            (entries,) int64, ascending, or None.
        """
        codes = [
            None
            if own is None or len(own) > _LARGEST_SHARE * self.numel
            else (len(own), *position_codec.encode(own, (self.numel,)))
            for own in positions
        ]
        texts = ["" if code is None else f"{code[0]} {len(code[2])} {code[1]}" for code in codes]
        headers = self._collectives.all_gather_text(texts)
        if not all(headers):
            return None
        fields = [_fields(rank, header, r"(\d{1,18}) (\d{1,18}) ([a-z ]+)") for rank, header in enumerate(headers)]
        counts, sizes = [int(count) for count, _, _ in fields], [int(size) for _, size, _ in fields]
        if max(counts) + len(headers) * max(sizes) / _MEAN_BYTES >= self.numel:
            return None
        if not any(counts):
            return torch.zeros(0, dtype=torch.int64)
        rows = self._collectives.all_gather(
            [F.pad(code[2], (0, max(sizes) - len(code[2]))) for code in codes if code is not None]
        )
        found = [
            position_codec.decode(row[:size], coding, count, (self.numel,))
            for row, size, count, (_, _, coding) in zip(rows, sizes, counts, fields, strict=True)
        ]
        return torch.cat(found).unique()

    def compute_at(self, positions: Tensor) -> Tensor:
        """Compute the means at these positions, (entries,) float32, and write them into ``means`` as well."""
        indices = [own - start for own, start in zip(self._split(positions), self._bounds, strict=False)]
        rows = [
            torch.cat([s.flatten()[index.to(s.device)].cpu() for s, index in zip(own, indices, strict=True)])
            for own in self.scores
        ]
        found = self._collectives.ordered_all_reduce(rows, self._mean)
        for name, index, values in zip(self._names, indices, found.split([*map(len, indices)]), strict=True):
            mean = self.means[name]
            mean.view(-1)[index.to(mean.device)] = values.to(mean.device)
        return found

    def compute_all(self) -> Scores:
        """Compute the means of all entries."""
        for number, name in enumerate(self._names):
            rows = [own[number].flatten().cpu() for own in self.scores]
            self.means[name].view(-1).copy_(self._collectives.ordered_all_reduce(rows, self._mean))
        return self.means

    def _split(self, positions: Tensor) -> tuple[Tensor, ...]:
        """Split positions of a row by parameter."""
        return positions.tensor_split(torch.searchsorted(positions, self._bounds[1:-1]))

    def _mean(self, values: Tensor, piece: slice) -> Tensor:
        total = torch.zeros_like(values[0], dtype=torch.float64)
        for weight, row in zip(self._weights, values, strict=True):
            total += row.double() * weight
        return (total / sum(self._weights)).float()


def _best_positions(scores: Sequence[Tensor], count: int) -> Tensor | None:
    """Find where the highest scores above 0 are, at most ``count``; None if a score is negative or NaN."""
    if not all((score >= 0).all() for score in scores):
        return None
    chosen = select_largest({str(number): score for number, score in enumerate(scores)}, count).mask
    return _positions([mask & (score > 0) for mask, score in zip(chosen.values(), scores, strict=True)])


def _positions_above(scores: Sequence[Tensor], bound: float, known: Tensor) -> Tensor:
    """Find where scores above 0 reach the bound, without known positions."""
    # the float32 below the share: the mean of lower scores is then below all means that round to the bound, which are
    # lower by no more than 2**-24
    least = torch.tensor(bound, dtype=torch.float32).nextafter(torch.tensor(0.0)).item()
    positions = _positions([(score >= least) & (score > 0) for score in scores])
    return positions[~torch.isin(positions, known, assume_unique=True)]


def _positions(masks: Sequence[Tensor]) -> Tensor:
    """Find the true entries in all masks one behind the other: (entries,) int64, ascending, on the CPU."""
    found, start = [], 0
    for mask in masks:
        found.append(mask.flatten().nonzero().squeeze(1).cpu() + start)
        start += mask.numel()
    return torch.cat(found)


def _fields(rank: int, text: str, pattern: str) -> tuple[str, ...]:
    """Read the fields of what a worker sent.

    Raises:
        FishexpError: If it does not have the pattern.
    """
    if (match := re.fullmatch(pattern, text)) is None:
        raise FishexpError(
            f"worker {rank} sent {text[:_QUOTED]!r} instead of its scores; does it run the same version?"
        )
    return match.groups()
