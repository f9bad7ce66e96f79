"""Delta files: written in a single possible way, and read without trust; the package's docstring has the layout."""

import hashlib
from base64 import b64decode, b64encode
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fishexp.delta.checkpoint import StoredTensor, header_bytes, is_shape, is_size, parse, read_header
from fishexp.delta.content import Content, SeededPositions, SeedMask, TensorDelta
from fishexp.delta.fingerprint import CODES, DTYPES, Fingerprint, canonical, raw
from fishexp.delta.names import is_name
from fishexp.errors import DeltaError
from fishexp.masks import position_codec
from fishexp.masks.random_masks import FEWEST, STEPS, ScoredParameter, SeedRecipe
from fishexp.system.atomic import replacing

VERSION = 1
KEY = "fishexp.delta"  # of the metadata
KEYS = {"base", "checksum", "moved", "removed", "seed", "tied", "version"}  # of the JSON object
POSITIONS, VALUES = "positions", "values."  # names of the vectors: the first, and what the others begin with
WHOLE = "whole"  # the coding of the positions of a tensor that is stored whole
SEED = "seed"  # the coding of the positions of a tensor that the seed mask of the file has


@dataclass(frozen=True)
class TensorEntry:
    """Describe a tensor that has new values.

    Attributes:
        coding: How its positions are written.
        count: Number of its values.
        nbytes: Bytes that its positions take.
        after: Its fingerprint with the new values.
    """

    coding: str
    count: int
    nbytes: int
    after: Fingerprint


@dataclass(frozen=True)
class DeltaHeader:
    """Hold all of a delta but positions and values; see :class:`fishexp.delta.content.Content`."""

    base: Mapping[str, Fingerprint]
    moved: Mapping[str, TensorEntry]
    removed: tuple[str, ...]
    tied: Mapping[str, str]
    mask: SeedMask | None = None

    def pack(self, checksum: str | None = None) -> bytes:
        """Write the header as JSON; without a checksum it is the text of which the checksum is computed."""
        moved = {}
        for name, entry in self.moved.items():
            moved[name] = [entry.coding, entry.count, entry.nbytes, _pack_sha256(entry.after.sha256)]
            if name not in self.base or not _same_kind(self.base[name], entry.after):
                moved[name] += [CODES[entry.after.dtype], entry.after.shape]
        value = {
            "base": {name: [CODES[t.dtype], t.shape, _pack_sha256(t.sha256)] for name, t in self.base.items()},
            "moved": moved,
            "removed": sorted(self.removed),
            "seed": None if self.mask is None else _pack_mask(self.mask, sorted(self.base.keys() | self.moved.keys())),
            "tied": dict(self.tied),
            "version": VERSION,
        }
        return canonical(value if checksum is None else value | {"checksum": checksum})


def _same_kind(first: Fingerprint, second: Fingerprint) -> bool:
    return (first.dtype, first.shape) == (second.dtype, second.shape)


def _pack_sha256(sha256: str | None) -> str | None:
    """Write 32 bytes in 44 characters, not 64."""
    return None if sha256 is None else b64encode(bytes.fromhex(sha256)).decode("ascii")


def _pack_mask(mask: SeedMask, names: Sequence[str]) -> list[object]:
    """Write the recipe of a mask, with the parameters by their number among ``names``."""
    number = {name: i for i, name in enumerate(names)}
    return [*mask.recipe, [number[parameter.name] for parameter in mask.order]]


def save(delta: Content, path: Path) -> None:
    """Write ``delta`` to ``path``, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    entries: dict[str, TensorEntry] = {}
    mask: SeedMask | None = None
    dtypes = {moved.values.dtype for moved in delta.moved.values()}
    ordered = sorted((CODES[dtype] for dtype in dtypes), key=lambda code: (-DTYPES[code].itemsize, code))  # aligned
    data: dict[str, list[memoryview]] = {VALUES + code: [] for code in ordered} | {POSITIONS: []}
    for name, moved in sorted(delta.moved.items()):
        coding, encoded = WHOLE, torch.empty(0, dtype=torch.uint8)
        if isinstance(moved.places, SeededPositions):
            coding, mask = SEED, moved.places.mask
        elif moved.places is not None:
            coding, encoded = position_codec.encode(moved.places, moved.shape)
        entries[name] = TensorEntry(coding, len(moved.values), len(encoded), moved.after)
        data[VALUES + CODES[moved.values.dtype]].append(raw(moved.values))
        data[POSITIONS].append(raw(encoded))
    header = DeltaHeader(delta.base, entries, delta.removed, delta.tied, mask)

    checksum = hashlib.sha256(header.pack())
    for part in (part for parts in data.values() for part in parts):
        checksum.update(part)
    kinds: dict[str, Fingerprint] = {}
    for name, parts in data.items():
        dtype = _dtype(name)
        kinds[name] = Fingerprint(dtype, (sum(part.nbytes for part in parts) // dtype.itemsize,))
    metadata = {KEY: header.pack(checksum.hexdigest()).decode("ascii")}
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header_bytes(kinds, metadata, sort_keys=True))
        for part in (part for parts in data.values() for part in parts):
            file.write(part)


def _dtype(name: str) -> torch.dtype:
    """Return the type of a vector of the file."""
    return torch.uint8 if name == POSITIONS else DTYPES[name.removeprefix(VALUES)]


def read(path: Path) -> Content:
    """Read the delta in a file, of which nothing is used before it is checked.

    It takes a small multiple of the file's own size in memory.

    Raises:
        DeltaError: If it is no delta, of another version, or damaged.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        vectors, header, checksum = read_beginning(file, path)
        with _damage_of(path):
            data = {name: vector.read_from(file) for name, vector in vectors.items()}
            found = hashlib.sha256(header.pack())
            for tensor in data.values():
                found.update(raw(tensor))
            if found.hexdigest() != checksum:
                raise DeltaError("its checksum is another one")
            return Content(header.base, dict(_tensor_deltas(header, data)), header.removed, header.tied)


@contextmanager
def _damage_of(file: str | Path) -> Iterator[None]:
    """Name the file in an error that says what is wrong with it."""
    try:
        yield
    except DeltaError as error:
        raise DeltaError(f"{file} is damaged: {error}") from None


def read_beginning(file: BinaryIO, path: Path) -> tuple[dict[str, StoredTensor], DeltaHeader, str]:
    """Read where values and positions lie, the delta's header, and the checksum.

    Raises:
        DeltaError: If it is no delta, of another version, or damaged as far as can be seen from here.
    """
    vectors, metadata = read_header(file, path)
    if metadata.keys() != {KEY}:
        raise DeltaError(f"{path} is no delta, but another safetensors file")
    header, checksum = _unpack(metadata[KEY], str(path))
    with _damage_of(path):
        _check_vectors(vectors)
    return vectors, header, checksum


def _check_vectors(vectors: Mapping[str, StoredTensor]) -> None:
    for name, vector in vectors.items():
        known = name == POSITIONS or (name.startswith(VALUES) and name.removeprefix(VALUES) in DTYPES)
        if not known or vector.dtype != _dtype(name) or len(vector.shape) != 1:
            raise DeltaError(f"the tensor {name[:40]!r} is none of a delta")
    if POSITIONS not in vectors:
        raise DeltaError("it has no positions")


def _tensor_deltas(header: DeltaHeader, data: Mapping[str, Tensor]) -> Iterator[tuple[str, TensorDelta]]:
    """Yield the new values of each tensor by name, taken from where those of the last one ended.

    Raises:
        DeltaError: If there are fewer than the header says, or more, or a position or a value is none.
    """
    left = dict(data)

    def take(name: str, count: int) -> Tensor:
        if name not in left or len(left[name]) < count:
            raise DeltaError("it has fewer positions or values than it says")
        taken, left[name] = left[name][:count], left[name][count:]
        return taken

    for name, entry in header.moved.items():
        values = take(VALUES + CODES[entry.after.dtype], entry.count)
        encoded = take(POSITIONS, entry.nbytes)
        places = None
        if entry.coding == SEED and header.mask is not None:
            places = SeededPositions(header.mask, name)
        elif entry.coding != WHOLE:
            places = position_codec.decode(encoded, entry.coding, entry.count, entry.after.shape)
            new = entry.after.entries - header.base[name].entries  # of new rows, each of which needs a value
            if new and int(places[-new]) != header.base[name].entries:
                raise DeltaError("a new row has not all values")
        if values.dtype == torch.bool and bool((values.view(torch.uint8) > 1).any()):
            raise DeltaError("a bool is neither true nor false")
        yield name, TensorDelta(entry.after.shape, places, values, entry.after.sha256 or "")
    if any(len(rest) for rest in left.values()):
        raise DeltaError("it has more positions or values than it says")


def _unpack(text: str, file: str) -> tuple[DeltaHeader, str]:
    """Read the header and the checksum that a JSON text holds.

    Raises:
        DeltaError: If it is of another version, or anything in it is not as :meth:`DeltaHeader.pack` writes it, or
            contradicts something else in it.
    """
    value = parse(text.encode("utf-8", "surrogatepass"), file)
    version = value.get("version")
    if type(version) is int and version != VERSION:
        raise DeltaError(f"{file} is a delta of version {str(version)[:20]}; this fishexp reads version {VERSION} only")
    with _damage_of(file):
        if value.keys() != KEYS or version != VERSION:
            raise DeltaError(f"it has not the keys {', '.join(sorted(KEYS))}")
        base = {_name(name): _fingerprint(tensor) for name, tensor in _object(value["base"]).items()}
        moved = {_name(name): _entry(entry, base.get(name)) for name, entry in _object(value["moved"]).items()}
        removed = tuple(_name(name) for name in value["removed"]) if isinstance(value["removed"], list) else ()
        shapes = {name: t.shape for name, t in (base | {n: entry.after for n, entry in moved.items()}).items()}
        mask = _unpack_mask(value["seed"], shapes, moved)
        header = DeltaHeader(
            base, moved, removed, {_name(a): _name(b) for a, b in _object(value["tied"]).items()}, mask
        )
        _check_names(header)
        checksum = value["checksum"]
        if not isinstance(checksum, str) or header.pack(checksum) != text.encode("utf-8", "surrogatepass"):
            raise DeltaError("its header is not written as a delta's is")
        return header, checksum


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


def _entry(value: object, base: Fingerprint | None) -> TensorEntry:
    """Read the entry of a tensor that has this base."""
    if not isinstance(value, list) or len(value) not in (4, 6) or (len(value) == 4 and base is None):
        raise DeltaError("a moved tensor has not coding, count, bytes, SHA-256, and type and shape if these are new")
    coding, count, size, sha256 = value[:4]
    after = _fingerprint(
        [CODES[base.dtype], list(base.shape), sha256] if len(value) == 4 and base else [*value[4:], sha256]
    )
    if after.sha256 is None or not isinstance(coding, str) or not is_size(count) or not is_size(size):
        raise DeltaError("a moved tensor has a coding, count, size or SHA-256 that is none")
    if base is not None and not base.grows_to(after):
        raise DeltaError("a tensor changes in more than its number of rows")
    new = after.entries - (0 if base is None else base.entries)
    whole = coding == WHOLE
    if coding == SEED and (size or new):
        raise DeltaError("a tensor whose mask is a seed has bytes of positions, or new rows")
    if not new <= count <= after.entries or (whole and (count < after.entries or size)) or (base is None and not whole):
        raise DeltaError("a moved tensor has more values or fewer than it can")
    return TensorEntry(coding, count, size, after)


def _unpack_mask(
    value: object, shapes: Mapping[str, tuple[int, ...]], moved: Mapping[str, TensorEntry]
) -> SeedMask | None:
    """Read the mask that :func:`_pack_mask` wrote; no score is drawn yet.

    Args:
        value: None if there was no mask.
        shapes: name -> shape of each tensor of the file.
        moved: Those that have new values.

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
