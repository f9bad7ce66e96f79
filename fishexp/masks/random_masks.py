"""A random mask may be its seed: its positions come back from the scores, which nobody has to keep.

The scores are drawn for one parameter after the other by torch's generator on the CPU. Torch does not promise the same
numbers for ever, so a recipe has a digest of the positions, and where other numbers come back, it is refused.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from typing import NamedTuple

import torch
from torch import Tensor

from fishexp.errors import DeltaError

CHUNK = 1 << 20  # scores drawn together
STEPS = 1 << 24  # scores are multiples of 1 / STEPS, below 1
FEWEST = 1 << 14  # scores per entry that it keeps, at most: a small file must not make its reader draw for hours


class Seeded(dict[str, Tensor]):
    """Random scores, or the mask of the best of them, by name and in the order in which ``seed`` drew them."""

    def __init__(self, tensors: Mapping[str, Tensor], seed: int) -> None:
        super().__init__(tensors)
        self.seed = seed


class Drawn(NamedTuple):
    """A parameter that has scores."""

    name: str
    shape: tuple[int, ...]
    always: bool  # kept whole, whatever its scores


class Recipe(NamedTuple):
    """A random mask: all entries with a score above ``threshold``, and the first ``ties`` that have just this score."""

    seed: int
    threshold: int  # times 1 / STEPS
    ties: int
    sha256: str  # of the positions of all parameters, one behind the other


def recipe(order: Sequence[Drawn], seed: int, positions: Mapping[str, Tensor]) -> Recipe | None:
    """The recipe of these positions; None if they are not, or no longer, the mask that ``seed`` drew.

    All scores are drawn twice more, a chunk at a time: 2 s for 334 million.

    Args:
        order: As the scores were drawn.
        positions: name -> int64, ascending, on the CPU. Parameters without any may be missing; those that are always
            kept do not count.
    """
    kept = [torch.zeros(0)]
    for one, start, chunk in _chunks(order, seed):
        if not one.always and (places := positions.get(one.name)) is not None:
            low, high = torch.searchsorted(places, torch.tensor([start, start + len(chunk)])).tolist()
            kept.append(chunk[places[low:high] - start])
    best = torch.cat(kept)
    if FEWEST * len(best) < sum(prod(one.shape) for one in order):
        return None
    mine = {one.name: positions[one.name] for one in order if not one.always and one.name in positions}
    digest = hashlib.sha256()
    for places in mine.values():
        digest.update(places.numpy().tobytes())
    found = Recipe(seed, int(best.min() * STEPS), int((best == best.min()).sum()), digest.hexdigest())
    try:
        list(expand(found, order, {name: len(places) for name, places in mine.items()}))
    except DeltaError:
        return None
    return found


def expand(recipe: Recipe, order: Sequence[Drawn], counts: Mapping[str, int]) -> Iterator[tuple[str, Tensor]]:
    """The positions of a recipe, name by name. Use none before all are there: the digest is checked at the end.

    The work grows with the shapes in ``order``: take them from a model at hand, never from a file.

    Args:
        order: As the scores were drawn; parameters always kept are left out of what comes back.
        counts: How many positions each parameter has, 0 where missing. No more are ever held.

    Yields:
        name, and its positions as int64, ascending, for each parameter that has any.

    Raises:
        DeltaError: If other positions come back than those that the recipe was made of.
    """
    wrong = DeltaError(
        f"seed {recipe.seed} draws another random mask here than the delta's; was it made with another torch than "
        f"{torch.__version__}?"
    )
    threshold, ties = recipe.threshold / STEPS, recipe.ties
    digest = hashlib.sha256()
    found: list[Tensor] = []
    for one, start, chunk in _chunks(order, recipe.seed):
        if one.always:
            continue
        kept = chunk > threshold
        if ties:
            equal = (chunk == threshold).nonzero().flatten()[:ties]
            kept[equal] = True
            ties -= len(equal)
        found.append(kept.nonzero().flatten() + start)
        entries = sum(map(len, found))
        last = start + len(chunk) == prod(one.shape)
        if entries > counts.get(one.name, 0) or (last and entries < counts.get(one.name, 0)):
            raise wrong
        if last:
            places = torch.cat(found)
            digest.update(places.numpy().tobytes())
            found = []
            if len(places):
                yield one.name, places
    if ties or digest.hexdigest() != recipe.sha256:
        raise wrong


def _chunks(order: Sequence[Drawn], seed: int) -> Iterator[tuple[Drawn, int, Tensor]]:
    """The scores piece by piece: whose they are, from which entry on, and (entries,) in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    for one in order:
        for start in range(0, prod(one.shape), CHUNK):
            size = min(CHUNK, prod(one.shape) - start)
            yield one, start, torch.rand(size, generator=generator, dtype=torch.float32)


def random_scores(shapes: Mapping[str, Sequence[int]], seed: int) -> Seeded:
    """Independent uniform numbers in [0, 1), float32 on the CPU; a delta can hold a mask of the best by its seed.

    Args:
        shapes: name -> shape of each parameter, in the model's order.
        seed: In [0, 2**63).
    """
    generator = torch.Generator().manual_seed(seed)
    drawn = {name: torch.rand(tuple(s), generator=generator, dtype=torch.float32) for name, s in shapes.items()}
    return Seeded(drawn, seed)
