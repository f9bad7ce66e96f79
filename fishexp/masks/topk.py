"""Scores in, mask out: which weights may move."""

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
    rest = {name: score for name, score in scores.items() if name not in always}
    chosen = largest(rest, _left(scores, keep, always))
    mask = _with_always(chosen, scores, always)
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
    k = _left(scores, keep, always, workers)
    rest = {name: score for name, score in scores.items() if name not in always}
    places = {name: best.flatten().nonzero().squeeze(1) for name, best in largest(rest, workers * k).items()}
    best = torch.cat([rest[name].detach().flatten()[index].cpu().double() for name, index in places.items()])
    owner = torch.empty(len(best), dtype=torch.int64)
    owner[best.argsort(descending=True, stable=True)] = torch.arange(len(best)) % workers
    owners = dict(zip(places, owner.split([len(index) for index in places.values()]), strict=True))
    masks = []
    for worker in range(workers):
        chosen = {name: torch.zeros_like(score, dtype=torch.bool) for name, score in rest.items()}
        for name, index in places.items():
            chosen[name].view(-1)[index[(owners[name] == worker).to(index.device)]] = True
        masks.append(_with_always(chosen, scores, always))
    return masks


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
