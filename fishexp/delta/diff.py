"""Make a delta: of two models, in memory or in files, or of a training that changed a model in place."""

import hashlib
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from typing import NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from fishexp.delta.content import Content, SeededPositions, TensorDelta, seed_mask
from fishexp.delta.fingerprint import Fingerprint, bits, fingerprint, hashed, in_threads, sha256
from fishexp.delta.sources import LoadedTensor, Source, TensorReader, named, read_fingerprint, tied_names
from fishexp.errors import DeltaError
from fishexp.masks import position_codec


def diff(before: Source, after: Source) -> Content:
    """Find what makes ``after`` of ``before``, by the bits, in the smallest form.

    A few tensors are compared together, each a piece at a time.

    Raises:
        DeltaError: If types or shapes differ in another way than by more rows.
        OSError: If a file cannot be read.
    """
    tied = common_ties(before, after)
    old, new = by_common_name(before, tied), by_common_name(after, tied)
    for name in new:
        if name in old and not old[name].kind.grows_to(new[name].kind):
            raise DeltaError(
                f"{name} is {old[name].kind} before and {new[name].kind} after; a delta keeps the type, and of the "
                "shape all but more rows"
            )

    def compare(name: str) -> tuple[Fingerprint | None, TensorDelta | None]:
        if name not in old:
            return None, whole(new[name])
        if name not in new:
            return read_fingerprint(old[name]), None
        digest = hashlib.sha256()
        moved = change(old[name].kind, hashed(old[name].pieces(), digest), new[name])
        return replace(old[name].kind, sha256=digest.hexdigest()), moved

    removed = [name for name in old if name not in new]
    names = [*new, *removed]
    return _content(names, in_threads(compare, names), removed, tied)


def _content(
    names: Iterable[str],
    found: Iterable[tuple[Fingerprint | None, TensorDelta | None]],
    removed: Iterable[str],
    tied: Mapping[str, str],
) -> Content:
    """Put together what was found of each tensor: its fingerprint in the base, and its new values, if any."""
    pairs = dict(zip(names, found, strict=True))
    base = {name: before for name, (before, _) in pairs.items() if before is not None}
    moved = {name: entries for name, (_, entries) in pairs.items() if entries is not None}
    return Content(base, moved, tuple(sorted(removed)), tied)


def change(before: Fingerprint, pieces: Iterable[Tensor], after: TensorReader) -> TensorDelta | None:
    """Find what of ``after`` is not in a tensor before, to the bit, in the smaller form; None if nothing.

    Args:
        before: Type and shape of the tensor before.
        pieces: Its pieces; all of them are read.
        after: Of the same type; it may have more rows.
    """
    shape, dtype, total = after.kind.shape, after.kind.dtype, after.kind.nbytes
    positions: list[NDArray[np.int64]] = []
    values: list[NDArray[np.generic]] = []
    digest = hashlib.sha256()
    start = size = 0  # the first entry of a piece; bytes of the values that differ
    nothing = torch.empty(0, dtype=dtype, device="cpu")
    for old, new in zip_longest(pieces, hashed(after.pieces(), digest), fillvalue=nothing):
        was, now = bits(old).numpy(), bits(new).numpy()  # torch's threads would wait for one another at every piece
        differ = np.append(np.flatnonzero(was != now[: len(was)]), np.arange(len(was), len(now)))
        size += len(differ) * dtype.itemsize
        if size < total:  # otherwise the tensor is going to be stored whole
            positions.append(differ + start)
            values.append(now[differ])
        start += len(now)
    if not size and before.shape == shape:
        return None
    if size < total:
        places = torch.from_numpy(np.concatenate(positions))
        if size + len(position_codec.encode(places, shape)[1]) < total:
            found = torch.from_numpy(np.concatenate(values)).view(dtype)
            return TensorDelta(shape, places, found, digest.hexdigest())
    positions.clear()
    values.clear()
    return TensorDelta(shape, None, after.read(), digest.hexdigest())


def whole(tensor: TensorReader) -> TensorDelta:
    """Take all of a tensor as new."""
    values = tensor.read()
    return TensorDelta(tensor.kind.shape, None, values, sha256(values))


def common_ties(before: Source, after: Source, *more: Mapping[str, str]) -> dict[str, str]:
    """Find the names that are tied in either source or in ``more``, and stand for equal tensors in both.

    Returns:
        Another name of a tensor -> its first one.
    """
    parent: dict[str, str] = {}

    def root(name: str) -> str:
        way = []
        while name in parent:
            way.append(name)
            name = parent[name]
        parent.update(dict.fromkeys(way, name))  # or a file of chained names would be quadratic work
        return name

    for other, first in (pair for tied in (after.tied, before.tied, *more) for pair in tied.items()):
        if root(other) != root(first):
            parent[root(other)] = root(first)
    groups: dict[str, list[str]] = defaultdict(list)
    for name in parent:
        groups[root(name)].append(name)
    return {
        name: first
        for first, names in groups.items()
        if all(_are_equal([first, *names], where) for where in (before, after))
        for name in names
    }


def _are_equal(names: Sequence[str], where: Source) -> bool:
    """Tell whether those of the tensors that are there are equal."""
    distinct = {where.tied.get(name, name) for name in names} & where.tensors.keys()
    return len(distinct) < 2 or len({read_fingerprint(where.tensors[name]) for name in distinct}) == 1


def by_common_name(where: Source, tied: Mapping[str, str]) -> dict[str, TensorReader]:
    """Return the tensors of a source by the names that they have in the delta."""
    found: dict[str, TensorReader] = {}
    for name in [*where.tensors, *where.tied]:
        found.setdefault(tied.get(name, name), where.tensor(name))
    return found


class Original(NamedTuple):
    """Hold values that entries of a tensor had.

    Attributes:
        positions: Where in the flattened tensor, in any order; None for all of it.
        values: In the order of ``positions``, on any device.
        always: Whether they are part of the delta even if they are the same now.
    """

    positions: Tensor | None
    values: Tensor
    always: bool


def trained(model: nn.Module, originals: Mapping[str, Original], fresh: Collection[str]) -> Content:
    """Find what became of the entries in ``originals``; all others count as part of the base as they are now.

    Args:
        model: After the training. Its tensors are hashed a few at a time.
        originals: name -> values before the training.
        fresh: Tensors that the base does not have, or not these: stored whole.

    Raises:
        DeltaError: If ``fresh`` names a tensor that the model does not have, or trained parameters share memory.
    """
    tensors = named(model)
    first_name = {name: names[0] for names in tied_names(tensors) for name in names}
    for name in fresh:
        if name not in first_name:
            raise DeltaError(f"fresh names {name}, which the model does not have")
    new = {first_name[name] for name in fresh}
    known: dict[str, Original] = {}
    for name, original in originals.items():
        first = first_name.get(name, name)
        if original.always and first in known:
            raise DeltaError(f"{name} and {first} are two parameters in the same memory; make them one, or copy one")
        known.setdefault(first, original)

    def compare(name: str) -> tuple[Fingerprint | None, TensorDelta | None]:
        tensor = tensors[name]
        if name in new:
            return None, whole(LoadedTensor(tensor))
        return _since(known[name], tensor) if name in known else (fingerprint(tensor), None)

    names = list(dict.fromkeys(first_name.values()))
    tied = {name: first for name, first in first_name.items() if name != first}
    return _content(names, in_threads(compare, names), (), tied)


def _since(original: Original, tensor: Tensor) -> tuple[Fingerprint, TensorDelta | None]:
    """Return the fingerprint of a tensor with its original values, and what it became."""
    if original.positions is None:
        before = original.values.to(tensor.dtype).view(tensor.shape)
        moves = (bits(before) != bits(tensor).to(before.device)).flatten().cpu()
        if not original.always and not bool(moves.any()):
            return fingerprint(before), None
        moved = whole(LoadedTensor(tensor))
        # a tensor of which most moves is smaller and sooner applied without positions
        return fingerprint(before), _without_unmoved(moved, moves) if 2 * int(moves.sum()) <= len(moves) else moved
    positions, order = original.positions.long().cpu().sort()
    back = TensorDelta(tuple(tensor.shape), positions, original.values.to("cpu", tensor.dtype)[order], "")
    after, before = back.hashes(LoadedTensor(tensor).pieces(), tensor.numel())
    moved = replace(back, values=back.gather(tensor).cpu().view(tensor.dtype), sha256=after)
    return replace(moved.kind, sha256=before), _without_unmoved(moved, bits(moved.values) != bits(back.values))


def _without_unmoved(moved: TensorDelta, moves: Tensor) -> TensorDelta:
    """Leave out the values of entries that did not move.

    Args:
        moved: With the values of all kept entries.
        moves: (kept,) bool: whether an entry has other bits than before.
    """
    if bool(moves.all()):
        return moved
    return replace(moved, values=moved.values[moves], unmoved=(~moves).nonzero().flatten())


def by_seed(content: Content, seed: int, parameters: Mapping[str, Tensor]) -> Content:
    """Return the same delta, with the seed in place of positions if it drew them; all scores are drawn to see.

    Args:
        content: The delta.
        seed: With which the scores of a random mask were drawn.
        parameters: All that have scores, in the order in which these were drawn.
    """
    positions = {name: content.moved[name].kept for name in parameters if name in content.moved}
    mask = seed_mask({name: tuple(p.shape) for name, p in parameters.items()}, seed, positions)
    if mask is None or not parameters.keys() <= content.result.keys():
        return content
    seeded = {name: replace(content.moved[name], places=SeededPositions(mask, name)) for name in mask.counts}
    return replace(content, moved={**content.moved, **seeded})
