"""A delta as a file; the package's docstring has the layout."""

import hashlib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import BinaryIO

import torch
from torch import Tensor

from fishexp.delta.container import Slot, header_bytes, read_header, read_slot
from fishexp.delta.content import Content
from fishexp.delta.fingerprint import CODES, DTYPES, raw
from fishexp.delta.header import WHOLE, Entry, Header, unpack
from fishexp.delta.moved import Moved
from fishexp.delta.part import SEED, Mask, Part
from fishexp.errors import DeltaError
from fishexp.masks import position_codec
from fishexp.system.atomic import replacing

KEY = "fishexp.delta"  # of the metadata
POSITIONS, VALUES = "positions", "values."


def save(delta: Content, path: Path) -> None:
    """Write ``delta`` to ``path``, whole or not at all."""
    entries: dict[str, Entry] = {}
    mask: Mask | None = None
    dtypes = {moved.values.dtype for moved in delta.moved.values()}
    ordered = sorted((CODES[dtype] for dtype in dtypes), key=lambda code: (-DTYPES[code].itemsize, code))  # aligned
    data: dict[str, list[memoryview]] = {VALUES + code: [] for code in ordered} | {POSITIONS: []}
    for name, moved in sorted(delta.moved.items()):
        coding, encoded = WHOLE, torch.empty(0, dtype=torch.uint8)
        if isinstance(moved.places, Part):
            coding, mask = SEED, moved.places.mask
        elif moved.places is not None:
            coding, encoded = position_codec.encode(moved.places, moved.shape)
        entries[name] = Entry(coding, len(moved.values), len(encoded), moved.after)
        data[VALUES + CODES[moved.values.dtype]].append(raw(moved.values))
        data[POSITIONS].append(raw(encoded))
    header = Header(delta.base, entries, delta.removed, delta.tied, mask)

    checksum = hashlib.sha256(header.pack())
    for part in (part for parts in data.values() for part in parts):
        checksum.update(part)
    sizes = {name: (_dtype(name), sum(part.nbytes for part in parts)) for name, parts in data.items()}
    with replacing(path) as temporary, temporary.open("wb") as file:
        file.write(header_bytes(sizes, {KEY: header.pack(checksum.hexdigest()).decode("ascii")}))
        for part in (part for parts in data.values() for part in parts):
            file.write(part)


def _dtype(name: str) -> torch.dtype:
    """Of a tensor of the file."""
    return torch.uint8 if name == POSITIONS else DTYPES[name.removeprefix(VALUES)]


def read(path: Path) -> Content:
    """The delta in a file, of which nothing is used before it is checked.

    What is read takes a small multiple of the file's own size.

    Raises:
        DeltaError: If it is no delta, of another version, or damaged.
        OSError: If it cannot be read.
    """
    with path.open("rb") as file:
        slots, header, checksum = read_beginning(file, path)
        try:
            data = {name: read_slot(file, slot, path) for name, slot in slots.items()}
            found = hashlib.sha256(header.pack())
            for tensor in data.values():
                found.update(raw(tensor))
            if found.hexdigest() != checksum:
                raise DeltaError("its checksum is another one")
            return Content(header.base, dict(_moved(header, data)), header.removed, header.tied)
        except DeltaError as error:
            raise DeltaError(f"{path} is damaged: {error}") from None


def read_beginning(file: BinaryIO, path: Path) -> tuple[dict[str, Slot], Header, str]:
    """Where values and positions lie, what the header says of them, and the checksum.

    Raises:
        DeltaError: If it is no delta, of another version, or damaged as far as can be seen from here.
    """
    slots, metadata = read_header(file, path)
    if metadata.keys() != {KEY}:
        raise DeltaError(f"{path} is no delta, but another safetensors file")
    header, checksum = unpack(metadata[KEY], str(path))
    try:
        _check_slots(slots)
    except DeltaError as error:
        raise DeltaError(f"{path} is damaged: {error}") from None
    return slots, header, checksum


def _check_slots(slots: Mapping[str, Slot]) -> None:
    for name, slot in slots.items():
        known = name == POSITIONS or (name.startswith(VALUES) and name.removeprefix(VALUES) in DTYPES)
        if not known or slot.dtype != _dtype(name) or len(slot.shape) != 1:
            raise DeltaError(f"the tensor {name[:40]!r} is none of a delta")
    if POSITIONS not in slots:
        raise DeltaError("it has no positions")


def _moved(header: Header, data: Mapping[str, Tensor]) -> Iterator[tuple[str, Moved]]:
    """The new values of each tensor, taken from where those of the last one ended.

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
        encoded = take(POSITIONS, entry.bytes)
        places = None
        if entry.coding == SEED and header.mask is not None:
            places = Part(header.mask, name)
        elif entry.coding != WHOLE:
            places = position_codec.decode(encoded, entry.coding, entry.count, entry.after.shape)
            new = entry.after.entries - header.base[name].entries  # of new rows, each of which needs a value
            if new and int(places[-new]) != header.base[name].entries:
                raise DeltaError("a new row has not all values")
        if values.dtype == torch.bool and bool((values.view(torch.uint8) > 1).any()):
            raise DeltaError("a bool is neither true nor false")
        yield name, Moved(entry.after.shape, places, values, entry.after.sha256 or "")
    if any(len(rest) for rest in left.values()):
        raise DeltaError("it has more positions or values than it says")
