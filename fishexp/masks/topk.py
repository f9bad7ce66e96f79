"""Scores in, mask out: which weights may move."""

import logging
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from typing import Any, TypeAlias

import torch
from torch import Tensor

from fishexp.errors import FishexpError
from fishexp.masks.allocation import Per, check_per, select_shares
from fishexp.masks.budget import left
from fishexp.masks.random_masks import Seeded
from fishexp.masks.selection import DTYPES, ranking, refuse_nan, select_largest
from fishexp.masks.units import Unit, check_unit, deal_units, unit_means

log = logging.getLogger(__name__)

Scores: TypeAlias = Mapping[str, Tensor]  # importance of each weight, in the parameter's shape
Mask: TypeAlias = dict[str, Tensor]  # true where a weight may move, in the parameter's shape


class Best:
    """Select the highest of some scores.

    Args:
        scores: They have to be right where the highest are; any others may be lower than they should be.
        count: How many to select. Of equal scores the first in the order of ``scores`` wins.

    Attributes:
        mask: name -> bool tensor; exactly ``count`` entries are true.
    """

    def __init__(self, scores: Scores, count: int) -> None:
        self._scores, self._count = scores, count
        self.mask, self._cut, self._equal = select_largest(scores, count)

    def entries(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Return name -> positions of the selected entries, (entries,) int64 and ascending, and their scores."""
        found = {name: mask.flatten().nonzero().squeeze(1) for name, mask in self.mask.items()}
        return {name: (index, self._scores[name].detach().flatten()[index]) for name, index in found.items()}

    def warn_of_zeros(self) -> None:
        """Warn if some scores of 0 are selected by their position; not if 0 is the highest score of several."""
        above, total = self._count - self._cut.ties, sum(score.numel() for score in self._scores.values())
        if self._cut.value == 0 and self._cut.ties < self._equal and (above or self._equal == total):
            log.warning(
                "only %d of the %d entries to select score above 0; of the %d that score 0, the first %d in the order "
                "of the parameters are selected too: lower keep, or score more examples",
                above, self._count, self._equal, self._cut.ties,
            )  # fmt: skip


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

    @abstractmethod
    def unit_means(self, unit: Unit, always: Collection[str]) -> Mapping[str, Tensor]:
        """Compute the mean score of each unit outside ``always``, as :func:`fishexp.masks.units.unit_means` does."""

    def __iter__(self) -> Iterator[str]:
        return iter(self.like)

    def __len__(self) -> int:
        return len(self.like)

    def __contains__(self, name: object) -> bool:
        return name in self.like


def top_k(scores: Scores, keep: float, always: Iterable[str] = (), unit: Unit = "entry", per: Per = "network") -> Mask:
    """Keep the highest-scoring fraction of all weights, over all layers at once.

    With ``per="matrix"`` or ``"row"`` scores compete within a tensor or an output row instead, each of which gets its
    share (:func:`fishexp.masks.allocation.select_shares`). With another unit than an entry, rows, columns or channels
    of weights are kept whole or not at all (:mod:`fishexp.masks.units`): those of the highest mean score that fit, see
    :func:`fishexp.masks.units.deal_units`.

    A warning says so where fewer scores are above 0 than are to be kept.

    Args:
        scores: Importance of each weight, floats, integers or bools. Only the order matters, not the scale: it is exact
            for all types and all mixtures of them.
        keep: Fraction of *all* weights to keep, in (0, 1]; 0.005 is 0.5 %.
        always: Parameters kept whole, such as a new classifier head. They are paid for out of ``keep``.
        unit: ``entry``, ``row``, ``column`` or ``channel``.
        per: ``network``, ``matrix`` or ``row``; the last two of entries only.

    Returns:
        name -> bool tensor of the parameter's shape, on its device. Exactly ``floor(keep * total)`` entries are true,
        ``keep`` read as a decimal; with larger units at most so many. Of equal scores the first in the order of
        ``scores`` wins. The mask of the best entries of a network by :func:`random_scores` has their seed.

    Raises:
        FishexpError: If ``keep`` is out of range or too small to pay for ``always`` or a unit, ``always`` names an
            unknown parameter, a score is NaN, scores are no dense tensors of real numbers, or ``unit`` and ``per`` do
            not go together.

    Source:
        Sung, Nair & Raffel, "Training Neural Networks with Fixed Sparse Masks", arXiv:2111.09839.
    """
    like, always = _like(scores), _names(always)
    count = _left(like, keep, always)
    if check_per(per, check_unit(unit)) != "network":
        refuse_nan(scores, scores)
        others = {name: score for name, score in scores.items() if name not in always}
        return _with_always(select_shares(others, count, per), like, always)
    if unit != "entry":
        (chosen,) = _best_units(scores, unit, [count], always)
        return _with_always(chosen, like, always)
    mask = _with_always(_best(scores, count, always).mask, like, always)
    return Seeded(mask, scores.seed) if isinstance(scores, Seeded) else mask


def split(scores: Scores, keep: float, workers: int, always: Iterable[str] = (), unit: Unit = "entry") -> list[Mask]:
    """Make a mask for each of several workers, with no entry outside ``always`` in two of them.

    Each has as many entries as :func:`top_k` would give it. Of the best of all, ranked by their scores, worker i gets
    the ranks i, i + workers, i + 2 workers, ...; of equal scores the first in the order of ``scores`` ranks higher.
    Larger units than entries are dealt by :func:`fishexp.masks.units.deal_units`; not all workers may get as many.

    Args:
        scores: As for :func:`top_k`.
        keep: Fraction of all weights for each worker, ``always`` included.
        workers: At least 1.
        always: Parameters that every worker keeps whole.
        unit: As for :func:`top_k`.

    Raises:
        FishexpError: As :func:`top_k` does, and if there are fewer weights than that.

    Source:
        The original code's distributed training of "Training Neural Networks with Fixed Sparse Masks".
    """
    if type(workers) is not int or workers < 1:
        raise FishexpError(f"workers is a whole number from 1 on, got {workers!r}")
    like, always = _like(scores), _names(always)
    count = _left(like, keep, always, workers)
    if check_unit(unit) != "entry":
        return [_with_always(mask, like, always) for mask in _best_units(scores, unit, [count] * workers, always)]
    entries = _best(scores, workers * count, always).entries()
    order = ranking([values for _, values in entries.values()])
    owner = torch.empty_like(order)
    owner[order] = torch.arange(len(order), device="cpu") % workers
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
    if isinstance(scores, LazyScores):
        return scores.like
    check_scores(scores)
    return scores


def check_scores(scores: Any) -> None:
    """Refuse scores that have no order, or no values.

    Raises:
        FishexpError: If they are not a mapping from names to dense tensors of real numbers.
    """
    if not isinstance(scores, Mapping):
        raise FishexpError(f"scores are a mapping from parameter names to tensors, got a {type(scores).__name__}")
    if not scores:
        raise FishexpError(
            "there are no scores to choose from: the mapping is empty; does any weight require a gradient?"
        )
    for name, score in scores.items():
        if not isinstance(score, Tensor):
            raise FishexpError(f"the scores of {name} are a {type(score).__name__}; give a tensor")
        if score.is_meta:
            raise FishexpError(
                f"the scores of {name} are on the meta device, which holds no values; score a real model"
            )
        if score.layout != torch.strided:
            raise FishexpError(f"the scores of {name} are sparse ({score.layout}); give scores.to_dense()")
        if score.dtype not in DTYPES:
            kind = str(score.dtype).removeprefix("torch.")
            raise FishexpError(f"the scores of {name} are {kind}, which has no order; give real numbers, such as abs()")


def _names(always: Any) -> tuple[str, ...]:
    """Return the names of parameters kept whole, each once.

    Raises:
        FishexpError: If they are a single string, or no names.
    """
    if isinstance(always, str):
        raise FishexpError(f"always is a collection of names, got the string {always!r}; give always=[{always!r}]")
    names = tuple(always)
    for name in names:
        if not isinstance(name, str):
            raise FishexpError(f"always holds names of parameters, got a {type(name).__name__}")
    return tuple(dict.fromkeys(names))


def _best(scores: Scores, count: int, always: Collection[str]) -> Best:
    """Select the ``count`` highest scores outside ``always``, and warn where scores of 0 are among them by position."""
    if isinstance(scores, LazyScores):
        best = scores.best(count, always)
    else:
        refuse_nan(scores, always)
        best = Best({name: score for name, score in scores.items() if name not in always}, count)
    best.warn_of_zeros()
    return best


def _best_units(scores: Scores, unit: Unit, budgets: list[int], always: Collection[str]) -> list[Mask]:
    """Select the units of the highest mean scores outside ``always``, for each worker in its budget."""
    if isinstance(scores, LazyScores):
        means = scores.unit_means(unit, always)
    else:
        refuse_nan(scores, always)
        means = unit_means({name: score for name, score in scores.items() if name not in always}, unit)
    refuse_nan(means, means)
    return deal_units(means, _like(scores), unit, budgets)


def _left(scores: Scores, keep: float, always: Collection[str], workers: int = 1) -> int:
    """Return how many entries ``keep`` pays for after those of ``always``."""
    unknown = sorted(set(always) - set(scores))
    if unknown:
        raise FishexpError(f"always names {unknown[0]}, which has no scores; the scores cover {len(scores)} parameters")
    total = sum(score.numel() for score in scores.values())
    return left(keep, total, sum(scores[name].numel() for name in always), always, workers)


def _with_always(chosen: Mask, scores: Scores, always: Collection[str]) -> Mask:
    """Add all of ``always`` to the chosen entries, in the order of the scores."""
    return {n: torch.ones_like(s, dtype=torch.bool) if n in always else chosen[n] for n, s in scores.items()}


def count(mask: Mask) -> int:
    """Count the weights that may move."""
    return sum(int(entries.sum()) for entries in mask.values())


def counts_by_name(masks: Sequence[Mask]) -> dict[str, list[int]]:
    """Count what any of the masks keeps of each tensor: name -> [kept entries, *shape], of those with any."""
    found = {}
    for name, entries in masks[0].items():
        kept = entries.clone()
        for mask in masks[1:]:
            kept |= mask[name]
        if number := int(kept.sum()):
            found[name] = [number, *kept.shape]
    return found
