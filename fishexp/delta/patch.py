"""A delta onto a checkpoint, file to file: a piece of a tensor is in memory at a time, and what the delta holds."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import numpy as np

from fishexp.delta import checkpoint
from fishexp.delta.checkpoint import Checkpoint, Place, copy_others, header, new_folder, write_index
from fishexp.delta.content import Content
from fishexp.delta.fingerprint import Fingerprint, raw
from fishexp.delta.moved import Moved
from fishexp.errors import DeltaError
from fishexp.system.atomic import replacing


class NotThis(DeltaError):
    """A tensor has other values than in the delta's base."""


@dataclass(frozen=True)
class Patch:
    """A tensor of the new checkpoint.

    Attributes:
        place: Where it lies in the base; None for a new one.
        base: What it has to be there; None for a new one.
        moved: Its new values, if any.
    """

    place: Place | None
    base: Fingerprint | None
    moved: Moved | None

    @property
    def kind(self) -> Fingerprint:
        """Type and shape of the result."""
        if self.moved is not None:
            return self.moved.kind
        assert self.place is not None
        return self.place.kind


def patch(base: Checkpoint, delta: Content, out: Path, strict: bool = True) -> list[str]:
    """Write the result of ``delta`` to ``out``, in the form of ``base``, whole or not at all.

    Args:
        base: Renamed as the delta has its tensors, see :meth:`Checkpoint.named_as`.
        out: A folder if ``base`` is one, with what lies beside the weights there; otherwise a file.
        strict: Check all values of the base and of the result; if false, only names, types and shapes have to fit.

    Returns:
        Names of the tensors of ``base`` that the delta's base does not have, and that are left out therefore.

    Raises:
        DeltaError: If ``base`` is not the delta's.
        OSError: If a file cannot be read or written.
    """
    patches, extra = fit(base, delta)
    files: dict[Path, dict[str, Patch]] = {file: {} for file in base.metadata}
    for name, one in patches.items():
        files[one.place.file if one.place else list(files)[-1]][name] = one
    try:
        with ExitStack() as stack:
            folder = stack.enter_context(new_folder(out)) if base.path.is_dir() else None
            for source, tensors in files.items():
                target = folder / source.name if folder else stack.enter_context(replacing(out))
                with source.open("rb") as read, target.open("wb") as write:
                    _write(tensors, base.metadata[source], read, write, strict)
            if folder:
                where = {name: file for file, tensors in files.items() for name in tensors}
                write_index(base, where, sum(_bytes(one.kind) for one in patches.values()), folder)
                copy_others(base.path, folder)
    except NotThis:
        if _is_result(base, delta):
            raise DeltaError("already applied: the model has the delta's result") from None
        raise
    return extra


def fit(base: Checkpoint, delta: Content) -> tuple[dict[str, Patch], list[str]]:
    """Which tensor becomes what, by name, and the names of those of ``base`` that the delta does not know.

    Raises:
        DeltaError: If a type or a shape is another one than that of the delta's base, or a tensor is missing.
    """
    patches: dict[str, Patch] = {}
    extra: list[str] = []
    seen = set(delta.removed)
    for name, place in base.places.items():
        key = delta.tied.get(name, name)
        old, moved = delta.base.get(key), delta.moved.get(key)
        seen.add(key)
        if old is None and moved is None:
            extra.append(name)
            continue
        if key in delta.removed:
            continue
        known = [kind for kind in (old, moved and moved.kind) if kind]
        if all((place.kind.dtype, place.kind.shape) != (one.dtype, one.shape) for one in known):
            raise DeltaError(f"the delta is for another base: {name} is {place.kind}, the delta's base has {known[0]}")
        patches[name] = Patch(place, old, moved)
    for name in delta.base:
        if name not in seen:
            raise DeltaError(f"the delta is for another base: it has {name}, which is missing here")
    new = {name: Patch(None, None, moved) for name, moved in delta.moved.items() if name not in seen}
    return patches | new, extra


def _bytes(kind: Fingerprint) -> int:
    return kind.entries * kind.dtype.itemsize


def _write(
    tensors: Mapping[str, Patch], metadata: dict[str, str], read: BinaryIO, write: BinaryIO, strict: bool
) -> None:
    """A file of tensors, those of wide types first, so that all lie at multiples of their size.

    Raises:
        NotThis: If a tensor is another one than that of the delta's base, and ``strict``.
        DeltaError: If the result is not the delta's, and ``strict``.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].kind.dtype.itemsize))
    write.write(header({name: one.kind for name, one in ordered.items()}, metadata))
    for name, one in ordered.items():
        before, after = hashlib.sha256(), hashlib.sha256()
        left = _bytes(one.base) if one.base else 0
        for old, new in _pieces(one, read):
            write.write(new)
            if strict:
                before.update(memoryview(old)[:left])
                left -= min(left, len(old))
                if one.moved is not None:
                    after.update(new)
        if strict and one.base is not None and one.base.sha256 not in (None, before.hexdigest()):
            raise NotThis(
                f"the delta is for another base: the values of {name} are not those of the delta's base; "
                "--force applies it all the same"
            )
        if strict and one.moved is not None and one.moved.sha256 != after.hexdigest():
            raise DeltaError(f"the delta contradicts itself: its values of {name} do not give its result")


def _pieces(one: Patch, file: BinaryIO) -> Iterator[tuple[bytearray, bytearray]]:
    """The bytes of a tensor as ``file`` has them and as they become, piece by piece; there may be more of these."""
    size, total = one.kind.dtype.itemsize, _bytes(one.kind)
    places = None if one.moved is None or one.moved.positions is None else one.moved.positions.numpy()
    values = None if one.moved is None else np.frombuffer(raw(one.moved.values), f"u{size}")
    for start in range(0, total, checkpoint.PIECE):
        old = bytearray() if one.place is None else one.place.piece(file, start)
        if values is None:
            yield old, old
            continue
        new = old.ljust(min(checkpoint.PIECE, total - start), b"\0")
        words, first = np.frombuffer(new, f"u{size}"), start // size
        if places is None:
            words[:] = values[first : first + len(words)]
        else:
            low, high = np.searchsorted(places, [first, first + len(words)])
            words[places[low:high] - first] = values[low:high]
        yield old, new


def _is_result(base: Checkpoint, delta: Content) -> bool:
    """Whether all tensors are those after the delta already."""
    for name, place in base.places.items():
        digest = hashlib.sha256()
        with place.file.open("rb") as file:
            for start in range(0, place.slot.bytes, checkpoint.PIECE):
                digest.update(place.piece(file, start))
        after = delta.result.get(delta.tied.get(name, name))
        if after is None or after.sha256 != digest.hexdigest():
            return False
    return True
