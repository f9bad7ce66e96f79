"""Values as planes: exact to the bit, as short as the exponents allow, and safe to read from anywhere."""

import random
import tracemalloc
import zlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fishexp.delta import planes
from fishexp.delta.fingerprint import CODES, DTYPES, bits
from fishexp.errors import DeltaError
from tests.support.delta_cases import noise, plain_values


def trained(dtype: torch.dtype, count: int) -> Tensor:
    """Values that are distributed as a network's weights are."""
    values = torch.randn(count, generator=torch.Generator().manual_seed(0)) * 0.04
    return values.to(dtype) if dtype.is_floating_point or dtype.is_complex else (values * 100).to(dtype)


def back(values: Tensor, split: list[Tensor]) -> bool:
    return torch.equal(bits(planes.join(split, len(values), values.dtype)), bits(values))


@pytest.mark.parametrize("dtype", CODES)
@pytest.mark.parametrize("count", [0, 1, 2, 1000, planes._PIECE + 1])
def test_any_bits_come_back(dtype: torch.dtype, count: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(planes, "_VECTOR", -1000)  # planes are written whatever they take
    for values in (noise(dtype, (count,), torch.Generator().manual_seed(count)), trained(dtype, count)):
        split = planes.split(values)
        assert split is not None
        assert back(values, split)
        stored = {f"values.{CODES[dtype]}.{i}": plane.numpy().tobytes() for i, plane in enumerate(split)}
        assert plain_values(stored, CODES[dtype], count) == values.view(torch.uint8).numpy().tobytes()


@given(patterns=st.lists(st.integers(0, 2**32 - 1), max_size=40))
def test_any_float_comes_back(patterns: list[int]) -> None:
    values = torch.tensor(patterns, dtype=torch.int64).to(torch.int32).view(torch.float32)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(planes, "_VECTOR", -1000)
        split = planes.split(values)
    assert split is not None
    assert back(values, split)


def test_the_planes_are_the_documented_ones() -> None:
    """-1.5 is sign 1, exponent 0111 1111, mantissa 1 and 22 zeros; turned left by one, the sign comes last."""
    values = torch.tensor([-1.5, 1.0])
    split = [torch.tensor(plane, dtype=torch.uint8) for plane in ([1, 0], [0, 0], [128, 0], [127, 127])]
    assert torch.equal(planes.join(split, 2, torch.float32), values)
    brain = [torch.tensor(plane, dtype=torch.uint8) for plane in ([129, 0], [127, 127])]
    assert torch.equal(planes.join(brain, 2, torch.bfloat16), values.bfloat16())
    assert planes.join([torch.tensor([255], dtype=torch.uint8)], 1, torch.int8).tolist() == [-1]


@pytest.mark.parametrize(("dtype", "most"), [(torch.float32, 3.36), (torch.bfloat16, 1.36), (torch.float16, 1.75)])
def test_exponents_take_their_entropy(dtype: torch.dtype, most: float) -> None:
    """Weights of a normal distribution have 2.54 bits of information in each exponent; Huffman codes take 2.6."""
    values = trained(dtype, 100_000)
    split = planes.split(values)
    assert split is not None
    assert sum(map(len, split)) <= most * len(values)
    if dtype != torch.float16:  # of which the plane has three bits of the mantissa too
        whole = bits(values).long() & (0xFFFFFFFF if dtype == torch.float32 else 0xFFFF)
        counts = (whole >> (23 if dtype == torch.float32 else 7) & 255).bincount()
        odds = counts[counts > 0] / len(values)
        assert 8 * len(split[-1]) <= 1.04 * len(values) * float(-(odds * odds.log2()).sum()) + 800


def test_what_gains_nothing_is_left_as_it_is() -> None:
    assert planes.split(noise(torch.float32, (5000,), torch.Generator().manual_seed(1))) is None
    assert planes.split(trained(torch.float32, 100)) is None  # less than the vectors' names take
    assert planes.split(torch.ones(0)) is None


def deflated(data: bytes, strategy: int = zlib.Z_DEFAULT_STRATEGY) -> bytes:
    coder = zlib.compressobj(9, zlib.DEFLATED, -15, 9, strategy)
    return coder.compress(data) + coder.flush()


def uint8(data: bytes) -> Tensor:
    return torch.tensor(list(data), dtype=torch.uint8)


def test_streams_of_another_length_are_refused() -> None:
    data = bytes(random.Random(0).choices(range(8), k=1000))
    coded = deflated(data, zlib.Z_HUFFMAN_ONLY)
    assert planes.unpack(uint8(coded), 1000) == planes.unpack(uint8(data), 1000) == data
    for stream, length in [
        (coded, 999), (coded, 1001), (coded[:-1], 1000), (coded + b"\0", 1000), (coded, 8 * len(coded) + 1),
        (coded, 2**62), (data, 999), (b"", 1), (b"", 2**62), (b"\xff" * 400, 1000), (zlib.compress(data, 9), 1000),
    ]:  # fmt: skip
        with pytest.raises(DeltaError, match=f"^{len(stream)} bytes are not {length} in another form$"):
            planes.unpack(uint8(stream), length)


def test_a_stream_of_zeros_does_not_fill_the_memory() -> None:
    """A byte of deflate can stand for a thousand; here it stands for eight, so that the file bounds all."""
    bomb = uint8(deflated(bytes(1 << 24)))
    assert len(bomb) < 1 << 15
    for length in (1 << 24, 1 << 40, 8 * len(bomb)):
        tracemalloc.start()
        with pytest.raises(DeltaError, match="bytes are not"):
            planes.join([bomb] * 4, length, torch.float32)
        assert tracemalloc.get_traced_memory()[1] < 40 * len(bomb) + 4096
        tracemalloc.stop()
    zeros = bytes(100_000)
    assert 7.9 * len(planes.pack(zeros, zlib.Z_HUFFMAN_ONLY)) < len(zeros)
    assert len(planes.pack(zeros, zlib.Z_DEFAULT_STRATEGY)) == len(zeros)  # or a reader would not believe it


def test_a_type_has_as_many_planes_as_bytes() -> None:
    for code, dtype in DTYPES.items():
        assert planes.width(dtype) == (4 if code == "C64" else dtype.itemsize)
        with pytest.raises(DeltaError, match="planes"):
            planes.join([uint8(b"1")] * 3, 1, dtype)


def test_random_streams_are_refused_or_of_the_length() -> None:
    rng, good = random.Random(1), deflated(bytes(random.Random(0).choices(range(8), k=500)), zlib.Z_HUFFMAN_ONLY)
    outcomes = {"read": 0, "refused": 0}
    for _ in range(2000):
        data = bytearray(good)
        for _ in range(rng.randrange(1, 4)):
            data[rng.randrange(len(data))] ^= 1 << rng.randrange(8)
        try:
            assert len(planes.unpack(uint8(bytes(data)), 500)) == 500
            outcomes["read"] += 1
        except DeltaError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 50
