"""Read an adapter of PEFT's Super-Tuning into a delta, with what its merge would make of the base, to the bit."""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from fishexp.delta import checkpoint
from fishexp.delta.delta import Delta
from fishexp.delta.names import match
from fishexp.delta.peft_export import CONFIG, INDICES, MODEL, PEFT_TYPE, VALUES, WEIGHTS
from fishexp.delta.sources import LoadedTensor, Source, TensorReader, Tensors, source
from fishexp.errors import DeltaError

LONGEST = 10_000_000  # bytes of a configuration at most
_TUNER = "supertuning_"  # what the names of a module's own tensors begin with


def read_adapter(folder: str | Path, base: Tensors) -> Delta:
    """Make a delta of an adapter of Super-Tuning, with what PEFT's merge makes of the base, to the bit.

    Args:
        folder: Of the adapter; it is not trusted.
        base: The model that it is for, in any form that :meth:`Delta.diff` takes.

    Raises:
        DeltaError: If it is no such adapter, or for another base, or damaged.
        OSError: If a file cannot be read.
    """
    folder = Path(folder)
    _check_config(folder)
    if not (folder / WEIGHTS).exists():
        raise DeltaError(f"{folder} has no {WEIGHTS}; save the adapter with safetensors")
    stored = {name.removeprefix(MODEL): tensor for name, tensor in checkpoint.read(folder / WEIGHTS).tensors.items()}
    before = source(base)
    names = [*before.tensors, *before.tied]
    pairs, whole = _split(stored)
    alike = match(names, [*(f"{module}.weight" for module in pairs), *whole])
    back = {theirs: own for own, theirs in alike.names.items()}
    after: dict[str, TensorReader] = {name: before.tensor(name) for name in names}
    for name, tensor in whole.items():
        after[back.get(name, alike.back(name))] = LoadedTensor(tensor.read().view(tensor.shape))
    for module, pair in pairs.items():
        own = back.get(name := f"{module}.weight")
        if own is None:
            raise DeltaError(f"{folder} is for another base: {name} is missing here")
        after[own] = LoadedTensor(_added(f"{folder}: {module}", after[own], pair))
    return Delta.diff(before, Source(after))


def _check_config(folder: Path) -> None:
    """Refuse what is no adapter, and one of another kind."""
    path = folder / CONFIG
    if not path.is_file():
        raise DeltaError(f"{folder} is no adapter: it has no {CONFIG}")
    if path.stat().st_size > LONGEST:
        raise DeltaError(f"{path} has more than {LONGEST:,} bytes; it is no configuration")
    config = checkpoint.parse(path.read_bytes(), path)
    kind = "SUPERTUNING with a low-rank part" if config.get("r") else config.get("peft_type")
    if kind != PEFT_TYPE:
        raise DeltaError(
            f"{folder} is an adapter of the kind {str(kind)[:40]}, not {PEFT_TYPE}; merge it with PEFT "
            "(merge_and_unload, save_pretrained) and make the delta with diff"
        )


def _split(
    stored: Mapping[str, checkpoint.StoredTensor],
) -> tuple[dict[str, dict[str, checkpoint.StoredTensor]], dict[str, checkpoint.StoredTensor]]:
    """Return the positions and values of each module by their kind, and the tensors that are stored whole."""
    pairs: dict[str, dict[str, checkpoint.StoredTensor]] = defaultdict(dict)
    whole = {}
    for name, tensor in stored.items():
        module, _, last = name.rpartition(".")
        if last.startswith(_TUNER):
            pairs[module][last] = tensor
        else:
            whole[name] = tensor
    return pairs, whole


def _added(what: str, base: TensorReader, pair: Mapping[str, checkpoint.StoredTensor]) -> Tensor:
    """Return a weight with the values added, computed as PEFT does.

    Raises:
        DeltaError: If there are no positions, or they do not suit the weight or the values.
    """
    if pair.keys() != {INDICES, VALUES}:
        raise DeltaError(f"{what} has no positions or no values; save the adapter with save_precomputed_indices=True")
    indices, values = pair[INDICES], pair[VALUES]
    suit = indices.dtype in (torch.int32, torch.int64) and values.dtype.is_floating_point
    if not suit or len(indices.shape) != 1 or indices.shape != values.shape:
        raise DeltaError(f"{what} is damaged: {indices.kind} are no positions of {values.kind} values")
    positions, weight = indices.read().long(), base.read()
    if len(positions) and not 0 <= int(positions.min()) <= int(positions.max()) < len(weight):
        raise DeltaError(f"{what} is for another base: a position is not among the {len(weight):,} entries here")
    if not weight.is_floating_point():
        raise DeltaError(f"{what} is for another base: its weight here is {base.kind}")
    return weight.scatter_add_(0, positions, values.read().to(weight.dtype)).view(base.kind.shape)
