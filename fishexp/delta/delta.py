"""The class of a delta: what training changed in a model, bound to the model that it was trained from."""

from collections.abc import Iterator
from pathlib import Path

import torch
from torch import Tensor, nn

from fishexp.delta.apply import Undo, apply_, fit
from fishexp.delta.content import Content
from fishexp.delta.diff import diff, whole
from fishexp.delta.file import read, save
from fishexp.delta.patches import Patch, patches
from fishexp.delta.sources import Source, Tensors, aligned, source


class Delta(Content):
    """Hold what training changed in a model: exact to the bit, and bound to the model that it was trained from."""

    @classmethod
    def load(cls, path: str | Path) -> "Delta":
        """Read a file without trusting it.

        Raises:
            DeltaError: If it is no delta, of another version, or damaged.
            OSError: If it cannot be read.
        """
        return cls.of(read(Path(path)))

    def save(self, path: str | Path) -> None:
        """Write a file, whole or not at all. Equal deltas give equal bytes, with the same version of zlib.

        Raises:
            OSError: If it cannot be written.
        """
        save(self, Path(path))

    @classmethod
    def diff(cls, before: Tensors | Source, after: Tensors | Source) -> "Delta":
        """Find what makes ``after`` of ``before``: any change, by the bits, in the smallest form.

        Args:
            before: A model, a dict of tensors, a .safetensors file, or the folder of a Hugging Face model, of whose
                tensors a few are read together, a piece at a time.
            after: Likewise. Its tensors have the types and shapes of ``before``, but for more rows; those that it has
                alone are stored whole, those that it lacks are named as removed. Names may differ in a prefix of all
                and in what ``torch.compile`` and other wrappers put into them.

        Raises:
            DeltaError: If types or shapes differ otherwise, or a file is damaged.
            OSError: If a file cannot be read.
        """
        return cls.of(diff(*aligned(source(before), source(after))))

    @classmethod
    def whole(cls, model: Tensors) -> "Delta":
        """Take all of ``model``, in a delta for any model of its names, types and shapes."""
        found = source(model)
        kinds = {name: tensor.kind for name, tensor in found.tensors.items()}
        return cls(kinds, {name: whole(tensor) for name, tensor in found.tensors.items()}, tied=found.tied)

    def apply_(self, target: nn.Module | dict[str, Tensor], strict: bool = True) -> Undo:
        """Make the base the result, in place: all of it, or nothing if there is an error.

        Args:
            target: The base: a model, sparsified, compiled, wrapped or not, on any device, or a dict of tensors. A
                model has the new tensors and rows of the delta already, of any values; a dict gets them.
            strict: Check that all tensors are those of the base, and that the result is the delta's. If false, only
                names, types and shapes have to fit; kept entries that did not move stay as ``target`` has them.

        Returns:
            The original values, to go back.

        Raises:
            DeltaError: If ``target`` is not the base; the message names the first difference.
        """
        return apply_(self, target, strict)

    def mask(self, model: nn.Module) -> dict[str, Tensor]:
        """Return which entries the delta keeps: name -> bool tensor of the parameter's shape, on its device.

        Raises:
            DeltaError: If names, types or shapes of ``model`` are not those of the base.
        """
        found = {}
        for target in fit(self, model).tensors:
            tensor = target.tensor
            if isinstance(tensor, nn.Parameter) and (tensor.is_floating_point() or tensor.is_complex()):
                mask = torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)
                if target.moved is not None:
                    kept = target.moved.kept
                    mask[slice(None) if kept is None else kept.to(tensor.device)] = True
                found[target.names[0]] = mask.view(tensor.shape)
        return found

    @classmethod
    def of(cls, content: Content) -> "Delta":
        """Make a delta of its parts."""
        return cls(content.base, content.moved, content.removed, content.tied)

    @property
    def names(self) -> tuple[str, ...]:
        """Name the tensors that have kept entries."""
        return tuple(self.moved)

    @property
    def kept(self) -> int:
        """Count the kept entries: those with new values, and those that are known to have the base's still."""
        return sum(moved.count for moved in self.moved.values())

    @property
    def changes(self) -> int:
        """Count the new values."""
        return sum(len(moved.values) for moved in self.moved.values())

    def positions(self, name: str) -> Tensor:
        """Return where in the flattened tensor the new values stand: (moved,) int64, ascending."""
        return self.moved[name].where()

    def values(self, name: str) -> Tensor:
        """Return the new values, (moved,) in the tensor's type."""
        return self.moved[name].values

    def patches(self) -> Iterator[Patch]:
        """Yield the new values tensor by tensor, as serving stacks take sparse weight updates; removed ones have none.

        Raises:
            DeltaError: If a tensor has too many entries for int32.
        """
        return patches(self)

    def __repr__(self) -> str:
        total = sum(tensor.entries for tensor in self.result.values())
        return (
            f"Delta({self.kept:,} of {total:,} entries in {len(self.moved)} of {len(self.result)} tensors, "
            f"{self.before[:8]} -> {self.after[:8]})"
        )
