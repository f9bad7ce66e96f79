"""The JSON of a delta file: written in one way only, and checked before any of it is used."""

from base64 import b64decode, b64encode
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from fishexp.delta import part
from fishexp.delta.container import is_shape, is_size, parse
from fishexp.delta.fingerprint import CODES, DTYPES, Fingerprint, canonical
from fishexp.delta.part import Mask
from fishexp.delta.tensors import is_name
from fishexp.errors import DeltaError

VERSION = 1
WHOLE = "whole"  # the coding of the positions of a tensor that is stored whole
KEYS = {"base", "checksum", "moved", "removed", "seed", "tied", "version"}


@dataclass(frozen=True)
class Entry:
    """A moved tensor.

    Attributes:
        coding: How its positions are written.
        count: Of its values.
        bytes: That its positions take.
        after: What it becomes.
    """

    coding: str
    count: int
    bytes: int
    after: Fingerprint


@dataclass(frozen=True)
class Header:
    """All of a delta but positions and values; see :class:`fishexp.delta.content.Content`."""

    base: Mapping[str, Fingerprint]
    moved: Mapping[str, Entry]
    removed: tuple[str, ...]
    tied: Mapping[str, str]
    mask: Mask | None = None

    def pack(self, checksum: str | None = None) -> bytes:
        """As JSON; without a checksum it is what the checksum is of."""
        moved = {}
        for name, entry in self.moved.items():
            moved[name] = [entry.coding, entry.count, entry.bytes, _pack(entry.after.sha256)]
            if name not in self.base or not _same_kind(self.base[name], entry.after):
                moved[name] += [CODES[entry.after.dtype], entry.after.shape]
        value = {
            "base": {name: [CODES[one.dtype], one.shape, _pack(one.sha256)] for name, one in self.base.items()},
            "moved": moved,
            "removed": sorted(self.removed),
            "seed": None if self.mask is None else self.mask.pack(sorted(self.base.keys() | self.moved.keys())),
            "tied": dict(self.tied),
            "version": VERSION,
        }
        return canonical(value if checksum is None else value | {"checksum": checksum})


def _same_kind(one: Fingerprint, other: Fingerprint) -> bool:
    return (one.dtype, one.shape) == (other.dtype, other.shape)


def _pack(sha256: str | None) -> str | None:
    """32 bytes in 44 characters, not 64."""
    return None if sha256 is None else b64encode(bytes.fromhex(sha256)).decode("ascii")


def unpack(text: str, file: str) -> tuple[Header, str]:
    """The header and the checksum that a JSON text holds.

    Raises:
        DeltaError: If it is of another version, or anything in it is not as :meth:`Header.pack` writes it, or
            contradicts something else in it.
    """
    value = parse(text.encode("utf-8", "surrogatepass"), file)
    version = value.get("version")
    if type(version) is int and version != VERSION:
        raise DeltaError(f"{file} is a delta of version {str(version)[:20]}; this fishexp reads version {VERSION} only")
    try:
        if value.keys() != KEYS or version != VERSION:
            raise DeltaError(f"it has not the keys {', '.join(sorted(KEYS))}")
        base = {_name(name): _fingerprint(one) for name, one in _object(value["base"]).items()}
        moved = {_name(name): _entry(entry, base.get(name)) for name, entry in _object(value["moved"]).items()}
        removed = tuple(_name(name) for name in value["removed"]) if isinstance(value["removed"], list) else ()
        shapes = {name: one.shape for name, one in (base | {n: entry.after for n, entry in moved.items()}).items()}
        mask = part.unpack(value["seed"], shapes, {name: (entry.coding, entry.count) for name, entry in moved.items()})
        header = Header(base, moved, removed, {_name(a): _name(b) for a, b in _object(value["tied"]).items()}, mask)
        _check_names(header)
        checksum = value["checksum"]
        if not isinstance(checksum, str) or header.pack(checksum) != text.encode("utf-8", "surrogatepass"):
            raise DeltaError("its header is not written as a delta's is")
    except DeltaError as error:
        raise DeltaError(f"{file} is damaged: {error}") from None
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
    return Fingerprint(DTYPES[code], tuple(shape), None if sha256 is None else _unpack(sha256))


def _unpack(value: object) -> str:
    try:
        sha256 = b64decode(value, validate=True) if isinstance(value, str) else b""
    except ValueError:
        sha256 = b""
    if len(sha256) != 32:
        raise DeltaError("a SHA-256 is none")
    return sha256.hex()


def _entry(value: object, base: Fingerprint | None) -> Entry:
    """Of a tensor that has this base."""
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
    if coding == part.SEED and (size or new):
        raise DeltaError("a tensor whose mask is a seed has bytes of positions, or new rows")
    if not new <= count <= after.entries or (whole and (count < after.entries or size)) or (base is None and not whole):
        raise DeltaError("a moved tensor has more values or fewer than it can")
    return Entry(coding, count, size, after)


def _check_names(header: Header) -> None:
    known = header.base.keys() | header.moved.keys()
    gone = set(header.removed)
    if len(gone) < len(header.removed) or not gone <= header.base.keys() - header.moved.keys():
        raise DeltaError("it removes a tensor that is not there, or that has new values")
    if any(other in known or first not in known for other, first in header.tied.items()):
        raise DeltaError("it ties a tensor to one that it does not have")
