"""What a delta file holds, for people to read."""

from collections import Counter
from math import lgamma, log
from pathlib import Path

from fishexp.delta.delta import Delta
from fishexp.delta.file import POSITIONS, read_beginning
from fishexp.delta.fingerprint import CODES
from fishexp.delta.header import VERSION, WHOLE, Entry, Header
from fishexp.delta.part import SEED

DENSEST = 5  # tensors shown


def info(path: Path) -> str:
    """Entries, bytes, digests and the densest tensors of a delta, in lines.

    Raises:
        DeltaError: If it is no delta, of another version, or damaged.
        OSError: If it cannot be read.
    """
    delta = Delta.load(path)
    with path.open("rb") as file:
        slots, header, _ = read_beginning(file, path)
    size, encoded = path.stat().st_size, slots[POSITIONS].bytes
    values = sum(slot.bytes for slot in slots.values()) - encoded
    entries = header.moved.values()
    types = Counter(CODES[entry.after.dtype] for entry in entries for _ in range(min(entry.count, 1)))
    total = sum(one.entries for one in delta.result.values())
    rows = [
        ("file", f"{path}, version {VERSION}"),
        ("entries", f"{delta.kept:,} of {total:,}, {_percent(delta.kept, total)}"),
        ("tensors", _tensors(header, len(delta.result))),
        ("types", ", ".join(f"{code} in {count:,}" for code, count in sorted(types.items())) or "none"),
        ("bytes", f"{size:,}: values {values:,}, positions {encoded:,}, header {size - values - encoded:,}"),
        ("positions", _positions(header, encoded)),
        ("base", delta.before),
        ("result", f"{delta.after}; a delta that follows on this one has it as its base"),
    ]
    moved = sorted(header.moved.items(), key=lambda item: (-_density(item[1]), item[0]))
    for name, entry in moved[:DENSEST]:
        rows.append(("densest", f"{_percent(entry.count, entry.after.entries):>8} of {name} {entry.after.shape}"))
    return "\n".join(f"{what:<9}  {text}" for what, text in rows)


def _tensors(header: Header, total: int) -> str:
    new = sum(name not in header.base for name in header.moved)
    whole = sum(entry.coding == WHOLE for entry in header.moved.values())
    return (
        f"{len(header.moved):,} of {total:,} have new values, {whole:,} of them all ({new:,} are new); "
        f"{len(header.removed):,} removed"
    )


def _positions(header: Header, encoded: int) -> str:
    """Bits a position, beside what a mask at random in each tensor would need."""
    if header.mask is not None:
        return f"drawn by seed {header.mask.recipe.seed}"
    sparse = [entry for entry in header.moved.values() if entry.coding not in (WHOLE, SEED)]
    count = sum(entry.count for entry in sparse)
    if not count:
        return "none"
    entropy = sum(_log_choose(entry.after.entries, entry.count) for entry in sparse) / log(2)
    return f"{8 * encoded / count:.2f} bits each; with as many in each tensor, at random, {entropy / count:.2f}"


def _log_choose(total: int, count: int) -> float:
    return lgamma(total + 1) - lgamma(count + 1) - lgamma(total - count + 1)


def _density(entry: Entry) -> float:
    return entry.count / max(entry.after.entries, 1)


def _percent(count: int, total: int) -> str:
    return f"{100 * count / max(total, 1):.3g} %"
