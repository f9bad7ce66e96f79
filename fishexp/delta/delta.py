"""What training changed in a model, bound to the model that it was trained from."""

from pathlib import Path

import torch
from torch import Tensor, nn

from fishexp.delta import checkpoint
from fishexp.delta.compare import compare
from fishexp.delta.content import Content
from fishexp.delta.difference import difference
from fishexp.delta.file import read, save
from fishexp.delta.fit import fit
from fishexp.delta.moved import whole
from fishexp.delta.tensors import Tensors, source
from fishexp.delta.undo import Undo, apply_


class Delta(Content):
    """What training changed in a model: exact to the bit, and bound to the model that it was trained from."""

    @classmethod
    def load(cls, path: str | Path) -> "Delta":
        """Read a file without trusting it.

        Raises:
            DeltaError: If it is no delta, of another version, or damaged.
            OSError: If it cannot be read.
        """
        return cls.of(read(Path(path)))

    def save(self, path: str | Path) -> None:
        """Write a file, whole or not at all. Equal deltas give equal bytes.

        Raises:
            OSError: If it cannot be written.
        """
        save(self, Path(path))

    @classmethod
    def diff(cls, before: Tensors, after: Tensors) -> "Delta":
        """What makes ``after`` of ``before``: any change, by the bits, in the smallest form.

        Args:
            before: A model, a dict of tensors, a .safetensors file, or the folder of a Hugging Face model, whose
                tensors are read a few at a time; of two files, a piece at a time.
            after: Likewise. Its tensors have the types and shapes of ``before``, but for more rows; those that it has
                alone are stored whole, those that it lacks are named as removed.

        Raises:
            DeltaError: If types or shapes differ otherwise, or a file is damaged.
            OSError: If a file cannot be read.
        """
        if isinstance(before, str | Path) and isinstance(after, str | Path):
            return cls.of(compare(checkpoint.read(Path(before)), checkpoint.read(Path(after))))
        return cls.of(difference(source(before), source(after)))

    @classmethod
    def whole(cls, model: Tensors) -> "Delta":
        """All of ``model``, in a delta for any model of its names, types and shapes."""
        found = source(model)
        return cls(found.kinds, {name: whole(found.read(name)) for name in found.kinds}, tied=found.tied)

    def apply_(self, target: nn.Module | dict[str, Tensor], strict: bool = True) -> Undo:
        """Make the base the result, in place: all of it, or nothing if there is an error.

        Args:
            target: The base: a model, sparsified or not, on any device, or a dict of tensors. A model has the new
                tensors and rows of the delta already, of any values; a dict gets them.
            strict: Check that all tensors are those of the base, and that the result is the delta's. If false, only
                names, types and shapes have to fit.

        Returns:
            The original values, to go back.

        Raises:
            DeltaError: If ``target`` is not the base; the message names the first difference.
        """
        return apply_(self, target, strict)

    def mask(self, model: nn.Module) -> dict[str, Tensor]:
        """Where the delta has values: name -> bool tensor of the parameter's shape, on its device.

        Raises:
            DeltaError: If names, types or shapes of ``model`` are not those of the base.
        """
        found = {}
        for place in fit(self, model).places:
            tensor = place.tensor
            if isinstance(tensor, nn.Parameter) and (tensor.is_floating_point() or tensor.is_complex()):
                mask = torch.zeros(tensor.numel(), dtype=torch.bool, device=tensor.device)
                if place.moved is not None:
                    mask[place.moved.where().to(tensor.device)] = True
                found[place.names[0]] = mask.view(tensor.shape)
        return found

    @classmethod
    def of(cls, content: Content) -> "Delta":
        """Of what has been found out elsewhere."""
        return cls(content.base, content.moved, content.removed, content.tied)

    @property
    def names(self) -> tuple[str, ...]:
        """The tensors that have new values."""
        return tuple(self.moved)

    @property
    def kept(self) -> int:
        """Number of new values."""
        return sum(len(moved.values) for moved in self.moved.values())

    def positions(self, name: str) -> Tensor:
        """(k,) int64, ascending: where in the flattened tensor the new values stand."""
        return self.moved[name].where()

    def values(self, name: str) -> Tensor:
        """(k,) the new values, in the tensor's type."""
        return self.moved[name].values

    def __repr__(self) -> str:
        total = sum(one.entries for one in self.result.values())
        return (
            f"Delta({self.kept:,} of {total:,} entries in {len(self.moved)} of {len(self.result)} tensors, "
            f"{self.before[:8]} -> {self.after[:8]})"
        )
