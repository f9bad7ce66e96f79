"""Scores in, mask out: which weights may move."""

from abc import abstractmethod
from collections.abc import Collection, Iterator, Mapping
from typing import TypeAlias

import torch
from torch import Tensor

from fishexp.errors import FishexpError
from fishexp.masks.budget import left
from fishexp.masks.random_masks import Seeded

Scores: TypeAlias = Mapping[str, Tensor]  # importance of each weight, in the parameter's shape
Mask: TypeAlias = dict[str, Tensor]  # true where a weight may move, in the parameter's shape

DIGIT = 16  # bits of a score that are decided by one pass over all scores
CHUNK = 1 << 22  # scores looked at together


class Best:
    """Select the highest of some scores.

    Args:
        scores: They have to be right where the highest are; any others may be lower than they should be.
        count: How many to select. Of equal scores the first in the order of ``scores`` wins.

    Attributes:
        mask: name -> bool tensor; exactly ``count`` entries are true.
    """

    def __init__(self, scores: Scores, count: int) -> None:
        self._scores, self.mask = scores, largest(scores, count)

    def entries(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return name -> positions of the selected entries, (entries,) int64 and ascending, and their scores."""
        found = {name: mask.flatten().nonzero().squeeze(1) for name, mask in self.mask.items()}
        return {name: (index, self._scores[name].detach().flatten()[index]) for name, index in found.items()}


class LazyScores(Mapping[str, Tensor]):
    """Compute scores when they are asked for: the highest alone take less than all of them.

    As a mapping, it computes all scores at the first access to any.

    Attributes:
        like: name -> a tensor of the shape and on the device of the scores; its values mean nothing.
    """

    like: Mapping[str, Tensor]

    @abstractmethod
    def best(self, count: int, always: Collection[str]) -> Best:
        """Select the ``count`` highest scores outside ``always``, as :class:`Best` does among all of them."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)

    def __contains__(self, name: object) -> bool:
        return name in self.like


def top_k(scores: Scores, keep: float, always: Collection[str] = ()) -> Mask:
    """Keep the highest-scoring fraction of all weights, over all layers at once.

    Args:
        scores: Importance of each weight. Only the order matters, not the scale.
        keep: Fraction of *all* weights to keep, in (0, 1]; 0.005 is 0.5 %.
        always: Parameters kept whole, such as a new classifier head. They are paid for out of ``keep``.

    Returns:
        name -> bool tensor of the parameter's shape, on its device. Exactly ``floor(keep * total)`` entries are true,
        ``keep`` read as a decimal. Of equal scores the first in the order of ``scores`` wins. The mask of
        :func:`random_scores` has their seed.

    Raises:
        FishexpError: If ``keep`` is out of range or too small to pay for ``always``, ``always`` names an unknown
            parameter, or a score is NaN.

    Source:
        Sung, Nair & Raffel, "Training Neural Networks with Fixed Sparse Masks", arXiv:2111.09839.
    """
    like = _like(scores)
    best = _best(scores, _left(like, keep, always), always)
    mask = _with_always(best.mask, like, always)
    return Seeded(mask, scores.seed) if isinstance(scores, Seeded) else mask


def split(scores: Scores, keep: float, workers: int, always: Collection[str] = ()) -> list[Mask]:
    """Make a mask for each of several workers, with no entry outside ``always`` in two of them.

    Each has as many entries as :func:`top_k` would give it. Of the best of all, ranked by their scores, worker i gets
    the ranks i, i + workers, i + 2 workers, ...; of equal scores the first in the order of ``scores`` ranks higher.

    Args:
        scores: As for :func:`top_k`.
        keep: Fraction of all weights for each worker, ``always`` included.
        always: Parameters that every worker keeps whole.

    Raises:
        FishexpError: As :func:`top_k` does, and if there are fewer weights than that.

    Source:
        The original code's distributed training of "Training Neural Networks with Fixed Sparse Masks".
    """
    like = _like(scores)
    entries = _best(scores, workers * _left(like, keep, always, workers), always).entries()
    best = torch.cat([values.cpu().double() for _, values in entries.values()])
    owner = torch.empty(len(best), dtype=torch.int64)
    owner[best.argsort(descending=True, stable=True)] = torch.arange(len(best)) % workers
    owners = dict(zip(entries, owner.split([len(index) for index, _ in entries.values()]), strict=True))
    masks = []
    for worker in range(workers):
        chosen = {name: torch.zeros(like[name].shape, dtype=torch.bool, device=like[name].device) for name in entries}
        for name, (index, _) in entries.items():
            chosen[name].view(-1)[index[(owners[name] == worker).to(index.device)]] = True
        masks.append(_with_always(chosen, like, always))
    return masks


def _like(scores: Scores) -> Mapping[str, Tensor]:
    """Return tensors of the shapes and on the devices of the scores, without computing any."""
    return scores.like if isinstance(scores, LazyScores) else scores


def _best(scores: Scores, count: int, always: Collection[str]) -> Best:
    """Select the ``count`` highest scores outside ``always``."""
    if isinstance(scores, LazyScores):
        return scores.best(count, always)
    return Best({name: score for name, score in scores.items() if name not in always}, count)


def _left(scores: Scores, keep: float, always: Collection[str], workers: int = 1) -> int:
    """Return how many entries ``keep`` pays for after those of ``always``."""
    unknown = sorted(set(always) - set(scores))
    if unknown:
        raise FishexpError(f"always names {unknown[0]}, which has no scores; the scores cover {len(scores)} parameters")
    total = sum(score.numel() for score in scores.values())
    return left(keep, total, sum(scores[name].numel() for name in set(always)), always, workers)


def _with_always(chosen: Mask, scores: Scores, always: Collection[str]) -> Mask:
    """Add all of ``always`` to the chosen entries, in the order of the scores."""
    return {n: torch.ones_like(s, dtype=torch.bool) if n in always else chosen[n] for n, s in scores.items()}


def largest(scores: Scores, k: int) -> Mask:
    """Keep exactly ``k`` entries: all above the k-th largest score, then the first that equal it."""
    if k == 0:
        return {name: torch.zeros_like(score, dtype=torch.bool) for name, score in scores.items()}
    for name, score in scores.items():
        if score.isnan().any():
            raise FishexpError(
                f"the scores of {name} hold NaN: the model or its loss is broken on the scoring examples"
            )
    dtype = torch.float64 if any(score.dtype == torch.float64 for score in scores.values()) else torch.float32
    threshold, ties = _kth_largest(scores, k, dtype)
    mask = {}
    for name, score in scores.items():
        flat = score.detach().flatten().to(dtype)
        equal = flat == threshold
        for chunk in equal.split(CHUNK):
            count = int(chunk.sum())
            if count > ties:
                chunk[chunk.nonzero()[ties:]] = False
            ties -= min(ties, count)
        mask[name] = (flat > threshold).logical_or_(equal).view(score.shape)
    return mask


# `torch.kthvalue` is faster, but takes 16 bytes a score (all in one tensor, a copy, indices): 5 GB for BERT-large
def _kth_largest(scores: Scores, k: int, dtype: torch.dtype) -> tuple[float, int]:
    """Find the k-th largest score, and how many equal to it are among the k largest.

    Radix selection: of the scores, read as integers of the same order, the 16 highest bits of the k-th largest are
    found by counting, then the next 16 among the scores that share these. Nothing is sorted or put together, and the
    working memory is that of a chunk.
    """
    bits = 64 if dtype == torch.float64 else 32
    known: int | None = None  # the highest bits of the k-th largest, as far as they are found
    # the least value of the known bits and the next digit together; the first digit has the sign
    lowest = -(1 << (DIGIT - 1))
    for shift in range(bits - DIGIT, -1, -DIGIT):
        counts = torch.zeros(1 << DIGIT, dtype=torch.int64)
        for keys in _keys(scores, dtype):
            candidates = keys if known is None else keys[keys >> (shift + DIGIT) == known]
            counts += torch.bincount((candidates >> shift) - lowest, minlength=1 << DIGIT).cpu()
        at_least = counts.flip(0).cumsum(0)  # candidates with this digit or a higher one, from the highest digit on
        higher = int((at_least < k).sum())  # digits that are above the k-th largest's
        k -= int(at_least[higher - 1]) if higher else 0
        known = lowest + (1 << DIGIT) - 1 - higher
        lowest = known << DIGIT
    key = torch.tensor(known, dtype=torch.int64 if bits == 64 else torch.int32)
    return _flipped(key).view(dtype).item(), k


def _keys(scores: Scores, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the scores as integers of the same order, a chunk at a time; -0.0 is 0.0."""
    integer = torch.int64 if dtype == torch.float64 else torch.int32
    for score in scores.values():
        for chunk in score.detach().flatten().split(CHUNK):
            yield _flipped((chunk.to(dtype) + 0.0).view(integer))


def _flipped(number: Tensor) -> Tensor:
    """Turn a float's bits into an integer of the same order, and back: below zero all bits but the sign flip."""
    return torch.where(number < 0, number ^ torch.iinfo(number.dtype).max, number)


def count(mask: Mask) -> int:
    """Count the weights that may move."""
    return sum(int(entries.sum()) for entries in mask.values())
