"""Checkpoints on disk: safetensors files, read without trust, and the folders in which Hugging Face keeps them.

Every length, offset and type of a file is checked before it is used.
"""

import json
import os
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from fishexp.delta.fingerprint import CODES, DTYPES, Fingerprint, kind, piece_entries, raw
from fishexp.delta.names import is_name, match
from fishexp.errors import DeltaError

INDEX = "model.safetensors.index.json"  # file of a folder with several files of tensors: which tensor is where
SINGLE = "model.safetensors"  # file of a folder with a single file of tensors

LONGEST = 100_000_000  # bytes of a header at most, as safetensors has it
DIMENSIONS = 64  # of a tensor at most


@dataclass(frozen=True)
class StoredTensor:
    """Say where a tensor lies in a file: ``nbytes`` from ``start``, counted from the beginning of the file."""

    file: Path
    dtype: torch.dtype
    shape: tuple[int, ...]
    start: int
    nbytes: int

    @property
    def kind(self) -> Fingerprint:
        """Return type and shape of the tensor."""
        return Fingerprint(self.dtype, self.shape)

    # `safe_open().get_slice()` cuts along dimensions only, and maps the file: cut short, it ends the process by SIGBUS
    def pieces(self) -> Iterator[Tensor]:
        """Yield the entries row after row, in pieces as :func:`fishexp.delta.fingerprint.pieces` cuts them."""
        step = piece_entries(self.dtype) * self.dtype.itemsize
        with self.file.open("rb") as file:
            file.seek(self.start)
            for start in range(0, self.nbytes, step):
                yield _vector(_exactly(file, min(step, self.nbytes - start), self.file), self.dtype)

    def read(self) -> Tensor:
        """Return all entries row after row, (entries,)."""
        with self.file.open("rb") as file:
            return self.read_from(file)

    def read_from(self, file: BinaryIO) -> Tensor:
        """Return all entries, (entries,), from the file where it is open already."""
        file.seek(self.start)
        return _vector(_exactly(file, self.nbytes, self.file), self.dtype)


def _vector(buffer: bytearray, dtype: torch.dtype) -> Tensor:
    if not buffer:
        return torch.empty(0, dtype=dtype, device="cpu")
    return torch.frombuffer(buffer, dtype=torch.uint8).view(dtype)


def _exactly(file: BinaryIO, size: int, path: Path) -> bytearray:
    """Read ``size`` bytes from where ``file`` is."""
    buffer = bytearray(size)
    if file.readinto(buffer) != size:  # type: ignore[attr-defined]
        raise DeltaError(f"{path} became shorter while it was read")
    return buffer


def read_header(file: BinaryIO, path: Path) -> tuple[dict[str, StoredTensor], dict[str, str]]:
    """Read where each tensor of a safetensors file lies, in the order of the file, and the file's metadata.

    Raises:
        DeltaError: If it is no safetensors file, or damaged.
    """
    size = os.fstat(file.fileno()).st_size
    length = int.from_bytes(file.read(8), "little")
    if size < 8 or not 0 < length <= min(size - 8, LONGEST):
        raise DeltaError(f"{path} is not a safetensors file, or damaged: its first eight bytes are no header's length")
    header = parse(_exactly(file, length, path), path)
    metadata = header.pop("__metadata__", {})
    if not isinstance(metadata, dict) or not all(isinstance(value, str) for value in metadata.values()):
        raise DeltaError(f"{path} is damaged: its metadata are no strings")
    tensors, end = {}, 0
    for name, entry in sorted(header.items(), key=lambda item: _offsets(item[1], item[0], path)):
        start, stop = entry["data_offsets"]
        dtype, shape = _type(entry, name, path)
        tensors[name] = StoredTensor(path, dtype, shape, 8 + length + start, stop - start)
        if start != end or tensors[name].nbytes != tensors[name].kind.nbytes:
            raise DeltaError(f"{path} is damaged: the offsets of {name!r} do not fit its shape, or leave a gap")
        end = stop
    if 8 + length + end != size:
        raise DeltaError(f"{path} is damaged: it has {size} bytes, its header speaks of {8 + length + end}")
    return tensors, metadata


def _offsets(entry: Any, name: str, path: Path) -> tuple[int, int]:
    pair = entry.get("data_offsets") if isinstance(entry, dict) else None
    if not isinstance(pair, list) or len(pair) != 2 or not all(is_size(n) for n in pair) or pair[1] < pair[0]:
        raise DeltaError(f"{path} is damaged: {name!r} has no valid offsets")
    return pair[0], pair[1]


def _type(entry: dict[str, Any], name: str, path: Path) -> tuple[torch.dtype, tuple[int, ...]]:
    code, shape = entry.get("dtype"), entry.get("shape")
    if not isinstance(code, str) or code not in DTYPES:
        raise DeltaError(f"{path}: {name!r} is of a type that is not known here: {str(code)[:40]!r}")
    if not is_shape(shape):
        raise DeltaError(f"{path} is damaged: {name!r} has no valid shape")
    return DTYPES[code], tuple(shape)  # type: ignore[arg-type]


def is_size(value: object) -> bool:
    """Tell whether a value of JSON is a number of things that a file may speak of; a bool is none."""
    return type(value) is int and 0 <= value < 2**63


def is_shape(value: object) -> bool:
    """Tell whether a value of JSON is a list of sizes, of not absurdly many dimensions and entries."""
    return (
        isinstance(value, list)
        and len(value) <= DIMENSIONS
        and all(is_size(n) for n in value)
        and prod(n for n in value if n) < 2**60  # bytes fit 64 bits
    )


def parse(text: bytes | bytearray, path: str | Path) -> dict[str, Any]:
    """Parse a JSON object, in which no key occurs twice.

    Raises:
        DeltaError: If it is none; it names the file at ``path``.
    """
    try:
        value = json.loads(text.decode("utf-8"), object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        raise DeltaError(f"{path} is damaged: its header is not valid JSON ({type(error).__name__})") from None
    if not isinstance(value, dict):
        raise DeltaError(f"{path} is damaged: its header is no JSON object")
    return value


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key occurs twice")
    return found


def header_bytes(kinds: Mapping[str, Fingerprint], metadata: dict[str, str], sort_keys: bool) -> bytes:
    """Return length and header of a safetensors file of these tensors, which follow it in this order.

    Args:
        kinds: name -> type and shape.
        metadata: Of the file.
        sort_keys: Write keys in alphabetical order, as a delta has them, and not in that of the tensors.
    """
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, tensor in kinds.items():
        start, end = end, end + tensor.nbytes
        header[name] = {"dtype": CODES[tensor.dtype], "shape": tensor.shape, "data_offsets": [start, end]}
    text = json.dumps(header, sort_keys=sort_keys, separators=(",", ":")).encode("ascii")
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text


def write_tensors(tensors: Mapping[str, Tensor], metadata: dict[str, str], path: Path) -> None:
    """Write tensors into a safetensors file, those of wide types first, so that all lie at multiples of their size.

    Raises:
        OSError: If it cannot be written; safetensors would raise an error of its own.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: (-item[1].itemsize, item[0])))
    with path.open("wb") as file:
        file.write(header_bytes({name: kind(tensor) for name, tensor in ordered.items()}, metadata, sort_keys=False))
        for tensor in ordered.values():
            file.write(raw(tensor))


@dataclass(frozen=True)
class Checkpoint:
    """Describe a .safetensors file, or a folder as Hugging Face writes it.

    Attributes:
        path: Of the file or the folder.
        metadata: Of each file of tensors, in order.
        tensors: name -> where its tensor lies.
    """

    path: Path
    metadata: Mapping[Path, dict[str, str]]
    tensors: Mapping[str, StoredTensor]

    def named_as(self, names: Collection[str]) -> "Checkpoint":
        """Return the same with another model's names, see :func:`fishexp.delta.names.match`."""
        found = match(self.tensors, names).names
        return replace(self, tensors={found[name]: tensor for name, tensor in self.tensors.items()})


def read(path: Path) -> Checkpoint:
    """Read where all tensors of a checkpoint lie.

    Raises:
        DeltaError: If there are none, or a file is damaged.
        OSError: If a file cannot be read.
    """
    metadata, tensors = {}, {}
    for file in _files(path):
        with file.open("rb") as opened:
            found, metadata[file] = read_header(opened, file)
        for name, tensor in found.items():
            if not is_name(name) or name in tensors:
                raise DeltaError(f"{file}: the tensor {name!r} has no valid name, or is in another file as well")
            tensors[name] = tensor
    return Checkpoint(path, metadata, tensors)


def _files(path: Path) -> list[Path]:
    """List the safetensors files of a checkpoint; a single file counts before a list of several, as in transformers."""
    if not path.is_dir():
        return [path]
    if (path / SINGLE).exists():
        return [path / SINGLE]
    if not (path / INDEX).exists():
        raise DeltaError(f"{path} holds neither {SINGLE} nor {INDEX}; save the model with safetensors")
    try:
        names = set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise DeltaError(f"{path / INDEX} is damaged: it has no weight_map") from None
    for name in names:
        if not isinstance(name, str) or not is_name(name) or Path(name).name != name or name == "..":
            raise DeltaError(f"{path / INDEX} names {name!r}, which is no file of the folder")
    return [path / name for name in sorted(names)]


def write_index(base: Checkpoint, files: Mapping[str, Path], size: int, folder: Path) -> None:
    """Write the list of which tensor is in which file to ``folder``, if ``base`` was read by such a list.

    Args:
        base: The checkpoint from which everything else in the list is taken.
        files: name -> file of each tensor.
        size: Bytes of all tensors.
        folder: Of the new checkpoint.
    """
    if base.path / SINGLE in base.metadata:
        return
    index = json.loads((base.path / INDEX).read_text(encoding="utf-8"))
    about = index.get("metadata")
    index["metadata"] = (about if isinstance(about, dict) else {}) | {"total_size": size}
    index["weight_map"] = {name: file.name for name, file in sorted(files.items())}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
