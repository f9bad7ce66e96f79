"""Apply a delta to a checkpoint, file to file: a piece of a tensor is in memory at a time, and what the delta holds."""

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from torch import Tensor

from fishexp.delta.apply import ALREADY_APPLIED, OtherValues, check_hashes, wrong_kind
from fishexp.delta.checkpoint import Checkpoint, StoredTensor, header_bytes, write_index
from fishexp.delta.content import Content, TensorDelta
from fishexp.delta.fingerprint import Fingerprint, raw
from fishexp.delta.model_folder import Others, others
from fishexp.delta.sources import read_fingerprint
from fishexp.errors import DeltaError
from fishexp.system.atomic import new_folder, replacing

MOST_NAMES = 20  # that a line names


@dataclass(frozen=True)
class TensorPatch:
    """Describe a tensor of the new checkpoint.

    Attributes:
        stored: Where it lies in the base; None for a new one.
        base: What it has to be there; None for a new one.
        moved: Its new values, if any.
    """

    stored: StoredTensor | None
    base: Fingerprint | None
    moved: TensorDelta | None

    @property
    def kind(self) -> Fingerprint:
        """Return type and shape of the result."""
        if self.moved is not None:
            return self.moved.kind
        assert self.stored is not None
        return self.stored.kind

    def pieces(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the tensor's pieces as the base has them and as they become; there may be more of these."""
        stored = () if self.stored is None else self.stored.pieces()
        return ((piece, piece) for piece in stored) if self.moved is None else self.moved.patched(stored)


@dataclass(frozen=True)
class NewCheckpoint:
    """Hold all that a new checkpoint is made of; nothing of it is written yet.

    Attributes:
        base: The checkpoint that it is made from.
        tensors: name -> what becomes of the tensor.
        others: What is to lie beside the weights; None if ``base`` is a file.
        notes: Lines that say what of ``base`` is left out, and what the new one lacks.
    """

    base: Checkpoint
    tensors: Mapping[str, TensorPatch]
    others: Others | None
    notes: tuple[str, ...]

    def write_file(self, path: Path, strict: bool) -> None:
        """Write all tensors into one file."""
        (metadata,) = self.base.metadata.values()
        _write(self.tensors, metadata, path, strict)

    def write_folder(self, folder: Path, strict: bool) -> None:
        """Write the files of tensors that ``base`` has, and what is to lie beside them."""
        files: dict[Path, dict[str, TensorPatch]] = {file: {} for file in self.base.metadata}
        for name, tensor in self.tensors.items():
            files[tensor.stored.file if tensor.stored else list(files)[-1]][name] = tensor
        for source, tensors in files.items():
            _write(tensors, self.base.metadata[source], folder / source.name, strict)
        where = {name: file for file, tensors in files.items() for name in tensors}
        write_index(self.base, where, sum(tensor.kind.nbytes for tensor in self.tensors.values()), folder)
        if self.others:
            self.others.write(folder)


def new_checkpoint(base: Checkpoint, delta: Content, beside: Path | None = None) -> NewCheckpoint:
    """Find what ``delta`` makes of ``base``; values are not looked at.

    Args:
        base: Renamed as the delta has its tensors, see :meth:`Checkpoint.named_as`.
        delta: To apply.
        beside: The folder in which the delta lies, where the configuration and the tokenizer of the result may be.

    Raises:
        DeltaError: If names, types or shapes are not those of the delta's base, or what lies beside the delta is not of
            its result.
    """
    patches, extra = find_patches(base, delta)
    more = f" and {len(extra) - MOST_NAMES:,} more" if len(extra) > MOST_NAMES else ""
    names = ", ".join(extra[:MOST_NAMES]) + more
    notes = [f"left out, since the delta's base does not have it: {names}"] if extra else []
    if not base.path.is_dir():
        return NewCheckpoint(base, patches, None, tuple(notes))
    before = {name: tensor.stored.kind for name, tensor in patches.items() if tensor.stored and tensor.base}
    before |= {name: base.tensors[name].kind for name in delta.removed if name in base.tensors}
    after = {name: tensor.kind for name, tensor in patches.items()}
    rest = others(base.path, before, after, extra, beside)
    return NewCheckpoint(base, patches, rest, (*notes, *rest.notes))


def patch(base: Checkpoint, delta: Content, out: Path, strict: bool = True, beside: Path | None = None) -> list[str]:
    """Write the result of ``delta`` to ``out``, in the form of ``base``, whole or not at all.

    Args:
        base: As for :func:`new_checkpoint`.
        delta: To apply.
        out: A folder if ``base`` is one, with what is to lie beside the weights; otherwise a file.
        strict: Check all values of the base and of the result; if false, only names, types and shapes have to fit.
        beside: As for :func:`new_checkpoint`.

    Returns:
        Lines that say what of ``base`` is left out, and what the result lacks.

    Raises:
        DeltaError: If ``base`` is not the delta's, or what lies beside the delta is not of its result.
        OSError: If a file cannot be read or written.
    """
    new = new_checkpoint(base, delta, beside)
    try:
        if base.path.is_dir():
            with new_folder(out) as folder:
                new.write_folder(folder, strict)
        else:
            with replacing(out) as file:
                new.write_file(file, strict)
    except OtherValues:
        if _is_result(base, delta):
            raise DeltaError(ALREADY_APPLIED) from None
        raise
    return list(new.notes)


def find_patches(base: Checkpoint, delta: Content) -> tuple[dict[str, TensorPatch], list[str]]:
    """Find which tensor becomes what, by name, and the names of those of ``base`` that the delta does not know.

    Raises:
        DeltaError: If a type or a shape is another one than that of the delta's base, or a tensor is missing.
    """
    patches: dict[str, TensorPatch] = {}
    extra: list[str] = []
    gone, seen = set(delta.removed), set[str]()
    for name, stored in base.tensors.items():
        key = delta.tied.get(name, name)
        old, moved = delta.base.get(key), delta.moved.get(key)
        seen.add(key)
        if old is None and moved is None:
            extra.append(name)
            continue
        if key in gone:
            continue
        here = stored.kind
        if old is None and moved is not None and here != moved.kind:  # another head in the place of the base's
            stored = None
        elif all(here != kind for kind in (old and replace(old, sha256=None), moved and moved.kind)):
            raise wrong_kind(name, here, old or here)
        patches[name] = TensorPatch(stored, old, moved)
    for name in delta.base:
        if name not in seen:
            raise DeltaError(f"the delta is for another base: it has {name}, which is missing here")
    new = {name: TensorPatch(None, None, moved) for name, moved in delta.moved.items() if name not in seen}
    return patches | new, extra


def _write(tensors: Mapping[str, TensorPatch], metadata: dict[str, str], path: Path, strict: bool) -> None:
    """Write a file of tensors, those of wide types first, so that all lie at multiples of their size.

    Raises:
        OtherValues: If a tensor is another one than that of the delta's base, and ``strict``.
        DeltaError: If the result is not the delta's, and ``strict``.
    """
    ordered = dict(sorted(tensors.items(), key=lambda item: -item[1].kind.dtype.itemsize))
    with path.open("wb") as file:
        kinds = {name: tensor.kind for name, tensor in ordered.items()}
        file.write(header_bytes(kinds, metadata, sort_keys=False))
        for name, tensor in ordered.items():
            before, after = hashlib.sha256(), hashlib.sha256()
            left = tensor.base.entries if tensor.base else 0
            for old, new in tensor.pieces():
                file.write(raw(new))
                if strict:
                    before.update(raw(old[:left]))
                    left -= min(left, len(old))
                    if tensor.moved is not None:
                        after.update(raw(new))
            if strict:
                check_hashes(name, tensor.base, tensor.moved, before.hexdigest(), after.hexdigest(), "--force")


def _is_result(base: Checkpoint, delta: Content) -> bool:
    """Tell whether all tensors are those after the delta already."""
    for name, stored in base.tensors.items():
        after = delta.result.get(delta.tied.get(name, name))
        if after is None or after.sha256 != read_fingerprint(stored).sha256:
            return False
    return True
