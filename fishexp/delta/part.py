"""The positions of tensors whose mask is known by its seed, in memory and in the JSON of a file."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from threading import Lock

from torch import Tensor

from fishexp.errors import DeltaError
from fishexp.masks.random_masks import FEWEST, STEPS, Drawn, Recipe, expand, recipe

SEED = "seed"  # the coding of the positions of a tensor that the mask of a file has

_once = Lock()  # several threads may ask for positions that nobody has found yet


class Mask:
    """The positions of a recipe, which are found when the first are asked for."""

    def __init__(self, of: Recipe, order: Sequence[Drawn], counts: Mapping[str, int]) -> None:
        self.recipe, self.order, self.counts = of, tuple(order), dict(counts)
        self._positions: dict[str, Tensor] | None = None

    def positions(self, name: str) -> Tensor:
        """(k,) int64, ascending.

        Raises:
            DeltaError: If others come back than those that the recipe was made of.
        """
        with _once:
            if self._positions is None:
                self._positions = dict(expand(self.recipe, self.order, self.counts))
        return self._positions[name]

    def pack(self, names: Sequence[str]) -> list[object]:
        """For a file that has tensors of these names: all of the recipe, and the parameters by their number."""
        number = {name: i for i, name in enumerate(names)}
        return [*self.recipe, [number[one.name] for one in self.order]]


@dataclass(frozen=True, eq=False)
class Part:
    """The positions of one tensor of a mask."""

    mask: Mask
    name: str


def mask_of(order: Mapping[str, tuple[int, ...]], seed: int, positions: Mapping[str, Tensor | None]) -> Mask | None:
    """A mask with these positions, if ``seed`` drew them.

    Args:
        order: name -> shape of each parameter that has scores, as they were drawn.
        positions: name -> (k,) int64, ascending, or None for a tensor that is stored whole, whatever its scores.
    """
    drawn = [Drawn(name, shape, name in positions and positions[name] is None) for name, shape in order.items()]
    some = {one.name: found for one in drawn if (found := positions.get(one.name)) is not None and len(found)}
    made = recipe(drawn, seed, some)
    if made is None:
        return None
    mask = Mask(made, drawn, {name: len(found) for name, found in some.items()})
    mask._positions = some
    return mask


def unpack(value: object, shapes: Mapping[str, tuple[int, ...]], codings: Mapping[str, tuple[str, int]]) -> Mask | None:
    """What :meth:`Mask.pack` gave; no score is drawn yet.

    Args:
        value: None if there was no mask.
        shapes: Of all tensors of the file, by name.
        codings: Coding and number of values of those that have new values.

    Raises:
        DeltaError: If it is not the mask of these tensors, or has too many scores for the entries that it keeps.
    """
    counts = {name: count for name, (coding, count) in codings.items() if coding == SEED}
    if value is None and not counts:
        return None
    names = sorted(shapes)
    wrong = DeltaError("it has a mask by a seed that is not one of its tensors")
    if not isinstance(value, list) or len(value) != 5 or not isinstance(value[4], list):
        raise wrong
    seed, threshold, ties, sha256, numbers = value
    for number, end in [(seed, 1 << 63), (threshold, STEPS), (ties, 1 << 63), *((n, len(names)) for n in numbers)]:
        if type(number) is not int or not 0 <= number < end:
            raise wrong
    order = [Drawn(names[n], shapes[names[n]], codings.get(names[n], ("", 0))[0] != SEED) for n in numbers]
    known = {one.name for one in order}
    if len(known) < len(order) or not counts.keys() <= known or not all(counts.values()):
        raise wrong
    if not isinstance(sha256, str) or sum(prod(one.shape) for one in order) > FEWEST * sum(counts.values()):
        raise wrong
    return Mask(Recipe(seed, threshold, ties, sha256), order, counts)
