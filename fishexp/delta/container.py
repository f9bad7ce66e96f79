"""The safetensors file, read without trust: every length, offset and type is checked before it is used."""

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fishexp.delta.fingerprint import CODES, DTYPES, canonical
from fishexp.errors import DeltaError

HEADER = 100_000_000  # bytes of a header at most, as safetensors has it
DIMENSIONS = 64


@dataclass(frozen=True)
class Slot:
    """Where a tensor lies: ``bytes`` from ``start``, counted from the beginning of the file."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    bytes: int


def read_header(file: BinaryIO, name: str | Path) -> tuple[dict[str, Slot], dict[str, str]]:
    """Where each tensor of a safetensors file lies, in the order of the file, and its metadata.

    Raises:
        DeltaError: If it is no safetensors file, or damaged.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 0 < length <= min(size - 8, HEADER):
        raise DeltaError(f"{name} is not a safetensors file, or damaged: its first eight bytes are no header's length")
    header = parse(exactly(file, length, name), name)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DeltaError(f"{name} is damaged: its metadata are no strings")
    slots, end = {}, 0
    for tensor, entry in sorted(header.items(), key=lambda item: _offsets(item[1], item[0], name)):
        start, stop = entry["data_offsets"]
        slots[tensor] = Slot(*_type(entry, tensor, name), start=8 + length + start, bytes=stop - start)
        if start != end or slots[tensor].bytes != prod(slots[tensor].shape) * slots[tensor].dtype.itemsize:
            raise DeltaError(f"{name} is damaged: the offsets of {tensor!r} do not fit its shape, or leave a gap")
        end = stop
    if 8 + length + end != size:
        raise DeltaError(f"{name} is damaged: it has {size} bytes, its header speaks of {8 + length + end}")
    return slots, metadata


def _offsets(entry: Any, tensor: str, name: str | Path) -> tuple[int, int]:
    pair = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(pair, list) or len(pair) != 2 or not all(is_size(n) for n in pair) or pair[1] < pair[0]:
        raise DeltaError(f"{name} is damaged: {tensor!r} has no valid offsets")
    return pair[0], pair[1]


def _type(entry: dict[str, Any], tensor: str, name: str | Path) -> tuple[torch.dtype, tuple[int, ...]]:
    code, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(code, str) or code not in DTYPES:
        raise DeltaError(f"{name}: {tensor!r} is of a type that is not known here: {str(code)[:40]!r}")
    if not is_shape(shape):
        raise DeltaError(f"{name} is damaged: {tensor!r} has no valid shape")
    return DTYPES[code], tuple(shape)  # type: ignore[arg-type]


def is_size(value: object) -> bool:
    """Whether it is a number of things that a file may speak of; a bool is none."""
    return type(value) is int and 0 <= value < 2**63


def is_shape(value: object) -> bool:
    """Whether it is a list of sizes, of not absurdly many dimensions and entries."""
    return (
        isinstance(value, list)
        and len(value) <= DIMENSIONS
        and all(is_size(n) for n in value)
        and prod(n for n in value if n) < 2**60  # bytes fit 64 bits
    )


def parse(text: bytes | bytearray, name: str | Path) -> dict[str, Any]:
    """A JSON object, in which no key occurs twice."""
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DeltaError(f"{name} is damaged: its header is not valid JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise DeltaError(f"{name} is damaged: its header is no JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def exactly(file: BinaryIO, size: int, name: str | Path) -> bytearray:
    """So many bytes from where ``file`` is."""
    buffer = bytearray(size)
    if file.readinto(buffer) != size:  # type: ignore[attr-defined]
        raise DeltaError(f"{name} became shorter while it was read")
    return buffer


def read_slot(file: BinaryIO, slot: Slot, name: str | Path) -> Tensor:
    """The tensor of a file, in memory of its own."""
    file.seek(slot.start)
    buffer = exactly(file, slot.bytes, name)
    if not buffer:
        return torch.empty(slot.shape, dtype=slot.dtype)
    return torch.frombuffer(buffer, dtype=torch.uint8).view(slot.dtype).view(slot.shape)


def header_bytes(sizes: Mapping[str, tuple[torch.dtype, int]], metadata: dict[str, str]) -> bytes:
    """Length and header of a file of vectors, name -> type and bytes, which follow it in this order."""
    header: dict[str, Any] = {"__metadata__": metadata}
    end = 0
    for name, (dtype, size) in sizes.items():
        shape = [size // dtype.itemsize]
        header[name] = {"dtype": CODES[dtype], "shape": shape, "data_offsets": [end, end + size]}
        end += size
    text = canonical(header)
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text
