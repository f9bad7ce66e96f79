"""Fingerprints of tensors, to the bit: type, shape and SHA-256 of the bytes."""

import hashlib
import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor

CODES = {
    torch.float64: "F64", torch.float32: "F32", torch.float16: "F16", torch.bfloat16: "BF16",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e4m3fnuz: "F8_E4M3FNUZ",
    torch.float8_e5m2: "F8_E5M2", torch.float8_e5m2fnuz: "F8_E5M2FNUZ",
    torch.int64: "I64", torch.int32: "I32", torch.int16: "I16", torch.int8: "I8",
    torch.uint64: "U64", torch.uint32: "U32", torch.uint16: "U16", torch.uint8: "U8",
    torch.bool: "BOOL", torch.complex64: "C64",
}  # fmt: skip
DTYPES = {code: dtype for dtype, code in CODES.items()}  # as safetensors names them

PIECE = 1 << 21  # bytes of a tensor that are read, compared or hashed together; a multiple of all types' sizes

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_THREADS = min(4, os.cpu_count() or 1)  # hashing does not hold the interpreter


@dataclass(frozen=True)
class Fingerprint:
    """Identify a tensor.

    Attributes:
        dtype: Type of its entries.
        shape: As a tuple.
        sha256: Of its entries' bytes, row after row, little-endian, in hexadecimal; None where it is not known.
    """

    dtype: torch.dtype
    shape: tuple[int, ...]
    sha256: str | None = None

    def __str__(self) -> str:
        return f"{str(self.dtype).removeprefix('torch.')} {self.shape}"

    @property
    def entries(self) -> int:
        """Count the entries of the tensor."""
        return prod(self.shape)

    @property
    def nbytes(self) -> int:
        """Count the bytes of all entries."""
        return self.entries * self.dtype.itemsize

    def grows_to(self, other: "Fingerprint") -> bool:
        """Tell whether ``other`` has the same type and shape, or more rows."""
        if self.dtype != other.dtype or self.shape == other.shape:
            return self.dtype == other.dtype
        if not self.shape or not other.shape:
            return False
        return self.shape[1:] == other.shape[1:] and self.shape[0] <= other.shape[0]


def kind(tensor: Tensor) -> Fingerprint:
    """Return type and shape of a tensor, without its SHA-256."""
    return Fingerprint(tensor.dtype, tuple(tensor.shape))


def bits(tensor: Tensor) -> Tensor:
    """View the same memory as integers, which are equal where the bits are: NaN equals NaN, and -0.0 is not 0.0."""
    return tensor.detach().view(_BITS[tensor.element_size()])


def flat(tensor: Tensor) -> Tensor:
    """Return the entries row after row, on the CPU; copied only if the tensor is on a device or in another order."""
    return tensor.detach().cpu().contiguous().reshape(-1)


def piece_entries(dtype: torch.dtype) -> int:
    """Return how many entries of a type make a piece of :data:`PIECE` bytes."""
    return PIECE // dtype.itemsize


def pieces(tensor: Tensor) -> Sequence[Tensor]:
    """Cut :func:`flat` into pieces of :data:`PIECE` bytes, the last one of what is left."""
    return flat(tensor).split(piece_entries(tensor.dtype))


def raw(tensor: Tensor) -> memoryview:
    """Return the bytes of :func:`flat`."""
    return flat(tensor).unsqueeze(1).view(torch.uint8).flatten().numpy().data  # (entries, 1), as one has any stride


def hashed(vectors: Iterable[Tensor], digest: "hashlib._Hash") -> Iterator[Tensor]:
    """Yield the vectors, each after ``digest`` has been updated with its bytes."""
    for vector in vectors:
        digest.update(raw(vector))
        yield vector


def sha256(tensor: Tensor) -> str:
    """Return the SHA-256 of the bytes of :func:`raw`, in hexadecimal."""
    return hashlib.sha256(raw(tensor)).hexdigest()


def fingerprint(tensor: Tensor) -> Fingerprint:
    """Compute the fingerprint of a tensor in memory."""
    return Fingerprint(tensor.dtype, tuple(tensor.shape), sha256(tensor))


def in_threads(function: Any, *arguments: Any) -> list[Any]:
    """Do what ``map`` does in a few threads, so that a few tensors are looked at together."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, *arguments))


def digest(fingerprints: Mapping[str, Fingerprint]) -> str:
    """Hash the fingerprints of all tensors of a model, whatever their order, to a single SHA-256 in hexadecimal."""
    lines = [[name, CODES[tensor.dtype], tensor.shape, tensor.sha256] for name, tensor in sorted(fingerprints.items())]
    return hashlib.sha256(canonical(lines)).hexdigest()


def canonical(value: Any) -> bytes:
    """Write JSON in a single possible way: ASCII, keys sorted, no spaces."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
