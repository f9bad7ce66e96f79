"""Write a delta as an adapter that PEFT loads.

Super-Tuning (PEFT 0.21) adds a value to some entries of the weights of Linear modules, to the same fraction of the
entries of each; other modules it replaces whole (``modules_to_save``). So of a Linear in which only the weight moved
the differences to the base are written, filled up with zeros to the common fraction, and each module in which anything
else moved, a bias, an embedding or a norm, is written whole.

A delta replaces bits, an adapter adds: where base plus difference is rounded, the sum may miss the delta's last bit.
"""

import json
import math
import re
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fishexp.delta.checkpoint import write_tensors
from fishexp.delta.combine import whole_result
from fishexp.delta.content import Content, TensorDelta
from fishexp.delta.diff import by_common_name
from fishexp.delta.fingerprint import bits, in_threads
from fishexp.delta.names import match
from fishexp.delta.patches import MOST_ENTRIES
from fishexp.delta.sources import Source, TensorReader, Tensors, read_fingerprint, source
from fishexp.errors import DeltaError
from fishexp.system.atomic import new_folder, replacing

CONFIG, WEIGHTS = "adapter_config.json", "adapter_model.safetensors"  # files of an adapter's folder
PEFT_TYPE = "SUPERTUNING"

MODEL = "base_model.model."  # before all names, in a file
INDICES, VALUES = "supertuning_indices", "supertuning_values"  # what a module's tensors are called

_PAIR = 8  # bytes of an index and a value
_CONTAINERS = (nn.ModuleDict, nn.ModuleList, nn.ParameterDict, nn.ParameterList)  # PEFT cannot replace these
_TRANSPARENT = (nn.Sequential, nn.ModuleDict, nn.ModuleList)  # modules of torch that call those in them, no more


@dataclass(frozen=True)
class Adapter:
    """Count what an adapter holds.

    Attributes:
        sparse: Linear modules of which some entries are stored.
        values: Entries stored of these.
        filled: Those of them that are zeros, to fill up to the common fraction.
        missed: Entries for which base plus difference is not the delta's value, by a rounding.
        whole: Modules stored whole.
        whole_bytes: Bytes of these.
    """

    sparse: int
    values: int
    filled: int
    missed: int
    whole: int
    whole_bytes: int

    def __str__(self) -> str:
        return (
            f"{self.values:,} values in {self.sparse} Linear weights, {self.filled:,} of them zeros that fill up to "
            f"one sparsity; {self.whole} modules whole, {self.whole_bytes:,} bytes, as with any bias, norm or "
            f"embedding; {self.missed:,} values are a rounding off, as PEFT adds what a delta replaces"
        )


class _Sparse(NamedTuple):
    """Hold the entries of a Linear's weight that move: (k,) positions in it, and (k,) differences in float32."""

    positions: Tensor
    values: Tensor
    entries: int
    missed: int
    module_bytes: int

    @property
    def density(self) -> float:
        return len(self.positions) / self.entries


def write_adapter(
    delta: Content, base: Tensors | Source, structure: nn.Module, folder: str | Path, base_name: str = ""
) -> Adapter:
    """Write ``delta`` as an adapter that PEFT loads on the same base, whole or not at all.

    Args:
        delta: To write. Its tensors have the names of ``structure``, but for a prefix.
        base: Its base, in any form that :meth:`Delta.diff` takes.
        structure: A model as PEFT is going to wrap it, with the head that the result has; only its modules and names
            are looked at, so it may be on meta.
        folder: To make.
        base_name: Where PEFT finds the base by itself, a path or a hub id.

    Returns:
        What the adapter holds.

    Raises:
        DeltaError: If ``base`` is not the delta's, ``structure`` has other tensors, or no weight of a Linear moved in
            part.
        OSError: If a file cannot be read or written.
    """
    tensors = _Tensors(delta, base, structure)
    whole, sparse = _parts(tensors, structure)
    whole, sparse = _cheapest(whole, sparse, structure)
    sparsity = _sparsity([(len(part.positions), part.entries) for part in sparse.values()])
    stored, filled = {}, 0
    for module, part in sparse.items():
        indices, values = _filled(part, _count(part.entries, sparsity))
        stored[f"{MODEL}{module}.{INDICES}"], stored[f"{MODEL}{module}.{VALUES}"] = indices, values
        filled += len(values) - len(part.values)
    kept = {name: tensors.result(name) for module in sorted(whole) for name in _names_in(structure, module)}
    config = _config(structure, base_name, sorted(sparse), sorted(whole), sparsity)
    with new_folder(Path(folder)) as new:
        (new / CONFIG).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        with replacing(new / WEIGHTS) as file:
            write_tensors(stored | {MODEL + name: t for name, t in kept.items()}, {"format": "pt"}, file)
    return Adapter(
        len(sparse),
        sum(len(part.values) for part in sparse.values()) + filled,
        filled,
        sum(part.missed for part in sparse.values()),
        len(whole),
        sum(tensor.nbytes for tensor in kept.values()),
    )


class _Tensors:
    """Find tensors of base and result by the names of the model that PEFT wraps.

    Attributes:
        groups: Names in the model of each tensor; a tied one has several.

    Raises:
        DeltaError: If ``base`` is not the delta's, or ``structure`` has other tensors than the result.
    """

    def __init__(self, delta: Content, base: Tensors | Source, structure: nn.Module) -> None:
        tensors = structure.state_dict(keep_vars=True)
        delta = delta.named_as(match(delta.all_names, tensors).names)
        found = source(base)
        found = found.named_as(match([*found.tensors, *found.tied], delta.all_names).names)
        self._base, self._moved = by_common_name(found, delta.tied), delta.moved
        _check_base(delta, self._base)
        groups: dict[int, list[str]] = defaultdict(list)
        for name, tensor in tensors.items():
            groups[id(tensor)].append(name)
        self.groups = list(groups.values())
        self._own: dict[str, str] = {}  # name in the model -> in the delta
        for names in self.groups:
            own = {name: delta.tied.get(name, name) for name in names}
            known = [name for name in own.values() if name in delta.result]
            if not known:
                raise DeltaError(f"the model has {names[0]}, which the delta's result lacks; give the model it is for")
            self._own |= {name: first if first in known else known[0] for name, first in own.items()}
        if missing := delta.result.keys() - {*self._own.values()}:
            raise DeltaError(f"the model lacks {min(missing)}, which the delta's result has; give the model it is for")
        self._new = delta.result.keys() - delta.base.keys()

    def moved(self, name: str) -> TensorDelta | None:
        """Return the new values of a tensor of the model, if there are any."""
        moved = self._moved.get(self._own[name])
        return moved if moved is not None and len(moved.values) else None

    def before(self, name: str) -> TensorReader | None:
        """Return what reads a tensor of the model as the base has it, if it does."""
        return None if self._own[name] in self._new else self._base[self._own[name]]

    def result(self, name: str) -> Tensor:
        """Return a tensor of the model with its new values."""
        found = whole_result(name, self.before(name), self.moved(name))
        return found.values.view(found.shape)


def _check_base(delta: Content, base: Mapping[str, TensorReader]) -> None:
    """Refuse another base than the delta's."""
    for name in delta.base:
        if name not in base:
            raise DeltaError(f"the delta is for another base: it has {name}, which is missing here")
    here = in_threads(read_fingerprint, [base[name] for name in delta.base])
    for (name, its), found in zip(delta.base.items(), here, strict=True):
        if str(found) != str(its) or its.sha256 not in (None, found.sha256):
            raise DeltaError(f"the delta is for another base: {name} is not that of the delta's base")


def _parts(tensors: _Tensors, structure: nn.Module) -> tuple[set[str], dict[str, _Sparse]]:
    """Find which modules are written whole, and of which the entries of the weight that move are enough."""
    modules = dict(structure.named_modules(remove_duplicate=False))
    whole: set[str] = set()
    sparse: dict[str, _Sparse] = {}
    for names in tensors.groups:
        if all(tensors.moved(name) is None for name in names):
            continue
        owners = [name.rpartition(".")[0] for name in names]
        part = _sparse_part(tensors, names[0], modules) if len(names) == 1 else None
        if part is not None:
            sparse[owners[0]] = part
        else:
            whole.update(_replaceable(owner, modules) for owner in owners)
    return whole, sparse


def _sparse_part(tensors: _Tensors, name: str, modules: Mapping[str, nn.Module]) -> _Sparse | None:
    """Return the entries of a weight that move, if it is one that Super-Tuning can change."""
    owner, _, own = name.rpartition(".")
    module, parent = modules[owner], modules[owner.rpartition(".")[0]]
    moved, before = tensors.moved(name), tensors.before(name)
    assert moved is not None
    if type(module) is not nn.Linear or own != "weight" or not owner or reads_weights(parent):
        return None
    if before is None or before.kind != moved.kind or moved.positions is None:
        return None
    if not moved.values.is_floating_point() or moved.after.entries > MOST_ENTRIES:
        return None
    old, new = before.read()[moved.positions], moved.values
    values = (new - old).float()
    missed = int((bits(old + values.to(old.dtype)) != bits(new)).sum())
    size = sum(tensor.numel() * new.element_size() for tensor in module.state_dict(keep_vars=True).values())
    return _Sparse(moved.positions, values, moved.after.entries, missed, size)


def reads_weights(module: nn.Module) -> bool:
    """Tell whether a module reads weights of its Linears and does not call them, as torch's attention and encoder."""
    return type(module).__module__.startswith("torch.nn.") and not isinstance(module, _TRANSPARENT)


def _replaceable(owner: str, modules: Mapping[str, nn.Module]) -> str:
    """Return the innermost module around a tensor that PEFT can replace."""
    while owner and isinstance(modules[owner], _CONTAINERS):
        owner = owner.rpartition(".")[0]
    if not owner:
        raise DeltaError("a tensor that belongs to no module inside the model moved, which PEFT cannot replace")
    return owner


def _cheapest(
    whole: set[str], sparse: Mapping[str, _Sparse], structure: nn.Module
) -> tuple[set[str], dict[str, _Sparse]]:
    """Write the densest of the weights whole as well, as many as make the file the smallest.

    Raises:
        DeltaError: If none is left of which entries are written.
    """
    names = [name for name, _ in structure.named_modules(remove_duplicate=False)]
    whole = _as_peft_matches(whole, names)
    found = sorted((item for item in sparse.items() if not _is_in(item[0], whole)), key=lambda item: -item[1].density)
    if not found:
        raise DeltaError(
            "no Linear has a weight of which some entries moved and nothing else, so an adapter would be the whole "
            "model; write that with apply"
        )

    def size(cut: int) -> int:
        rest = [part for _, part in found[cut:]]
        sparsity = _sparsity([(len(part.positions), part.entries) for part in rest])
        filled = sum(_count(part.entries, sparsity) for part in rest)
        return sum(part.module_bytes for _, part in found[:cut]) + _PAIR * filled

    best = min(range(len(found)), key=size)
    whole = _as_peft_matches(whole | {name for name, _ in found[:best]}, names)
    return whole, {name: part for name, part in found[best:] if not _is_in(name, whole)}


def _as_peft_matches(whole: Iterable[str], names: Sequence[str]) -> set[str]:
    """Return the modules that PEFT replaces when it is told ``whole``: the outermost, and all whose name ends so."""
    found = set(whole)
    while True:
        ends = tuple(found)
        more = {name for name in names if name.endswith(ends)} if ends else set()
        outermost = {name for name in found | more if not _is_in(name, (found | more) - {name})}
        if outermost == found:
            return found
        found = outermost


def _is_in(name: str, modules: Collection[str]) -> bool:
    return any(name == module or name.startswith(module + ".") for module in modules)


def _count(entries: int, sparsity: float) -> int:
    """Return how many entries of a weight Super-Tuning stores."""
    return int(entries * (1 - sparsity))


def _sparsity(sizes: Sequence[tuple[int, int]]) -> float:
    """Return the largest sparsity at which of each weight at least as many entries are stored as move.

    Args:
        sizes: How many move of how many entries, for each weight.
    """
    sparsity = 1 - max(count / entries for count, entries in sizes)
    while any(_count(entries, sparsity) < count for count, entries in sizes):
        sparsity = math.nextafter(sparsity, 0)
    return sparsity


def _filled(part: _Sparse, count: int) -> tuple[Tensor, Tensor]:
    """Return positions in int32 and values, with zeros at other positions to make them ``count``."""
    free = torch.ones(part.entries, dtype=torch.bool, device="cpu")
    free[part.positions] = False
    more = free.nonzero().flatten()[: count - len(part.positions)]
    return torch.cat([part.positions, more]).int(), torch.cat([part.values, torch.zeros(len(more), device="cpu")])


def _names_in(structure: nn.Module, module: str) -> list[str]:
    return [f"{module}.{name}" for name in structure.get_submodule(module).state_dict(keep_vars=True)]


def _config(
    structure: nn.Module, base_name: str, targets: Sequence[str], whole: Sequence[str], sparsity: float
) -> dict[str, Any]:
    """Return the configuration of the adapter, which names all modules in full."""
    own = type(structure)
    known = {"base_model_class": own.__name__, "parent_library": own.__module__}
    return {
        "auto_mapping": known if own.__module__.startswith("transformers.") else None,
        "base_model_name_or_path": base_name or None,
        "inference_mode": True,
        "modules_to_save": list(whole) or None,
        "peft_type": PEFT_TYPE,
        "r": None,
        "save_precomputed_indices": True,
        "sparsity": sparsity,
        "target_modules": _as_targets(targets, structure),
        "task_type": None,
    }


def _as_targets(names: Sequence[str], structure: nn.Module) -> list[str] | str:
    """Return names of modules as PEFT takes them, a pattern where it would take other modules by the end of theirs."""
    ends = tuple(f".{name}" for name in names)
    others = {name for name, _ in structure.named_modules(remove_duplicate=False) if name.endswith(ends)} - {*names}
    return "|".join(map(re.escape, names)) if others else [*names]
