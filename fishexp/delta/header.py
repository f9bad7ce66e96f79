"""The header of a delta file: all but positions and values, written in a single possible way, read without trust."""

from base64 import b64decode, b64encode
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

from fishexp.delta.checkpoint import is_shape, is_size
from fishexp.delta.content import SeedMask
from fishexp.delta.fingerprint import CODES, DTYPES, Fingerprint
from fishexp.delta.names import is_name
from fishexp.errors import DeltaError
from fishexp.masks.random_masks import FEWEST, STEPS, ScoredParameter, SeedRecipe

KEYS = {"base", "moved", "removed", "seed", "tied"}  # of the JSON object
WHOLE = "whole"  # the coding of the positions of a tensor of which all entries are kept
SEED = "seed"  # the coding of the positions of a tensor that the seed mask of the file has


@dataclass(frozen=True)
class TensorEntry:
    """Describe a tensor that has kept entries.

    Attributes:
        coding: How their positions are written.
        count: Number of kept entries.
        nbytes: Bytes that their positions take.
        after: The tensor's fingerprint with the new values.
        unmoved: How many of the kept entries have no value, as theirs is the base's.
        unmoved_nbytes: Bytes that say which.
    """

    coding: str
    count: int
    nbytes: int
    after: Fingerprint
    unmoved: int = 0
    unmoved_nbytes: int = 0

    @property
    def values(self) -> int:
        """Count the new values."""
        return self.count - self.unmoved


@dataclass(frozen=True)
class DeltaHeader:
    """Hold all of a delta but positions and values; see :class:`fishexp.delta.content.Content`."""

    base: Mapping[str, Fingerprint]
    moved: Mapping[str, TensorEntry]
    removed: tuple[str, ...]
    tied: Mapping[str, str]
    mask: SeedMask | None = None

    def pack(self, version: int) -> dict[str, Any]:
        """Return the header of a file of this version as values for JSON."""
        moved = {}
        for name, entry in self.moved.items():
            unmoved = [] if version == 1 else [entry.unmoved, entry.unmoved_nbytes]
            moved[name] = [entry.coding, entry.count, entry.nbytes, *unmoved, _pack_sha256(entry.after.sha256)]
            if name not in self.base or not _same_kind(self.base[name], entry.after):
                moved[name] += [CODES[entry.after.dtype], entry.after.shape]
        return {
            "base": {name: [CODES[t.dtype], t.shape, _pack_sha256(t.sha256)] for name, t in self.base.items()},
            "moved": moved,
            "removed": sorted(self.removed),
            "seed": None if self.mask is None else _pack_mask(self.mask, sorted(self.base.keys() | self.moved.keys())),
            "tied": dict(self.tied),
        }


def _same_kind(first: Fingerprint, second: Fingerprint) -> bool:
    return (first.dtype, first.shape) == (second.dtype, second.shape)


def _pack_sha256(sha256: str | None) -> str | None:
    """Write 32 bytes in 44 characters, not 64."""
    return None if sha256 is None else b64encode(bytes.fromhex(sha256)).decode("ascii")


def _pack_mask(mask: SeedMask, names: Sequence[str]) -> list[object]:
    """Write the recipe of a mask, with the parameters by their number among ``names``."""
    number = {name: i for i, name in enumerate(names)}
    return [*mask.recipe, [number[parameter.name] for parameter in mask.order]]


def unpack(value: Mapping[str, Any], version: int) -> DeltaHeader:
    """Read the header that :meth:`DeltaHeader.pack` made.

    Raises:
        DeltaError: If anything in it is not as it is written there, or contradicts something else in it.
    """
    if value.keys() != KEYS:
        raise DeltaError(f"it has not the keys {', '.join(sorted(KEYS))}")
    base = {_name(name): _fingerprint(tensor) for name, tensor in _object(value["base"]).items()}
    moved = {_name(name): _entry(entry, base.get(name), version) for name, entry in _object(value["moved"]).items()}
    removed = tuple(_name(name) for name in value["removed"]) if isinstance(value["removed"], list) else ()
    shapes = {name: t.shape for name, t in (base | {n: entry.after for n, entry in moved.items()}).items()}
    mask = _unpack_mask(value["seed"], shapes, moved)
    header = DeltaHeader(base, moved, removed, {_name(a): _name(b) for a, b in _object(value["tied"]).items()}, mask)
    _check_names(header)
    return header


def _object(value: object) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DeltaError("its header lacks an object")
    return value


def _name(value: object) -> str:
    if not isinstance(value, str) or not is_name(value):
        raise DeltaError(f"{str(value)[:80]!r} is no name of a tensor")
    return value


def _fingerprint(value: object) -> Fingerprint:
    if not isinstance(value, list) or len(value) != 3:
        raise DeltaError("a tensor has not type, shape and SHA-256")
    code, shape, sha256 = value
    if not isinstance(code, str) or code not in DTYPES or not is_shape(shape):
        raise DeltaError("a tensor has a type or a shape that is none")
    return Fingerprint(DTYPES[code], tuple(shape), None if sha256 is None else _unpack_sha256(sha256))


def _unpack_sha256(value: object) -> str:
    try:
        sha256 = b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        sha256 = b""
    if len(sha256) != 32:
        raise DeltaError("a SHA-256 is none")
    return sha256.hex()


def _entry(value: object, base: Fingerprint | None, version: int) -> TensorEntry:
    """Read the entry of a tensor that has this base."""
    fields = 4 if version == 1 else 6  # and type and shape
    if not isinstance(value, list) or len(value) not in (fields, fields + 2) or (len(value) == fields and base is None):
        raise DeltaError("a moved tensor has not coding, counts, bytes, SHA-256, and type and shape if these are new")
    *numbers, sha256 = value[1:fields]
    coding, kind = value[0], value[fields:]
    after = _fingerprint([*(kind or ([CODES[base.dtype], list(base.shape)] if base else [])), sha256])
    if after.sha256 is None or not isinstance(coding, str) or not all(map(is_size, numbers)):
        raise DeltaError("a moved tensor has a coding, count, size or SHA-256 that is none")
    count, size, unmoved, unmoved_size = (*numbers, 0, 0)[:4]
    if base is not None and not base.grows_to(after):
        raise DeltaError("a tensor changes in more than its number of rows")
    new = after.entries - (0 if base is None else base.entries)
    whole = coding == WHOLE
    if coding == SEED and (size or new):
        raise DeltaError("a tensor whose mask is a seed has bytes of positions, or new rows")
    if not new <= count <= after.entries or (whole and (count < after.entries or size)) or (base is None and not whole):
        raise DeltaError("a moved tensor has more values or fewer than it can")
    if unmoved > count - new or (unmoved_size and not unmoved):
        raise DeltaError("a moved tensor has more entries that did not move than the base has")
    return TensorEntry(coding, count, size, after, unmoved, unmoved_size)


def _unpack_mask(
    value: object, shapes: Mapping[str, tuple[int, ...]], moved: Mapping[str, TensorEntry]
) -> SeedMask | None:
    """Read the mask that :func:`_pack_mask` wrote; no score is drawn yet.

    Args:
        value: None if there was no mask.
        shapes: name -> shape of each tensor of the file.
        moved: Those that have kept entries.

    Raises:
        DeltaError: If it is not the mask of these tensors, or has too many scores for the entries that it keeps.
    """
    counts = {name: entry.count for name, entry in moved.items() if entry.coding == SEED}
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
    order = [ScoredParameter(names[n], shapes[names[n]], names[n] not in counts) for n in numbers]
    known = {parameter.name for parameter in order}
    if len(known) < len(order) or not counts.keys() <= known or not all(counts.values()):
        raise wrong
    if not isinstance(sha256, str) or sum(prod(parameter.shape) for parameter in order) > FEWEST * sum(counts.values()):
        raise wrong
    return SeedMask(SeedRecipe(seed, threshold, ties, sha256), order, counts)


def _check_names(header: DeltaHeader) -> None:
    known = header.base.keys() | header.moved.keys()
    gone = set(header.removed)
    if len(gone) < len(header.removed) or not gone <= header.base.keys() - header.moved.keys():
        raise DeltaError("it removes a tensor that is not there, or that has new values")
    if any(other in known or first not in known for other, first in header.tied.items()):
        raise DeltaError("it ties a tensor to one that it does not have")
