"""Random masks, which can be kept as a seed: the positions come back from the scores, which nobody has to keep.

The scores are drawn for one parameter after the other by torch's generator on the CPU. Torch does not promise the same
numbers for ever, so a recipe has a digest of the positions, and where other numbers come back, it is refused.
"""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from numbers import Integral
from typing import Any, NamedTuple

import torch
from torch import Tensor

from fishexp.errors import DeltaError, FishexpError

CHUNK = 1 << 20  # scores drawn together
STEPS = 1 << 24  # scores are multiples of 1 / STEPS, below 1
FEWEST = 1 << 14  # scores per entry that it keeps, at most: a small file must not make its reader draw for hours


class Seeded(dict[str, Tensor]):
    """Hold random scores, or the mask of the best of them, by name and in the order in which ``seed`` drew them."""

    def __init__(self, tensors: Mapping[str, Tensor], seed: int) -> None:
        super().__init__(tensors)
        self.seed = seed


class ScoredParameter(NamedTuple):
    """Describe a parameter that has scores."""

    name: str
    shape: tuple[int, ...]
    always: bool  # kept whole, whatever its scores


class SeedRecipe(NamedTuple):
    """Describe a random mask: all entries with a score above ``threshold``, and the first ``ties`` with just this."""

    seed: int
    threshold: int  # times 1 / STEPS
    ties: int
    sha256: str  # of the positions of all parameters, one behind the other


def make_recipe(order: Sequence[ScoredParameter], seed: int, positions: Mapping[str, Tensor]) -> SeedRecipe | None:
    """Make the recipe of these positions; None if they are not, or no longer, the mask that ``seed`` drew.

    All scores are drawn twice more, a chunk at a time: 2 s for 334 million.

    Args:
        order: As the scores were drawn.
        seed: With which they were drawn.
        positions: name -> int64, ascending, on the CPU. Parameters without any may be missing; those that are always
            kept do not count.
    """
    kept = [torch.zeros(0, device="cpu")]
    for parameter, start, chunk in _chunks(order, seed):
        if not parameter.always and (found := positions.get(parameter.name)) is not None:
            low, high = torch.searchsorted(found, torch.tensor([start, start + len(chunk)], device="cpu")).tolist()
            kept.append(chunk[found[low:high] - start])
    best = torch.cat(kept)
    if FEWEST * len(best) < sum(prod(parameter.shape) for parameter in order):
        return None
    mine = {p.name: positions[p.name] for p in order if not p.always and p.name in positions}
    digest = hashlib.sha256()
    for found in mine.values():
        digest.update(found.numpy().tobytes())
    recipe = SeedRecipe(seed, int(best.min() * STEPS), int((best == best.min()).sum()), digest.hexdigest())
    try:
        list(expand(recipe, order, {name: len(found) for name, found in mine.items()}))
    except DeltaError:
        return None
    return recipe


def expand(
    recipe: SeedRecipe, order: Sequence[ScoredParameter], counts: Mapping[str, int]
) -> Iterator[tuple[str, Tensor]]:
    """Draw the positions of a recipe, name by name. Use none before all are there: the digest is checked at the end.

    The work grows with the shapes in ``order``: take them from a model at hand, never from a file.

    Args:
        recipe: Of the mask.
        order: As the scores were drawn; parameters always kept are left out of what comes back.
        counts: How many positions each parameter has, 0 where missing. No more are ever held.

    Yields:
        name, and its positions as int64, ascending, for each parameter that has any.

    Raises:
        DeltaError: If other positions come back than those that the recipe was made of.
    """
    wrong = DeltaError(
        f"seed {recipe.seed} draws another random mask here than the one that was saved; was it made with another "
        f"torch than {torch.__version__}?"
    )
    threshold, ties = recipe.threshold / STEPS, recipe.ties
    digest = hashlib.sha256()
    found: list[Tensor] = []
    for parameter, start, chunk in _chunks(order, recipe.seed):
        if parameter.always:
            continue
        kept = chunk > threshold
        if ties:
            equal = (chunk == threshold).nonzero().flatten()[:ties]
            kept[equal] = True
            ties -= len(equal)
        found.append(kept.nonzero().flatten() + start)
        entries, wanted = sum(map(len, found)), counts.get(parameter.name, 0)
        last = start + len(chunk) == prod(parameter.shape)
        if entries > wanted or (last and entries < wanted):
            raise wrong
        if last:
            positions = torch.cat(found)
            digest.update(positions.numpy().tobytes())
            found = []
            if len(positions):
                yield parameter.name, positions
    if ties or digest.hexdigest() != recipe.sha256:
        raise wrong


def _chunks(order: Sequence[ScoredParameter], seed: int) -> Iterator[tuple[ScoredParameter, int, Tensor]]:
    """Draw the scores piece by piece: whose they are, from which entry on, and (entries,) in [0, 1)."""
    generator = torch.Generator().manual_seed(seed)
    for parameter in order:
        for start in range(0, prod(parameter.shape), CHUNK):
            size = min(CHUNK, prod(parameter.shape) - start)
            yield parameter, start, torch.rand(size, generator=generator, dtype=torch.float32, device="cpu")


def random_scores(shapes: Mapping[str, Sequence[int]], seed: int) -> Seeded:
    """Draw independent uniform numbers in [0, 1), float32 on the CPU; a delta can hold a mask of the best by its seed.

    Args:
        shapes: name -> shape of each parameter, in the model's order.
        seed: In [0, 2**63).

    Raises:
        FishexpError: If the seed is no such number, by which no file could name the mask.
    """
    if isinstance(seed, bool) or not isinstance(seed, Integral) or not 0 <= seed < 1 << 63:
        raise FishexpError(f"a seed is a whole number from 0 to 2**63 - 1, got {seed!r}; give another one")
    seed = int(seed)
    generator = torch.Generator().manual_seed(seed)
    kind: Any = {"generator": generator, "dtype": torch.float32, "device": "cpu"}
    drawn = {name: torch.rand(tuple(shape), **kind) for name, shape in shapes.items()}
    return Seeded(drawn, seed)
