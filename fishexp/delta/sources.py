"""The tensors of a model, a dict or files by name, tied ones once, in pieces that are read when they are needed."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Protocol, TypeAlias

from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from fishexp.delta import checkpoint
from fishexp.delta.fingerprint import CODES, Fingerprint, flat, hashed, in_threads, kind, pieces
from fishexp.delta.names import is_name, match, plainer
from fishexp.errors import DeltaError

_PLAIN: Any = Tensor
Tensors: TypeAlias = nn.Module | Mapping[str, Tensor] | str | Path


class TensorReader(Protocol):
    """Read a tensor, from memory or from a file, as often as needed."""

    @property
    def kind(self) -> Fingerprint:
        """Return type and shape of the tensor."""
        ...

    def pieces(self) -> Iterable[Tensor]:
        """Return the entries row after row, in pieces as :func:`fishexp.delta.fingerprint.pieces` cuts them."""
        ...

    def read(self) -> Tensor:
        """Return all entries row after row, (entries,), in memory of their own."""
        ...


@dataclass(frozen=True)
class LoadedTensor:
    """Read a tensor that is in memory, on any device."""

    tensor: Tensor

    @property
    def kind(self) -> Fingerprint:
        """Return type and shape of the tensor."""
        return kind(self.tensor)

    def pieces(self) -> Iterable[Tensor]:
        """Return views of the entries, of a copy only if the tensor is on a device or in another order."""
        return pieces(self.tensor)

    def read(self) -> Tensor:
        """Return a copy of all entries row after row, (entries,)."""
        return flat(self.tensor).clone()


@dataclass(frozen=True)
class Source:
    """Hold named tensors.

    Attributes:
        tensors: name -> what reads the tensor, in the order of the model.
        tied: Another name of a tensor -> its first one, which ``tensors`` has.
    """

    tensors: Mapping[str, TensorReader]
    tied: Mapping[str, str] = field(default_factory=dict)

    def tensor(self, name: str) -> TensorReader:
        """Return what reads a tensor, by any of its names."""
        return self.tensors[self.tied.get(name, name)]

    def named_as(self, names: Mapping[str, str]) -> "Source":
        """Return the same with other names, as far as ``names`` has them."""
        return Source(
            {names.get(name, name): tensor for name, tensor in self.tensors.items()},
            {names.get(name, name): names.get(first, first) for name, first in self.tied.items()},
        )

    def fingerprints(self) -> dict[str, Fingerprint]:
        """Compute the fingerprints of all tensors, in the order of the model; a few are read together."""
        return dict(zip(self.tensors, in_threads(read_fingerprint, self.tensors.values()), strict=True))


def read_fingerprint(tensor: TensorReader) -> Fingerprint:
    """Compute the fingerprint of a tensor, a piece at a time."""
    digest = hashlib.sha256()
    for _ in hashed(tensor.pieces(), digest):
        pass
    return replace(tensor.kind, sha256=digest.hexdigest())


def source(tensors: Tensors | Source) -> Source:
    """Return the tensors of a model or a dict, a .safetensors file, or a folder as Hugging Face writes it.

    Raises:
        DeltaError: If there is something that is no tensor, or none that a delta can hold, or a file is damaged.
        OSError: If a file cannot be read.
    """
    if isinstance(tensors, Source):
        return tensors
    if isinstance(tensors, str | Path):
        return Source(checkpoint.read(Path(tensors)).tensors)
    found = named(tensors)
    groups = tied_names(found)
    tied = {other: names[0] for names in groups for other in names[1:]}
    return Source({names[0]: LoadedTensor(found[names[0]]) for names in groups}, tied)


def aligned(before: Source, after: Source) -> tuple[Source, Source]:
    """Return both with the same names for the same tensors: those of ``after``, without what wrappers put into them."""
    old, new = [*before.tensors, *before.tied], [*after.tensors, *after.tied]
    after = after.named_as(names := plainer(new, old))
    return before.named_as(match(old, list(names.values())).names), after


def named(target: nn.Module | Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a model's parameters and persistent buffers themselves, named as in ``state_dict()``; or a dict's tensors.

    Raises:
        DeltaError: If it is neither, or there is something that is no tensor, or none that a delta can hold.
    """
    if not isinstance(target, nn.Module | Mapping):
        raise DeltaError(
            f"a {type(target).__name__} is no model and no dict of tensors in memory; read one first, or apply a delta "
            "to files by python -m fishexp.delta apply"
        )
    found = dict(target) if isinstance(target, Mapping) else target.state_dict(keep_vars=True)
    if isinstance(target, nn.Module):
        found = {name: tensor for name, tensor in found.items() if name.rpartition(".")[2] != "_extra_state"}
    for name, tensor in found.items():
        if not isinstance(name, str) or not is_name(name):
            raise DeltaError(
                f"{str(name)[:80]!r} cannot be the name of a tensor: it is empty, too long, __metadata__, or has "
                "characters without a shape"
            )
        if reason := _why_unfit(tensor):
            raise DeltaError(f"{name} {reason}, which a delta cannot hold")
    return found


def _why_unfit(tensor: object) -> str | None:
    if not isinstance(tensor, Tensor):
        return f"is a {type(tensor).__name__}, not a tensor"
    if is_lazy(tensor) or tensor.is_meta:
        return "has no values yet"
    own: Any = type(tensor)
    if own.__torch_dispatch__ is not _PLAIN.__torch_dispatch__:  # quantised, distributed or fake
        return f"is a {own.__name__}, which keeps its entries in a form of its own"
    if str(tensor.layout) != "torch.strided" or tensor.is_nested or tensor.is_conj() or tensor.is_neg():
        return "is sparse, nested or a lazy view"
    if tensor.dtype not in CODES:
        return f"has entries of {tensor.dtype}"
    if tensor.numel() and not tensor.untyped_storage().nbytes():
        return "has no values in memory"
    return None


def tied_names(found: Mapping[str, Tensor]) -> list[list[str]]:
    """Group the names of each distinct tensor, in order: those that share all of their memory are one tensor."""
    groups: dict[object, list[str]] = {}
    for name, tensor in found.items():
        memory = tensor.device, tensor.untyped_storage().data_ptr(), tensor.storage_offset()
        same = (*memory, tensor.shape, tensor.stride(), tensor.dtype) if tensor.numel() else id(tensor)
        groups.setdefault(same, []).append(name)
    return list(groups.values())
