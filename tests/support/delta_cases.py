"""Tensors of random bits, and models made of them."""

import contextlib
import copy
import hashlib
import json
import random
import struct
import zlib
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fishexp.delta import Delta
from fishexp.delta.fingerprint import CODES, DTYPES, bits
from fishexp.sparse import sparsify
from tests.support.cases import conv_net, tiny_bert

TYPES = list(CODES)
SHAPES = [(), (0,), (1,), (7,), (3, 0, 2), (5, 9), (4, 3, 2, 2), (60, 50)]


def noise(dtype: torch.dtype, shape: tuple[int, ...], generator: torch.Generator) -> Tensor:
    """Any bits: NaN of all kinds, infinities and -0.0 among the floats."""
    size = torch.Size(shape).numel() * dtype.itemsize
    most = 2 if dtype == torch.bool else 256
    return torch.randint(most, (size,), dtype=torch.uint8, generator=generator).view(dtype).view(shape)


def disturbed(tensor: Tensor, density: float, generator: torch.Generator) -> Tensor:
    """Other bits in about that share of the entries, in the same order of memory."""
    result = tensor.clone()
    other = bits(noise(tensor.dtype, tuple(tensor.shape), generator))
    chosen = torch.rand(tensor.shape, generator=generator) < density
    bits(result).copy_(torch.where(chosen, other, bits(tensor)))
    return result


def snapshot(target: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A copy of all tensors."""
    found = target.state_dict() if isinstance(target, nn.Module) else target
    return {name: tensor.detach().clone() for name, tensor in found.items()}


def same_bits(one: nn.Module | Mapping[str, Tensor], other: nn.Module | Mapping[str, Tensor]) -> bool:
    """Names, types, shapes and bits."""
    a, b = snapshot(one), snapshot(other)
    return a.keys() == b.keys() and all(
        (t.dtype, t.shape) == (b[name].dtype, b[name].shape) and torch.equal(bits(t), bits(b[name]))
        for name, t in a.items()
    )


class Tied(nn.Module):
    """An embedding that is the output's weight too, a buffer that is saved and one that is not."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding = nn.Embedding(11, 4)
        self.output = nn.Linear(4, 11)
        self.output.weight = self.embedding.weight
        self.register_buffer("steps", torch.tensor(3))
        self.register_buffer("cache", torch.ones(2), persistent=False)


def channels_last() -> nn.Module:
    return conv_net().float().to(memory_format=torch.channels_last)  # type: ignore[call-overload]


MODELS = {"conv": conv_net, "bert": tiny_bert, "tied": Tied, "channels_last": channels_last}


def tuned(model: nn.Module, seed: int, density: float = 0.2) -> nn.Module:
    """A copy with other weights and buffers."""
    result, generator = copy.deepcopy(model), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in {id(t): t for t in result.state_dict().values()}.values():
            change = torch.randn(tensor.shape, generator=generator) * 3
            chosen = torch.rand(tensor.shape, generator=generator) < density
            tensor.add_(torch.where(chosen, change, 0.0).to(tensor.dtype))
    return result


def example() -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """Before and after: few changes and many, of three types, a new tensor, new rows, a tensor that goes."""
    generator = torch.Generator().manual_seed(0)
    before = {
        "a.weight": torch.rand(20, 30, generator=generator),
        "a.bias": torch.rand(30, generator=generator).bfloat16(),
        "b.flags": torch.tensor([True, False, True]),
        "b.rows": torch.rand(4, 3, generator=generator),
        "b.steps": torch.tensor(7),
        "c.gone": torch.ones(3),
        "c.same": torch.ones(3),
    }
    after = {name: tensor.clone() for name, tensor in before.items()}
    after["a.weight"][2:19:4, 7] += 1
    after["a.bias"][[1, 17, 20]] += 1
    after["b.flags"] = ~after["b.flags"]
    after["b.rows"] = torch.cat([after["b.rows"], torch.rand(2, 3, generator=generator)])
    after["b.steps"] += 1
    after["d.new"] = torch.rand(2, 2, generator=generator)
    del after["c.gone"]
    return before, after


def split(data: bytes) -> tuple[dict[str, Any], dict[str, Any], bytes]:
    """Where the vectors of a file lie, the delta's header with the version, and the vectors; of either version."""
    size = struct.unpack("<Q", data[:8])[0]
    header, vectors = json.loads(data[8 : 8 + size]), data[8 + size :]
    about = json.loads(header.pop("__metadata__")["fishexp.delta"])
    if about["version"] == 1:
        return header, about, vectors
    start, end = header.pop("header")["data_offsets"]
    text = vectors[start:end] if end - start == about["header"] else zlib.decompress(vectors[start:end], -15)
    for vector in header.values():
        vector["data_offsets"] = [offset - (end - start) * (offset >= end) for offset in vector["data_offsets"]]
    return header, json.loads(text) | {"version": 2}, vectors[:start] + vectors[end:]


def dumped(value: Any) -> str:
    return json.dumps(value, sort_keys=True, separators=(",", ":"))


def joined(header: dict[str, Any], about: Any, vectors: bytes, text: bytes | None = None) -> bytes:
    """The file again, with the checksum of what is in it.

    Args:
        header: Where the vectors lie.
        about: The delta's header with the version; a text is taken for the metadata.
        vectors: All of them.
        text: What stands in the file instead of a header of version 2.
    """
    rest = {key: value for key, value in about.items() if key != "checksum"} if isinstance(about, dict) else about
    if isinstance(about, dict) and about.get("version") == 1:
        rest |= {"checksum": hashlib.sha256(dumped(rest).encode() + vectors).hexdigest()}
    elif isinstance(about, dict):
        version = rest.pop("version", None)
        text = dumped(rest).encode() if text is None else text
        checksum = hashlib.sha256(text + checked(header, rest, vectors)).hexdigest()
        rest = {"checksum": checksum, "header": len(text)} | ({} if version is None else {"version": version})
        own = {"dtype": "U8", "shape": [len(text)], "data_offsets": [len(vectors), len(vectors) + len(text)]}
        header, vectors = header | {"header": own}, vectors + text
    metadata = rest if isinstance(rest, str) else dumped(rest)
    encoded = json.dumps(header | {"__metadata__": {"fishexp.delta": metadata}}).encode()
    return struct.pack("<Q", len(encoded)) + encoded + vectors


def checked(header: dict[str, Any], about: dict[str, Any], vectors: bytes) -> bytes:
    """What the checksum of version 2 is made of behind the header; of a file that contradicts itself, anything."""
    with contextlib.suppress(LookupError, TypeError, ValueError, AttributeError, zlib.error):
        found = {name: vectors[slice(*vector["data_offsets"])] for name, vector in header.items()}
        values = {name: data for name, data in found.items() if name.startswith("values.") and name.count(".") == 1}
        for code in {name.split(".")[1] for name in found if name.count(".") == 2}:
            own = [e for n, e in about["moved"].items() if (e[6] if len(e) > 6 else about["base"][n][0]) == code]
            values["values." + code] = plain_values(found, code, sum(entry[1] - entry[3] for entry in own))
        return b"".join(data for _, data in sorted(values.items())) + found["positions"] + found["unmoved"]
    return vectors


def plain_values(vectors: Mapping[str, bytes], code: str, count: int) -> bytes:
    """Values of a type from their planes, one after the other as the documentation has it."""
    parts = 2 if code == "C64" else 1
    size = DTYPES[code].itemsize // parts
    planes = [vectors[f"values.{code}.{i}"] for i in range(size)]
    planes = [p if len(p) == count * parts else zlib.decompress(p, -15) for p in planes]
    words = [int.from_bytes(word, "little") for word in zip(*planes, strict=True)]
    if (code.startswith(("F", "BF", "C"))) and size > 1:
        words = [word >> 1 | (word & 1) << (8 * size - 1) for word in words]
    return b"".join(word.to_bytes(size, "little") for word in words)


def trained_in_part() -> tuple[Delta, dict[str, Tensor], dict[str, Tensor]]:
    """The delta of a sparse training in which some kept entries stand still, with its base and its result.

    Few enough values move that they are written as planes, in float32 and in bfloat16; of a tensor that is kept whole
    a few move.
    """
    generator = torch.Generator().manual_seed(3)
    model = nn.Module()
    for name, dtype in {"narrow": torch.bfloat16, "wide": torch.float32, "whole": torch.float32}.items():
        shape = (300,) if name == "whole" else (160, 300)
        model.register_parameter(name, nn.Parameter((torch.randn(shape, generator=generator) * 0.04).to(dtype)))
    mask = {name: torch.rand(p.shape, generator=generator) < 0.025 for name, p in model.named_parameters()}
    mask["whole"][:] = True
    before = snapshot(model)
    sparse = sparsify(model, mask)
    with torch.no_grad():
        for p in sparse.parameters():
            moves = torch.rand(p.shape, generator=generator) < (0.1 if len(p) == 300 else 0.8)
            p[moves] += (torch.randn(p.shape, generator=generator) * 0.01).to(p.dtype)[moves]
    return sparse.delta(), before, snapshot(model)


# what a hostile file may call a tensor
NAMES = ["__metadata__", "a." * 2000, "a" * 5000, "_orig_mod", ".", "..", "a.", "LayerNorm.gamma", "classifier.weight"]
PREFIXES = ["_orig_mod.", "module.", "bert.", "x.", "module._orig_mod."]


def renamed(rng: random.Random, name: str) -> str:
    """Another name, or a name that a wrapper may have made of it."""
    return rng.choice([name, name + "x", name[:-1], *NAMES, *(prefix + name for prefix in PREFIXES)])


def bent(rng: random.Random, value: Any) -> Any:
    """Something else in the place of a piece of JSON."""
    others = [-1, 0, 1, 2, 255, 2**31, 2**59, 2**63, 10**30, True, None, "", "whole", "gaps", "F32", "U8", [], {}, 1.5]
    others += [[0, 2**40], [2**40, 0], NAMES[0], NAMES[1]]
    if type(value) is int:
        others += [value - 1, value + 1, 2 * value, -value, value + 8] * 3
    elif isinstance(value, str):
        others += [value[:-1], value + "A", value.swapcase(), value[::-1], value[:3] + "x" + value[4:]] * 3
        others += ["holes", "runs", "runs by column", "gaps by column", "holes by column", "seed"]
    elif isinstance(value, list):
        others += [value[:-1], value + value[-1:], value[::-1], [value]] * 3
    return rng.choice(others)


def edited(rng: random.Random, value: Any, depth: int = 0) -> Any:
    """The same JSON with one piece changed, left out, renamed or exchanged with another."""
    if not isinstance(value, dict | list) or not value or (depth and rng.random() < 0.15):
        return bent(rng, value)
    result = value.copy()
    key = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
    chance = rng.random()
    if chance < 0.04:
        result.pop(key)
    elif chance < 0.08 and isinstance(result, dict):
        result[renamed(rng, rng.choice(list(value)))] = result.pop(key)
    elif chance < 0.12:
        other = rng.choice(list(value)) if isinstance(value, dict) else rng.randrange(len(value))
        result[key], result[other] = result[other], result[key]
    else:
        result[key] = edited(rng, value[key], depth + 1)
    return result


def wrapped(rng: random.Random, about: dict[str, Any]) -> dict[str, Any]:
    """The same delta, with a prefix before all names."""
    prefix = rng.choice(PREFIXES)
    found = about | {key: {prefix + n: piece for n, piece in about[key].items()} for key in ("base", "moved")}
    tied = {prefix + other: prefix + first for other, first in about["tied"].items()}
    return found | {"removed": [prefix + name for name in about["removed"]], "tied": tied}


def battered(rng: random.Random, data: bytes) -> bytes:
    """The same bytes but for some that are turned, lost, doubled, exchanged or new."""
    result = bytearray(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        a, b = sorted(rng.randrange(len(result) + 1) for _ in range(2))
        b = min(b, a + rng.choice([1, 2, 8, 100]))
        match rng.randrange(6):
            case 0 if a < len(result):
                result[a] ^= 1 << rng.randrange(8)
            case 1:
                del result[a:b]
            case 2:
                result[a:a] = result[a:b]
            case 3:
                result[a:b] = rng.randbytes(b - a)
            case 4:
                result[a:b] = bytes(b - a) if rng.random() < 0.5 else b"\xff" * (b - a)
            case 5 if rng.random() < 0.3:
                del result[a:]
    return bytes(result)


def mutation(rng: random.Random, data: bytes) -> bytes:
    """Anything, of which a half has the right checksum again."""
    header, about, vectors = split(data)
    match rng.randrange(9):
        case 8:
            about = wrapped(rng, about)
        case 0 | 1:
            return battered(rng, data)
        case 2:  # of the vectors alone, as many bytes as before: what the checksum would have seen
            spoilt = battered(rng, vectors)[: len(vectors)]
            return joined(header, about, spoilt + bytes(len(vectors) - len(spoilt)))
        case 3:
            return joined(edited(rng, header), about, vectors)
        case 4:
            if about["version"] == 1:
                return joined(header, battered(rng, dumped(about).encode()).decode("latin-1"), vectors)
            return joined(header, about, vectors, battered(rng, dumped(about).encode()))
        case 5:
            about = edited(rng, edited(rng, about))
        case _:
            about = edited(rng, about)
    try:
        return joined(header, about, vectors)
    except (ValueError, TypeError, RecursionError):
        return battered(rng, data)
