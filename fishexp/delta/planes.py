"""Values as byte planes: bytes that mean the same lie together, and those that repeat themselves take fewer bits.

Of each value of a type, as little-endian bytes, plane 0 has the lowest byte, plane 1 the next, and so on; a complex
number counts as two values. The bits of a float of several bytes are turned left by one before, so that the sign comes
last, and the exponent fills the highest plane: eight bits in float32 and bfloat16, of which trained weights use less
than three.

A plane is written as it is, or as a raw deflate stream that has fewer bytes. The writer takes Huffman codes only; a
byte of the stream stands for eight of the plane at most, whatever wrote it, so that a small file cannot ask for much.
"""

import zlib
from collections.abc import Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fishexp.errors import DeltaError

MOST = 8  # bytes for which a byte of a deflate stream may stand

_VECTOR = 80  # bytes that one more vector takes in the header of a safetensors file, about
_PIECE = 1 << 15  # values that are taken apart or put together at once: their bytes fit the processor's cache
_SAMPLE = 1 << 14  # bytes of a plane, evenly spread, by which it is judged
_MEMORY = 9  # zlib's level of memory: the most, 256 KiB, for the longest blocks with codes of their own
_DENSE = 7.5  # bits of information a byte, from which on a plane is not worth the time to decode it


def split(values: Tensor) -> list[Tensor] | None:
    """Write values as planes, each uint8 (bytes,); None where they take about as many bytes as they are.

    The bytes of a coded plane depend on the implementation of zlib; what they decode to does not.

    Args:
        values: (values,) of any type of :data:`fishexp.delta.fingerprint.CODES`, on the CPU.
    """
    data = values.contiguous().unsqueeze(1).view(torch.uint8).numpy()  # (values, 1), as one has any stride
    words = data.view(f"<u{width(values.dtype)}").ravel()
    planes = np.empty((words.itemsize, len(words)), np.uint8)
    for start in range(0, len(words), _PIECE):
        piece = words[start : start + _PIECE]
        if _is_turned(values.dtype):
            piece = piece << 1 | piece >> (8 * words.itemsize - 1)
        planes[:, start : start + _PIECE] = piece.view(np.uint8).reshape(-1, words.itemsize).T
    found = [torch.from_numpy(p) if _is_dense(p) else pack(p.data, zlib.Z_HUFFMAN_ONLY) for p in planes]
    return found if sum(len(p) + _VECTOR for p in found) < values.nbytes else None


def join(planes: Sequence[Tensor], count: int, dtype: torch.dtype) -> Tensor:
    """Read the values that :func:`split` wrote, (count,).

    Memory is at most a dozen times the bytes of ``planes``.

    Raises:
        DeltaError: If ``planes`` are not those of ``count`` values of the type.
    """
    nbytes = width(dtype)
    length = count * dtype.itemsize // nbytes
    if len(planes) != nbytes:
        raise DeltaError(f"values of {nbytes} bytes have {len(planes)} planes")
    plain = [np.frombuffer(unpack(plane, length), np.uint8) for plane in planes]
    words = np.empty(length, f"<u{nbytes}")
    for start in range(0, length, _PIECE):
        piece = np.empty((min(_PIECE, length - start), nbytes), np.uint8)
        for i, plane in enumerate(plain):
            piece[:, i] = plane[start : start + _PIECE]
        turned = piece.view(words.dtype).ravel()
        if _is_turned(dtype):
            turned = turned >> 1 | turned << (8 * nbytes - 1)
        words[start : start + _PIECE] = turned
    return torch.from_numpy(words.view(np.uint8)).view(dtype)


def pack(data: bytes | memoryview, strategy: int) -> Tensor:
    """Write bytes in the shorter form: as they are, or as a deflate stream of this strategy of zlib."""
    deflater = zlib.compressobj(zlib.Z_BEST_COMPRESSION, zlib.DEFLATED, -zlib.MAX_WBITS, _MEMORY, strategy)
    coded = deflater.compress(data) + deflater.flush()
    shorter = coded if len(coded) < len(data) <= MOST * len(coded) else data
    return torch.from_numpy(np.frombuffer(shorter, np.uint8).copy())


def unpack(data: Tensor, length: int) -> bytes:
    """Read the ``length`` bytes that :func:`pack` wrote.

    Raises:
        DeltaError: If ``data`` are not so many, in either form.
    """
    coded = data.numpy().tobytes()
    if len(coded) == length:
        return coded
    wrong = DeltaError(f"{len(coded)} bytes are not {length} in another form")
    if not len(coded) < length <= MOST * len(coded):
        raise wrong
    inflater = zlib.decompressobj(-zlib.MAX_WBITS)
    try:
        found = inflater.decompress(coded, length + 1)  # one more, or a stream of just so many would not reach its end
    except zlib.error:
        raise wrong from None
    if len(found) != length or not inflater.eof or inflater.unused_data:
        raise wrong
    return found


def width(dtype: torch.dtype) -> int:
    """Return how many planes values of a type have: the bytes of a real number."""
    return dtype.itemsize // 2 if dtype.is_complex else dtype.itemsize


def _is_turned(dtype: torch.dtype) -> bool:
    return dtype.is_complex or (dtype.is_floating_point and dtype.itemsize > 1)


def _is_dense(plane: NDArray[np.uint8]) -> bool:
    """Tell whether a plane is not worth coding, by a sample of it."""
    counts = np.bincount(plane[:: len(plane) // _SAMPLE + 1])
    odds = counts[counts > 0] / max(counts.sum(), 1)
    return -(odds * np.log2(odds)).sum() >= _DENSE
