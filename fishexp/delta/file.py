"""Delta files: written whole or not at all, and read without trust; the package's docstring has the layout."""

import hashlib
import zlib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import torch
from torch import Tensor

from fishexp.delta import planes
from fishexp.delta.checkpoint import StoredTensor, header_bytes, is_size, parse, read_header
from fishexp.delta.content import Content, SeededPositions, SeedMask, TensorDelta
from fishexp.delta.fingerprint import CODES, DTYPES, Fingerprint, canonical, raw
from fishexp.delta.header import SEED, WHOLE, DeltaHeader, TensorEntry, unpack
from fishexp.errors import DeltaError
from fishexp.masks import position_codec
from fishexp.system.atomic import replacing

VERSION = 2  # of the files that are written
KEY = "fishexp.delta"  # of the metadata
HEADER, POSITIONS, UNMOVED = "header", "positions", "unmoved"  # names of vectors
VALUES = "values."  # what the names of the others begin with

# values are coded where they are at most one in so many of the result's entries: more take longer to decode than
# what a shorter file saves, beside the time to hash the base and the result
_FEW = 32

_TYPES = {VALUES + code: dtype for code, dtype in DTYPES.items()}
_PLANES = {code: [f"{VALUES}{code}.{i}" for i in range(planes.width(dtype))] for code, dtype in DTYPES.items()}
# version -> name -> type of each vector that it may have
_VECTORS: Mapping[int, Mapping[str, torch.dtype]] = {
    1: _TYPES | {POSITIONS: torch.uint8},
    2: _TYPES
    | dict.fromkeys([HEADER, POSITIONS, UNMOVED, *(name for names in _PLANES.values() for name in names)], torch.uint8),
}


class Beginning(NamedTuple):
    """Hold what a file says before its data are looked at.

    Attributes:
        version: Of the file.
        vectors: name -> where each vector lies.
        header: All of the delta but positions and values.
        text: What the checksum begins with.
        checksum: SHA-256 in hexadecimal.
    """

    version: int
    vectors: Mapping[str, StoredTensor]
    header: DeltaHeader
    text: bytes
    checksum: str


def save(delta: Content, path: Path) -> None:
    """Write ``delta`` to ``path``, whole or not at all.

    Raises:
        OSError: If it cannot be written.
    """
    header, data = _content_parts(delta)
    text = canonical(header.pack(VERSION))
    about = {"checksum": _checksum(text, data), "header": len(text), "version": VERSION}
    values = sum(len(moved.values) for moved in delta.moved.values())
    vectors: dict[str, Sequence[Tensor]] = {HEADER: [planes.pack(text, zlib.Z_DEFAULT_STRATEGY)]}
    for name, parts in data.items():
        few = name in _TYPES and _FEW * values <= sum(tensor.entries for tensor in delta.result.values())
        vectors |= _value_vectors(name, parts) if few else {name: parts}
    # those of wide types first, so that all lie at multiples of their size
    ordered = dict(sorted(vectors.items(), key=lambda item: (-_VECTORS[VERSION][item[0]].itemsize, item[0])))
    kinds = {name: Fingerprint(_VECTORS[VERSION][name], (sum(map(len, parts)),)) for name, parts in ordered.items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header_bytes(kinds, {KEY: canonical(about).decode("ascii")}, sort_keys=True))
        for part in (part for parts in ordered.values() for part in parts):
            file.write(raw(part))


def _content_parts(delta: Content) -> tuple[DeltaHeader, dict[str, list[Tensor]]]:
    """Return the header, and the data as the checksum takes them: the values of each type, positions, unmoved ones."""
    entries: dict[str, TensorEntry] = {}
    mask = _seed_mask(delta)
    data: dict[str, list[Tensor]] = {VALUES + CODES[moved.values.dtype]: [] for moved in delta.moved.values()}
    data = dict(sorted(data.items())) | {POSITIONS: [], UNMOVED: []}
    for name, moved in sorted(delta.moved.items()):
        coding, places, still = WHOLE, *torch.empty(2, 0, dtype=torch.uint8, device="cpu")
        if mask is not None and isinstance(moved.places, SeededPositions):
            coding = SEED
        elif moved.kept is not None:
            coding, places = position_codec.encode(moved.kept, moved.shape)
        if moved.unmoved is not None:
            _, still = position_codec.encode(moved.unmoved, (moved.count,), most=0)
        unmoved = moved.count - len(moved.values)
        entries[name] = TensorEntry(coding, moved.count, len(places), moved.after, unmoved, len(still))
        data[VALUES + CODES[moved.values.dtype]].append(moved.values)
        data[POSITIONS].append(places)
        data[UNMOVED].append(still)
    return DeltaHeader(delta.base, entries, delta.removed, delta.tied, mask), data


def _seed_mask(delta: Content) -> SeedMask | None:
    """Return the mask whose seed can stand for positions in a file: all that it drew, by the names that it knows.

    After a chain of deltas some tensors may have the positions of one mask, and others those of another.
    """
    seeded = {name: p for name, moved in delta.moved.items() if isinstance(p := moved.places, SeededPositions)}
    known = delta.base.keys() | delta.moved.keys()
    for mask in (places.mask for places in seeded.values()):
        if seeded.keys() == mask.counts.keys() and known >= {parameter.name for parameter in mask.order}:
            return mask
    return None


def _value_vectors(name: str, parts: Sequence[Tensor]) -> Mapping[str, Sequence[Tensor]]:
    """Return values of a type as planes, or as they are where that is about as short."""
    found = planes.split(torch.cat(list(parts)))
    if found is None:
        return {name: parts}
    return {plane: [data] for plane, data in zip(_PLANES[name.removeprefix(VALUES)], found, strict=True)}


def _checksum(text: bytes, data: Mapping[str, Sequence[Tensor]]) -> str:
    digest = hashlib.sha256(text)
    for part in (part for parts in data.values() for part in parts):
        digest.update(raw(part))
    return digest.hexdigest()


def read(path: Path) -> Content:
    """Read the delta in a file, of which nothing is used before it is checked.

    It takes a multiple of the file's own size in memory: a byte of it stands for eight entries at most.

    Raises:
        DeltaError: If it is no delta, of another version, or damaged.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        beginning = read_beginning(file, path)
        with _damage_of(path):
            data = _read_data(file, beginning)
            if _checksum(beginning.text, {name: [vector] for name, vector in data.items()}) != beginning.checksum:
                raise DeltaError("its checksum is another one")
            header = beginning.header
            return Content(header.base, dict(_tensor_deltas(header, data)), header.removed, header.tied)


@contextmanager
def _damage_of(file: str | Path) -> Iterator[None]:
    """Name the file in an error that says what is wrong with it."""
    try:
        yield
    except DeltaError as error:
        raise DeltaError(f"{file} is damaged: {error}") from None


def read_beginning(file: BinaryIO, path: Path) -> Beginning:
    """Read where values and positions lie, and the delta's header.

    Raises:
        DeltaError: If it is no delta, of another version, or damaged as far as can be seen from here.
    """
    vectors, metadata = read_header(file, path)
    if metadata.keys() != {KEY}:
        raise DeltaError(f"{path} is no delta, but another safetensors file")
    text = metadata[KEY].encode("utf-8", "surrogatepass")
    about = parse(text, path)
    version = about.get("version")
    if type(version) is int and version not in _VECTORS:
        raise DeltaError(f"{path} is a delta of version {str(version)[:20]}; this fishexp reads versions 1 and 2 only")
    with _damage_of(path):
        checksum = about.pop("checksum", None)
        if type(version) is not int or not isinstance(checksum, str):
            raise DeltaError("it has no version or no checksum")
        _check_vectors(vectors, version)
        if version == 1:
            header, hashed = _unpack_first(about)
            again = header.pack(1) | {"checksum": checksum, "version": 1}
        else:
            header, hashed = _read_header_vector(file, vectors[HEADER], about.get("header"))
            again = {"checksum": checksum, "header": len(hashed), "version": version}
        if canonical(again) != text:
            raise DeltaError("its metadata are not written as a delta's are")
        return Beginning(version, vectors, header, hashed, checksum)


def _check_vectors(vectors: Mapping[str, StoredTensor], version: int) -> None:
    for name, vector in vectors.items():
        if vector.dtype != _VECTORS[version].get(name) or len(vector.shape) != 1:
            raise DeltaError(f"the tensor {name[:40]!r} is none of a delta")
    for name in [POSITIONS] if version == 1 else [POSITIONS, UNMOVED, HEADER]:
        if name not in vectors:
            raise DeltaError(f"it has no {name}")


def _unpack_first(about: dict[str, Any]) -> tuple[DeltaHeader, bytes]:
    """Read the header of a file of version 1, which is its metadata, and return it with what was hashed."""
    del about["version"]
    header = unpack(about, 1)
    return header, canonical(header.pack(1) | {"version": 1})


def _read_header_vector(file: BinaryIO, vector: StoredTensor, length: Any) -> tuple[DeltaHeader, bytes]:
    """Read the header from the vector that it is in, and return it with its text of this length."""
    if not is_size(length):
        raise DeltaError("its header has no length")
    text = planes.unpack(vector.read_from(file), length)
    header = unpack(parse(text, file.name), VERSION)
    if canonical(header.pack(VERSION)) != text:
        raise DeltaError("its header is not written as a delta's is")
    return header, text


def _read_data(file: BinaryIO, beginning: Beginning) -> dict[str, Tensor]:
    """Read values of each type, positions and unmoved entries, as the checksum takes them."""
    found = {name: vector.read_from(file) for name, vector in beginning.vectors.items() if name != HEADER}
    if beginning.version == 1:
        return found
    counts = Counter[str]()
    for entry in beginning.header.moved.values():
        counts[CODES[entry.after.dtype]] += entry.values
    values = {name: vector for name, vector in found.items() if name in _TYPES}
    for code, names in _PLANES.items():
        coded = [found[name] for name in names if name in found]
        if coded and VALUES + code in values:
            raise DeltaError(f"it has values of {code} twice")
        if coded:
            values[VALUES + code] = planes.join(coded, counts[code], DTYPES[code])
    return dict(sorted(values.items())) | {name: found[name] for name in (POSITIONS, UNMOVED)}


def _tensor_deltas(header: DeltaHeader, data: Mapping[str, Tensor]) -> Iterator[tuple[str, TensorDelta]]:
    """Yield what each tensor has, by name, taken from where that of the last one ended.

    Raises:
        DeltaError: If there is less than the header says, or more, or a position or a value is none.
    """
    left = dict(data)

    def take(name: str, count: int) -> Tensor:
        if name not in left or len(left[name]) < count:
            raise DeltaError("it has fewer positions or values than it says")
        taken, left[name] = left[name][:count], left[name][count:]
        return taken

    for name, entry in header.moved.items():
        values = take(VALUES + CODES[entry.after.dtype], entry.values)
        encoded = take(POSITIONS, entry.nbytes)
        old = header.base[name].entries if name in header.base else 0
        new = entry.after.entries - old  # of new rows, each of which needs a value
        unmoved = None
        if entry.unmoved:
            still = take(UNMOVED, entry.unmoved_nbytes)
            unmoved = position_codec.decode(still, "gaps", entry.unmoved, (entry.count,))
        if new and unmoved is not None and int(unmoved[-1]) >= entry.count - new:
            raise DeltaError("a new row has not all values")
        places = None
        if entry.coding == SEED and header.mask is not None:
            places = SeededPositions(header.mask, name)
        elif entry.coding != WHOLE:
            places = position_codec.decode(encoded, entry.coding, entry.count, entry.after.shape)
            if new and int(places[-new]) != old:
                raise DeltaError("a new row has not all values")
        if values.dtype == torch.bool and bool((values.view(torch.uint8) > 1).any()):
            raise DeltaError("a bool is neither true nor false")
        yield name, TensorDelta(entry.after.shape, places, values, entry.after.sha256 or "", unmoved)
    if any(len(rest) for rest in left.values()):
        raise DeltaError("it has more positions or values than it says")
