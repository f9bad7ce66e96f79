"""The tensors of a model, a dict or files by name, tied ones once; read one at a time."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fishexp.delta.container import Slot, read_header, read_slot
from fishexp.delta.fingerprint import CODES, Fingerprint, fingerprint, in_threads
from fishexp.errors import DeltaError

Tensors: TypeAlias = nn.Module | Mapping[str, Tensor] | str | Path

INDEX, SINGLE = "model.safetensors.index.json", "model.safetensors"


@dataclass(frozen=True)
class Source:
    """Named tensors.

    Attributes:
        kinds: name -> type and shape, in the order of the model.
        tied: Another name of a tensor -> its first one, which ``kinds`` has.
        read: The tensor of a name; of a model or a dict itself, without a copy.
    """

    kinds: dict[str, Fingerprint]
    tied: dict[str, str]
    read: Callable[[str], Tensor]

    def kind(self, name: str) -> Fingerprint:
        """Type and shape of a tensor, by any of its names."""
        return self.kinds[self.tied.get(name, name)]

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Of all tensors, in the order of the model; a few are read together."""
        found = in_threads(lambda name: fingerprint(self.read(name)), self.kinds)
        return dict(zip(self.kinds, found, strict=True))


def source(tensors: Tensors | Source) -> Source:
    """The tensors of a model or a dict, of a .safetensors file, or of a folder as Hugging Face writes it.

    Raises:
        DeltaError: If there is something that is no tensor, or none that a delta can hold, or a file is damaged.
        OSError: If a file cannot be read.
    """
    if isinstance(tensors, Source):
        return tensors
    if isinstance(tensors, str | Path):
        return _files(Path(tensors))
    found = named(tensors)
    groups = tied(found)
    kinds = {names[0]: kind(found[names[0]]) for names in groups}
    return Source(kinds, {other: names[0] for names in groups for other in names[1:]}, found.__getitem__)


def kind(tensor: Tensor) -> Fingerprint:
    """Type and shape."""
    return Fingerprint(tensor.dtype, tuple(tensor.shape))


def named(target: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Parameters and persistent buffers of a model themselves, by the names of ``state_dict()``; or those of a dict."""
    found = dict(target) if isinstance(target, Mapping) else target.state_dict(keep_vars=True)
    if isinstance(target, nn.Module):
        found = {name: tensor for name, tensor in found.items() if name.rpartition(".")[2] != "_extra_state"}
    for name, tensor in found.items():
        if not isinstance(name, str) or not is_name(name):
            raise DeltaError(f"{name!r} cannot be the name of a tensor: it is empty, or has characters without a shape")
        if reason := _unfit(tensor):
            raise DeltaError(f"{name} {reason}, which a delta cannot hold")
    return found


def is_name(name: str) -> bool:
    """Whether it can be printed on a line."""
    return bool(name) and name.isprintable()


def _unfit(tensor: object) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"is a {type(tensor).__name__}, not a tensor"
    if is_lazy(tensor) or tensor.is_meta:
        return "has no values yet"
    if str(tensor.layout) != "torch.strided" or tensor.is_nested or tensor.is_conj() or tensor.is_neg():
        return "is sparse, nested or a lazy view"
    if tensor.dtype not in CODES:
        return f"has entries of {tensor.dtype}"
    return None


def tied(found: Mapping[str, Tensor]) -> list[list[str]]:
    """The names of each distinct tensor, in order: those of one memory are one tensor."""
    groups: dict[object, list[str]] = {}
    for name, tensor in found.items():
        memory = tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset()
        same = (*memory, tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else id(tensor)
        groups.setdefault(same, []).append(name)
    return list(groups.values())


def _files(path: Path) -> Source:
    """Of a file, or of the files of a folder."""
    places: dict[str, tuple[Path, Slot]] = {}
    for file in checkpoint_files(path):
        with file.open("rb") as opened:
            slots, _ = read_header(opened, file)
        for name, slot in slots.items():
            if not is_name(name) or name in places:
                raise DeltaError(f"{file}: the tensor {name!r} has no valid name, or is in another file as well")
            places[name] = file, slot

    def read(name: str) -> Tensor:
        file, slot = places[name]
        with file.open("rb") as opened:
            return read_slot(opened, slot, file)

    return Source({name: Fingerprint(slot.dtype, slot.shape) for name, (_, slot) in places.items()}, {}, read)


def checkpoint_files(path: Path) -> list[Path]:
    """The safetensors files of a checkpoint."""
    if not path.is_dir():
        return [path]
    if not (path / INDEX).exists():
        if not (path / SINGLE).exists():
            raise DeltaError(f"{path} holds neither {SINGLE} nor {INDEX}; save the model with safetensors")
        return [path / SINGLE]
    try:
        names = set(json.loads((path / INDEX).read_text(encoding="utf-8"))["weight_map"].values())
    except (ValueError, RecursionError, LookupError, TypeError, AttributeError):
        raise DeltaError(f"{path / INDEX} is damaged: it has no weight_map") from None
    for name in names:
        if not isinstance(name, str) or not is_name(name) or Path(name).name != name or name == "..":
            raise DeltaError(f"{path / INDEX} names {name!r}, which is no file of the folder")
    return [path / name for name in sorted(names)]
