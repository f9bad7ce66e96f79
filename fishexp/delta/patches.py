"""Sparse patches: new values by position, as serving stacks take them for a model that they have in memory."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

from torch import Tensor

from fishexp.delta.checkpoint import write_tensors
from fishexp.delta.content import Content
from fishexp.errors import DeltaError
from fishexp.system.atomic import replacing

MOST_ENTRIES = 2**31  # of a tensor, so that int32 can count them
SHAPES = "full_shapes"  # key of a file's metadata


class Patch(NamedTuple):
    """Hold the new values of a tensor.

    Attributes:
        name: Of the tensor, in the result of the delta.
        indices: (moved,) int32, ascending: where in the flattened tensor the values belong.
        values: (moved,) in the tensor's type: they replace what stands there, nothing is added.
        full_shape: Of the tensor.
    """

    name: str
    indices: Tensor
    values: Tensor
    full_shape: tuple[int, ...]


def patches(delta: Content) -> Iterator[Patch]:
    """Yield the new values of a delta, tensor by tensor; those that it removes have none.

    Raises:
        DeltaError: If a tensor has too many entries for int32.
    """
    for name, moved in delta.moved.items():
        if moved.after.entries > MOST_ENTRIES:
            raise DeltaError(f"{name} has {moved.after.entries:,} entries, more than int32 positions can name")
        if len(moved.values):
            yield Patch(name, moved.where().int(), moved.values.contiguous(), moved.shape)


def write_patches(delta: Content, path: Path) -> None:
    """Write a safetensors file with ``NAME.indices`` and ``NAME.values``, and the full shapes as JSON in its metadata.

    Raises:
        DeltaError: If a tensor has too many entries for int32.
        OSError: If it cannot be written.
    """
    found = list(patches(delta))
    tensors = {f"{patch.name}.indices": patch.indices for patch in found}
    tensors |= {f"{patch.name}.values": patch.values for patch in found}
    shapes = json.dumps({patch.name: patch.full_shape for patch in found})
    with replacing(path) as file:
        write_tensors(tensors, {"format": "pt", SHAPES: shapes}, file)
