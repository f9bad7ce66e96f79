"""Read a delta file with numpy alone: ``python read_delta.py delta.safetensors``. delta-format.md says why it is so."""

import hashlib
import json
import math
import struct
import sys
import zlib
from pathlib import Path

import numpy as np

# as numpy reads an entry of each type; of bfloat16 and 8-bit floats, which it does not have, the bits
TYPES = {"F64": "<f8", "F32": "<f4", "F16": "<f2", "BF16": "<u2", "C64": "<c8", "BOOL": "|b1"}
TYPES |= {f"{kind}{8 * n}": f"<{kind.lower()}{n}" for kind in "IU" for n in (1, 2, 4, 8)}
TYPES |= dict.fromkeys(("F8_E4M3", "F8_E4M3FNUZ", "F8_E5M2", "F8_E5M2FNUZ"), "|u1")
FLOATS = ("F64", "F32", "F16", "BF16", "C64")  # whose bits are turned in planes


def read_delta(path):
    """Return name -> (positions, values) of each tensor with new values: where in it, flattened, they stand."""
    data = Path(path).read_bytes()
    start = 8 + struct.unpack("<Q", data[:8])[0]
    index = json.loads(data[8:start])
    about = json.loads(index.pop("__metadata__")["fishexp.delta"])
    where = {name: vector["data_offsets"] for name, vector in index.items()}
    vectors = {name: data[start + first : start + end] for name, (first, end) in where.items()}
    checksum = about.pop("checksum")
    if about["version"] == 1:
        header, text = about, json.dumps(about, sort_keys=True, separators=(",", ":")).encode()
    else:
        text = plain(vectors["header"], about["header"])
        header = json.loads(text)
    entries = []  # name, coding, kept, bytes of positions, unmoved, their bytes, type, shape
    for name, entry in sorted(header["moved"].items()):
        fields = 4 if about["version"] == 1 else 6
        coding, kept, size, unmoved, unmoved_size = [*entry[: fields - 1], 0, 0][:5]
        code, shape = entry[fields:] or header["base"][name][:2]
        entries.append((name, coding, kept, size, unmoved, unmoved_size, code, shape))
    values = {}
    for code in sorted({entry[6] for entry in entries}):
        count = sum(entry[2] - entry[4] for entry in entries if entry[6] == code)
        whole = vectors.get(f"values.{code}")
        values[code] = joined(vectors, code, count) if whole is None else np.frombuffer(whole, TYPES[code])
    hashed = text + data[start:]
    if about["version"] == 2:
        hashed = text + b"".join(values[code].tobytes() for code in values) + vectors["positions"] + vectors["unmoved"]
    if hashlib.sha256(hashed).hexdigest() != checksum:
        raise ValueError(f"{path} is damaged: its checksum is another one")
    drawn = draw(header, entries) if header["seed"] else {}
    positions, still, found = vectors["positions"], vectors.get("unmoved", b""), {}
    for name, coding, kept, size, unmoved, unmoved_size, code, shape in entries:
        if coding == "whole":
            places = np.arange(kept)
        else:
            places = drawn[name] if coding == "seed" else decode(positions[:size], coding, kept, shape)
        if unmoved:
            places = np.delete(places, decode(still[:unmoved_size], "gaps", unmoved, [kept]))
        found[name] = places, values[code][: len(places)]
        values[code], positions, still = values[code][len(places) :], positions[size:], still[unmoved_size:]
    return found


def plain(data, length):
    """Read bytes that are there as they are, or as a raw deflate stream."""
    return data if len(data) == length else zlib.decompress(data, -15)


def joined(vectors, code, count):
    """Put the values of a type together from their byte planes."""
    dtype = np.dtype(TYPES[code])
    width, numbers = (4, 2 * count) if code == "C64" else (dtype.itemsize, count)
    planes = [np.frombuffer(plain(vectors[f"values.{code}.{i}"], numbers), np.uint8) for i in range(width)]
    words = np.stack(planes, axis=1).copy().view(f"<u{width}").ravel()
    if code in FLOATS:
        words = words >> 1 | words << (8 * width - 1)
    return words.view(dtype)


def decode(data, coding, kept, shape):
    """Read positions: entries or lines, gaps or holes or runs, in the order of memory or by column."""
    numel, rows = math.prod(shape), shape[0] if shape else 1
    way, _, order = coding.partition(" ")
    line = 1  # entries that are kept together
    if order in ("of rows", "of channels"):
        line = numel // shape[0 if order == "of rows" else 1]
    elif order == "of columns":
        line = rows
    bits, count, total = np.unpackbits(np.frombuffer(data, np.uint8)), kept // line, numel // line
    if way == "runs":
        head = count.bit_length()
        runs = int("".join(map(str, bits[:head])), 2)
        numbers = rice(bits[head:], 2 * runs, (total - count) // (2 * runs))
        before, lengths = numbers[:runs], numbers[runs:]
        before[1:] += 1
        places = np.arange(count) + np.repeat(before.cumsum(), lengths + 1)
    else:
        listed = total - count if way == "holes" else count
        places = np.cumsum(rice(bits, listed, (total - listed) // max(listed, 1)) + 1) - 1
        if way == "holes":
            places = np.delete(np.arange(total), places)
    places = (line * places[:, None] + np.arange(line)).ravel()
    if order in ("by column", "of columns", "of channels"):  # they are positions in the transpose
        column, row = np.divmod(places, rows)
        places = np.sort(row * (numel // rows) + column)
    return places


def rice(bits, count, guess):
    """Read ``count`` numbers in blocks of 32: the widths' changes, the low bits, the quotients."""
    folded, bits = unary(bits, -(-count // 32))
    changes = np.where(folded % 2 == 1, -(folded // 2) - 1, folded // 2)
    widths = np.repeat(max(guess.bit_length() - 1, 0) + changes.cumsum(), 32)[:count]
    low = np.zeros(count, np.int64)
    for width in np.unique(widths[widths > 0]):
        these = np.flatnonzero(widths == width)
        rows, bits = bits[: len(these) * width].reshape(-1, width), bits[len(these) * width :]
        low[these] = rows @ (1 << np.arange(width - 1, -1, -1, dtype=np.int64))
    return unary(bits, count)[0] << widths | low


def unary(bits, count):
    """Read ``count`` numbers, each so many zeros and a one; return them and the bits behind them."""
    ends = np.flatnonzero(bits)[:count]
    return np.diff(ends, prepend=-1) - 1, bits[ends[-1] + 1 if count else 0 :]


def draw(header, entries):
    """Draw a random mask again, as torch did on the CPU: MT19937, of whose 32 bits the lower 24 are a score."""
    seed, threshold, ties, sha256, numbers = header["seed"]
    names = sorted(header["base"].keys() | header["moved"].keys())
    shapes = {name: tensor[1] for name, tensor in header["base"].items()} | {entry[0]: entry[7] for entry in entries}
    seeded = {entry[0] for entry in entries if entry[1] == "seed"}
    random, found, digest = np.random.RandomState(seed % 2**32), {}, hashlib.sha256()
    for name in (names[number] for number in numbers):
        scores = np.frombuffer(random.bytes(4 * math.prod(shapes[name])), "<u4") & (2**24 - 1)
        if name in seeded:
            equal = np.flatnonzero(scores == threshold)[:ties]
            ties -= len(equal)
            found[name] = np.union1d(np.flatnonzero(scores > threshold), equal)
            digest.update(found[name].astype("<i8").tobytes())
    if digest.hexdigest() != sha256:
        raise ValueError(f"seed {seed} draws another mask here than the one that was saved")
    return found


if __name__ == "__main__":
    for name, (positions, values) in read_delta(sys.argv[1]).items():
        print(name, len(values), positions[:5], values[:5])
