"""What a tensor is, to the bit: type, shape and SHA-256 of its bytes."""

import hashlib
import json
import os
from collections.abc import Mapping
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

_BITS = {1: torch.uint8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
_THREADS = min(4, os.cpu_count() or 1)  # hashing does not hold the interpreter


@dataclass(frozen=True)
class Fingerprint:
    """What a tensor is.

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
        """How many there are."""
        return prod(self.shape)

    def grows_to(self, other: "Fingerprint") -> bool:
        """Whether ``other`` has the same type and shape, or more rows."""
        if self.dtype != other.dtype or self.shape == other.shape:
            return self.dtype == other.dtype
        if not self.shape or not other.shape:
            return False
        return self.shape[1:] == other.shape[1:] and self.shape[0] <= other.shape[0]


def bits(tensor: Tensor) -> Tensor:
    """The same memory as integers, which are equal where the bits are: NaN equals NaN, and -0.0 is not 0.0."""
    return tensor.detach().view(_BITS[tensor.element_size()])


def flat(tensor: Tensor) -> Tensor:
    """The entries row after row, on the CPU; copied only if the tensor is on a device or in another order."""
    return tensor.detach().cpu().contiguous().reshape(-1)


def raw(tensor: Tensor) -> memoryview:
    """The bytes of :func:`flat`."""
    return flat(tensor).view(torch.uint8).numpy().data


def sha256(tensor: Tensor) -> str:
    """Of the bytes of :func:`raw`."""
    return hashlib.sha256(raw(tensor)).hexdigest()


def fingerprint(tensor: Tensor) -> Fingerprint:
    """Of a tensor that is at hand."""
    return Fingerprint(tensor.dtype, tuple(tensor.shape), sha256(tensor))


def in_threads(function: Any, *arguments: Any) -> list[Any]:
    """``map`` by a few threads, so that a few tensors are looked at together."""
    with ThreadPoolExecutor(_THREADS) as pool:
        return list(pool.map(function, *arguments))


def digest(fingerprints: Mapping[str, Fingerprint]) -> str:
    """One SHA-256 of all tensors of a model, whatever their order, in hexadecimal."""
    lines = [[name, CODES[one.dtype], one.shape, one.sha256] for name, one in sorted(fingerprints.items())]
    return hashlib.sha256(canonical(lines)).hexdigest()


def canonical(value: Any) -> bytes:
    """The one way in which we write it as JSON."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode("ascii")
