"""What makes one checkpoint of another, file to file: a piece of both is in memory at a time, and the delta."""

import hashlib

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from fishexp.delta import checkpoint
from fishexp.delta.checkpoint import Checkpoint, Place
from fishexp.delta.container import read_slot
from fishexp.delta.content import Content
from fishexp.delta.fingerprint import Fingerprint
from fishexp.delta.moved import Moved, whole
from fishexp.errors import DeltaError
from fishexp.masks import position_codec


def compare(before: Checkpoint, after: Checkpoint) -> Content:
    """The delta between two checkpoints, by the bits, in the smallest form; as :meth:`Delta.diff`, in less memory.

    Args:
        before: Renamed as ``after`` has its tensors, see :meth:`Checkpoint.named_as`.

    Raises:
        DeltaError: If types or shapes differ in another way than by more rows.
        OSError: If a file cannot be read.
    """
    base: dict[str, Fingerprint] = {}
    moved: dict[str, Moved] = {}
    for name, place in after.places.items():
        old = before.places.get(name)
        if old is not None and not old.kind.grows_to(place.kind):
            raise DeltaError(
                f"{name} is {old.kind} before and {place.kind} after; a delta keeps the type, and of the shape all but "
                "more rows"
            )
    for name, place in {**after.places, **before.places}.items():
        change = None
        if (old := before.places.get(name)) is None:
            change = whole(_read(place))
        else:
            base[name], change = _change(old, after.places.get(name, old))
        if change is not None:
            moved[name] = change
    return Content(base, moved, tuple(sorted(before.places.keys() - after.places.keys())))


def _read(place: Place) -> Tensor:
    with place.file.open("rb") as file:
        return read_slot(file, place.slot, place.file)


def _change(before: Place, after: Place) -> tuple[Fingerprint, Moved | None]:
    """What the tensor was, and its new values, if any."""
    size = after.slot.dtype.itemsize
    places: list[NDArray[np.int64]] = []
    values: list[NDArray[np.generic]] = []
    count, least = 0, size * after.kind.entries  # of bytes that the tensor takes if stored whole
    old_hash, new_hash = hashlib.sha256(), hashlib.sha256()
    with before.file.open("rb") as old_file, after.file.open("rb") as new_file:
        for start in range(0, after.slot.bytes, checkpoint.PIECE):
            old, new = before.piece(old_file, start), after.piece(new_file, start)
            old_hash.update(old)
            new_hash.update(new)
            one, other = np.frombuffer(old, f"u{size}"), np.frombuffer(new, f"u{size}")
            differ = np.append(np.flatnonzero(one != other[: len(one)]), np.arange(len(one), len(other)))
            count += len(differ)
            if count * size < least:  # otherwise it is going to be stored whole
                places.append(differ + start // size)
                values.append(other[differ])
    base = Fingerprint(before.slot.dtype, before.slot.shape, old_hash.hexdigest())
    if not count and before.slot.shape == after.slot.shape:
        return base, None
    if count * size < least:
        where = torch.from_numpy(np.concatenate(places))
        if count * size + len(position_codec.encode(where, after.slot.shape)[1]) < least:
            found = torch.from_numpy(np.concatenate(values).view(np.uint8)).view(after.slot.dtype)
            return base, Moved(after.slot.shape, where, found, new_hash.hexdigest())
    places.clear()
    values.clear()
    return base, Moved(after.slot.shape, None, _read(after).flatten(), new_hash.hexdigest())
