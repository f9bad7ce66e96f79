"""Masks as files: about as small as what there is to know about them, and read without trust.

A file is safetensors with two vectors of bytes:

- ``index``: zlib of a JSON object: ``version``; ``tensors``, a list of [name, shape, coding, number of kept entries,
  bytes of their positions], in the order of the mask; ``seed``, the recipe of a random mask
  (:mod:`fishexp.masks.random_masks`) or null; ``checksum``, the SHA-256 of the same text without checksum, and of
  ``positions``;
- ``positions``: those of one tensor after the other, see :mod:`fishexp.masks.position_codec`. Of a tensor with the
  coding ``none``, ``whole`` or ``seed`` there are none.
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import safetensors
import torch
from safetensors.torch import save
from torch import Tensor

from fishexp.errors import DeltaError, FishexpError
from fishexp.masks import position_codec
from fishexp.masks.positions import find_positions
from fishexp.masks.random_masks import FEWEST, STEPS, ScoredParameter, Seeded, SeedRecipe, expand, make_recipe
from fishexp.masks.topk import Mask
from fishexp.system.atomic import replacing

VERSION = 1
INDEX, POSITIONS = "index", "positions"  # names of the vectors
NONE, WHOLE, SEED = "none", "whole", "seed"  # codings that take no bytes

# bytes of the JSON text at most
_LONGEST_TEXT = 1 << 24
# dimensions of a tensor at most
_DIMENSIONS = 64
# entries of all tensors together at most: a byte each, of which a reader touches those pages that have kept ones
_MOST_ENTRIES = 1 << 36
# scores that a reader draws for a random mask at most, and entries of it that it holds: some seconds, and 128 MiB
_MOST_SCORES, _MOST_SEEDED = 1 << 32, 1 << 24


class _Entry(NamedTuple):
    """Describe a tensor of a mask in a file."""

    name: str
    shape: tuple[int, ...]
    coding: str
    kept: int
    nbytes: int


def save_mask(mask: Mapping[str, Tensor], path: str | Path) -> None:
    """Write a mask to a file, whole or not at all; a random mask of :func:`fishexp.masks.top_k` by its seed.

    Args:
        mask: name -> bool tensor.

    Raises:
        FishexpError: If it is no mask.
        OSError: If it cannot be written.
    """
    positions: dict[str, Tensor | None] = {}
    for name, kept in mask.items():
        if not isinstance(name, str):
            raise FishexpError(f"a mask has names of parameters, got a {type(name).__name__}")
        if not isinstance(kept, Tensor) or kept.dtype != torch.bool or kept.layout != torch.strided or kept.is_meta:
            raise FishexpError(f"the mask of {name} is not a dense bool tensor")
        positions[name] = find_positions(kept.detach().cpu())
    shapes = {name: tuple(kept.shape) for name, kept in mask.items()}
    recipe = _recipe(shapes, mask.seed, positions) if isinstance(mask, Seeded) else None
    entries, data = [], []
    for name, found in positions.items():
        coding, encoded = NONE, torch.empty(0, dtype=torch.uint8, device="cpu")
        if found is None:
            coding = WHOLE
        elif len(found) and recipe is not None:
            coding = SEED
        elif len(found):
            coding, encoded = position_codec.encode(found, shapes[name])
        count = prod(shapes[name]) if found is None else len(found)
        entries.append(_Entry(name, shapes[name], coding, count, len(encoded)))
        data.append(encoded)
    index = {"version": VERSION, "tensors": entries, "seed": recipe}
    vector = torch.cat([torch.empty(0, dtype=torch.uint8, device="cpu"), *data])
    text = _text(index | {"checksum": _checksum(index, vector.numpy())})
    packed = torch.from_numpy(np.frombuffer(zlib.compress(text, 9), np.uint8).copy())
    try:
        _check_sizes(entries, len(packed) + len(vector))
        if len(text) > _LONGEST_TEXT:
            raise DeltaError(f"its names and shapes take {len(text):,} bytes, more than {_LONGEST_TEXT:,}")
    except DeltaError as error:
        raise FishexpError(f"the mask cannot be saved to {path}: {error}") from None
    with replacing(path) as temporary:
        temporary.write_bytes(save({INDEX: packed, POSITIONS: vector}))


def load_mask(path: str | Path) -> Mask:
    """Read a mask that :func:`save_mask` wrote: the same names in the same order, shapes and entries, on the CPU.

    Nothing of the file is used before it is checked, and memory is taken for what it can hold only.

    Raises:
        FishexpError: If the file is none of a mask, of another version, or damaged, or a random mask is drawn otherwise
            by this torch.
        OSError: If it cannot be read.
    """
    try:
        vectors = {name: vector["data"] for name, vector in safetensors.deserialize(Path(path).read_bytes())}
    except safetensors.SafetensorError:
        raise FishexpError(f"{path} is not a safetensors file, or damaged") from None
    if vectors.keys() != {INDEX, POSITIONS}:
        raise FishexpError(f"{path} is no mask, but another safetensors file")
    try:
        index = _parse(bytes(vectors[INDEX]))
        if index.get("version") != VERSION:
            raise FishexpError(f"{path} is a mask of another version; this fishexp reads version {VERSION} only")
        data = np.frombuffer(vectors[POSITIONS], np.uint8).copy()
        if index.pop("checksum", None) != _checksum(index, data):
            raise DeltaError("its checksum is another one")
        entries = [_entry(value) for value in index["tensors"]]
        _check_sizes(entries, len(data) + len(vectors[INDEX]))
        return _mask(entries, index["seed"], torch.from_numpy(data))
    except (DeltaError, LookupError, TypeError, RecursionError) as error:
        what = error if isinstance(error, DeltaError) else "its index is not written as a mask's is"
        raise FishexpError(f"{path} is damaged: {what}") from None
    except MemoryError:
        raise FishexpError(f"{path} holds a mask that does not fit into memory") from None


def _mask(entries: Sequence[_Entry], seed: Any, data: Tensor) -> Mask:
    """Build the mask of these tensors.

    Args:
        seed: As in the index.
        data: Positions of one tensor after the other.

    Raises:
        DeltaError: If they contradict each other.
    """
    if len({entry.name for entry in entries}) < len(entries) or sum(entry.nbytes for entry in entries) != len(data):
        raise DeltaError("it has a name twice, or more or fewer positions than it says")
    seeded = dict(_drawn(entries, seed))
    mask: Mask = {}
    for entry, encoded in zip(entries, data.split([entry.nbytes for entry in entries]), strict=True):
        if entry.coding == SEED:
            positions = seeded[entry.name]
        elif entry.coding not in (WHOLE, NONE):
            positions = position_codec.decode(encoded, entry.coding, entry.kept, entry.shape)
        else:
            positions = slice(None if entry.coding == WHOLE else 0)
        kept = torch.from_numpy(np.zeros(prod(entry.shape), bool))  # takes memory where it is written to only
        kept[positions] = True
        mask[entry.name] = kept.view(entry.shape)
    return mask if seed is None else Seeded(mask, seed[0])


def _check_sizes(entries: Sequence[_Entry], nbytes: int) -> None:
    """Refuse tensors that take more memory than a file of so many bytes can speak of in good faith.

    Raises:
        DeltaError: If they do.
    """
    whole = sum(entry.kept for entry in entries if entry.coding == WHOLE)
    if sum(prod(entry.shape) for entry in entries) > _MOST_ENTRIES or whole > position_codec.MOST + FEWEST * nbytes:
        raise DeltaError(f"it has too many entries, or keeps too many tensors whole, for a file of {nbytes:,} bytes")


def _drawn(entries: Sequence[_Entry], seed: Any) -> Iterator[tuple[str, Tensor]]:
    """Draw the positions of the tensors that a random mask has in the file.

    Raises:
        DeltaError: If the seed is not that of such a mask, or others come back.
    """
    counts = {entry.name: entry.kept for entry in entries if entry.coding == SEED}
    if seed is None and not counts:
        return
    order = [ScoredParameter(entry.name, entry.shape, entry.coding == WHOLE) for entry in entries]
    if not isinstance(seed, list) or len(seed) != 4 or not isinstance(seed[3], str):
        raise DeltaError("it has a mask by a seed that is none")
    for number, end in zip(seed, (1 << 63, STEPS, 1 << 63), strict=False):
        if type(number) is not int or not 0 <= number < end:
            raise DeltaError("it has a mask by a seed that is none")
    if any(entry.coding not in (SEED, WHOLE, NONE) for entry in entries) or not _is_cheap(order, sum(counts.values())):
        raise DeltaError("it has a mask by a seed that is not one of its tensors, or too large")
    try:
        yield from expand(SeedRecipe(*seed), order, counts)
    except DeltaError as error:  # of a file that need not be damaged
        raise FishexpError(str(error)) from None


def _recipe(
    shapes: Mapping[str, tuple[int, ...]], seed: int, positions: Mapping[str, Tensor | None]
) -> SeedRecipe | None:
    """Return the recipe of a random mask; None if it has none, or a reader would not follow it."""
    some = {name: found for name, found in positions.items() if found is not None and len(found)}
    order = [ScoredParameter(name, shape, positions[name] is None) for name, shape in shapes.items()]
    if not some or not _is_cheap(order, sum(map(len, some.values()))):
        return None
    return make_recipe(order, seed, some)


def _is_cheap(order: Sequence[ScoredParameter], kept: int) -> bool:
    """Tell whether a reader draws a random mask of so many kept entries in good faith."""
    return sum(prod(p.shape) for p in order) <= min(FEWEST * kept, _MOST_SCORES) and kept <= _MOST_SEEDED


def _entry(value: Any) -> _Entry:
    """Read the description of a tensor.

    Raises:
        DeltaError: If it is none.
    """
    if not isinstance(value, list) or len(value) != len(_Entry._fields):
        raise DeltaError("a tensor has not name, shape, coding, count and bytes")
    name, shape, coding, count, nbytes = value
    if not isinstance(name, str) or not isinstance(coding, str) or not isinstance(shape, list):
        raise DeltaError("a tensor has a name, a coding or a shape that is none")
    if len(shape) > _DIMENSIONS or any(
        type(n) is not int or not 0 <= n <= _MOST_ENTRIES for n in (*shape, count, nbytes)
    ):
        raise DeltaError("a tensor has a size that is none")
    numel = prod(shape)
    fits = {NONE: count == 0, WHOLE: count == numel, SEED: 0 < count < numel}.get(coding, 0 < count < numel)
    if not fits or (coding in (NONE, WHOLE, SEED) and nbytes):
        raise DeltaError("a tensor has more kept entries or fewer than it can, or bytes that it does not need")
    return _Entry(name, tuple(shape), coding, count, nbytes)


def _text(index: Mapping[str, Any]) -> bytes:
    """Write the index in a single possible way."""
    return json.dumps(index, sort_keys=True, separators=(",", ":")).encode("ascii")


def _checksum(index: Mapping[str, Any], data: np.ndarray) -> str:
    return hashlib.sha256(_text(index) + data.tobytes()).hexdigest()


def _parse(packed: bytes) -> dict[str, Any]:
    """Read the text of an index; it takes a small multiple of ``_LONGEST_TEXT`` at most.

    Raises:
        DeltaError: If it is none.
    """
    try:
        text = zlib.decompressobj().decompress(packed, _LONGEST_TEXT)
        index = json.loads(text)
    except (zlib.error, ValueError, RecursionError):
        index = None
    if not isinstance(index, dict):
        raise DeltaError("its index is not written as a mask's is")
    return index
