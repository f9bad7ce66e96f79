"""Checkpoints on disk: where the tensors lie in their files, and what lies beside them."""

import json
import os
import secrets
import shutil
from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO

from torch import Tensor

from fishexp.delta.container import Slot, exactly, read_header, read_slot
from fishexp.delta.fingerprint import CODES, Fingerprint
from fishexp.delta.tensors import INDEX, Source, checkpoint_files, is_name
from fishexp.errors import DeltaError
from fishexp.system.atomic import sync

PIECE = 1 << 23  # bytes read together; a multiple of all types' sizes
WEIGHTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".onnx", ".ot", ".gguf", ".tflite")


@dataclass(frozen=True)
class Place:
    """A tensor in a file."""

    file: Path
    slot: Slot

    @property
    def kind(self) -> Fingerprint:
        """Type and shape."""
        return Fingerprint(self.slot.dtype, self.slot.shape)

    def piece(self, file: BinaryIO, start: int) -> bytearray:
        """The next :data:`PIECE` bytes of the tensor from ``start`` on, or as many as there are."""
        file.seek(self.slot.start + start)
        return exactly(file, max(min(PIECE, self.slot.bytes - start), 0), self.file)


@dataclass(frozen=True)
class Checkpoint:
    """A .safetensors file, or a folder as Hugging Face writes it.

    Attributes:
        path: Of the file or the folder.
        metadata: Of each file of tensors, in order.
        places: name -> where its tensor lies.
    """

    path: Path
    metadata: Mapping[Path, dict[str, str]]
    places: Mapping[str, Place]

    def named_as(self, names: Sequence[str]) -> "Checkpoint":
        """The same with the names of another model, if they differ in a prefix of all, such as ``bert.``, only."""
        wanted, best = set(names), ("", 0)
        own = sum(name in wanted for name in self.places)
        longer = Counter(p for name in names for p, rest in _cuts(name) if rest in self.places)
        shorter = Counter(p for name in self.places for p, rest in _cuts(name) if rest in wanted)
        best = max([*longer.items(), *shorter.items()], key=lambda found: found[1], default=best)
        if best[1] <= own:
            return self
        add = longer[best[0]] == best[1]
        other = {n: best[0] + n if add else n.removeprefix(best[0]) for n in self.places}
        renamed = {new if new in wanted else name: self.places[name] for name, new in other.items()}
        return replace(self, places=renamed) if len(renamed) == len(self.places) else self

    def source(self, known: Collection[str]) -> Source:
        """To be read one tensor at a time; of the names in ``known`` only."""

        def load(name: str) -> Tensor:
            place = self.places[name]
            with place.file.open("rb") as file:
                return read_slot(file, place.slot, place.file)

        return Source({name: place.kind for name, place in self.places.items() if name in known}, {}, load)


def _cuts(name: str) -> Iterator[tuple[str, str]]:
    """``a.b.c`` in two: ``a.`` and ``b.c``, ``a.b.`` and ``c``."""
    parts = name.split(".")
    for i in range(1, len(parts)):
        yield ".".join(parts[:i]) + ".", ".".join(parts[i:])


def read(path: Path) -> Checkpoint:
    """Where all tensors lie.

    Raises:
        DeltaError: If there are none, or a file is damaged.
        OSError: If a file cannot be read.
    """
    metadata, places = {}, {}
    for file in checkpoint_files(path):
        with file.open("rb") as opened:
            slots, metadata[file] = read_header(opened, file)
        for name, slot in slots.items():
            if not is_name(name) or name in places:
                raise DeltaError(f"{file}: the tensor {name!r} has no valid name, or is in another file as well")
            places[name] = Place(file, slot)
    return Checkpoint(path, metadata, places)


def header(kinds: Mapping[str, Fingerprint], metadata: dict[str, str]) -> bytes:
    """Length and header of a file of these tensors, which follow it in this order."""
    entries: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name, kind in kinds.items():
        start, end = end, end + kind.entries * kind.dtype.itemsize
        entries[name] = {"dtype": CODES[kind.dtype], "shape": kind.shape, "data_offsets": [start, end]}
    text = json.dumps(entries, separators=(",", ":")).encode("utf-8")
    text += b" " * (-len(text) % 8)  # the data begin at a multiple of eight
    return len(text).to_bytes(8, "little") + text


@contextmanager
def new_folder(path: Path) -> Iterator[Path]:
    """A folder beside ``path``, which takes its name when the context ends without an error; gone otherwise.

    Raises:
        OSError: As the system gives it; one of them if ``path`` exists.
    """
    path = path.absolute()
    temporary = path.with_name(f".{path.name[:100]}.{secrets.token_hex(8)}.tmp")
    temporary.mkdir()
    try:
        yield temporary
        for folder, _, files in os.walk(temporary):
            for file in files:
                sync(Path(folder, file))
            sync(Path(folder))
        temporary.rename(path)
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    sync(path.parent)


def copy_others(source: Path, target: Path) -> None:
    """What lies beside the weights: configuration, tokenizer, notes. Neither weights of any form nor hidden files."""

    def skipped(_: str, names: list[str]) -> list[str]:
        return [name for name in names if name.startswith(".") or name.endswith((*WEIGHTS, ".index.json"))]

    shutil.copytree(source, target, ignore=skipped, dirs_exist_ok=True)


def write_index(base: Checkpoint, files: Mapping[str, Path], size: int, folder: Path) -> None:
    """The list of which tensor is in which file, where the checkpoint has one.

    Args:
        files: Of each tensor.
        size: Bytes of all tensors.
    """
    if not (base.path / INDEX).exists():
        return
    index = json.loads((base.path / INDEX).read_text(encoding="utf-8"))
    about = index.get("metadata")
    index["metadata"] = (about if isinstance(about, dict) else {}) | {"total_size": size}
    index["weight_map"] = {name: file.name for name, file in sorted(files.items())}
    (folder / INDEX).write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
