"""The kept entries of a weight: values that train in its place, and where in it they are."""

import weakref
from collections.abc import Iterable, Iterator, MutableMapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.weak import WeakTensorKeyDictionary

Way: TypeAlias = Literal["sampled", "touched", "dense"]

MANY = 0.4  # with a larger share of its rows and of its columns touched than this, a matrix is not worth compressing

_OWNERS: MutableMapping[Tensor, "weakref.ref[Kept]"] = WeakTensorKeyDictionary()  # values -> whose they are


class Kept(nn.Module):
    """The kept entries of one weight: ``values``, a parameter that trains in the weight's place, and their positions.

    It sits beside the weight in the module that owns it and goes where the model goes: to another device or type, into
    a copy or a pickle, but not into ``state_dict()``, which has the weight itself.

    Attributes:
        weight: The weight, shared with its module.
        values: (kept,) the kept entries, in the weight's type.
        positions: (kept,) their places in the flattened weight: ascending, but those of a convolution one tap after
            the other.
        row_starts, column_of: (taps, outputs + 1) and (kept,): the kept entries of a Linear's, convolution's or
            embedding's weight as sparse matrices of outputs by inputs in CSR form, one for each tap. A Linear has one
            tap, a 3x3 convolution nine.
        touched: The inputs that hold kept entries, if ``by_column``, or the outputs: whichever are the fewer; None
            where both are many.
        taps: Where each tap's entries begin, and the last one's end.
        way: How the gradient is found; None for :func:`fishexp.rule.choose`.
        found: The way of the last backward pass, None before the first.
    """

    weight: nn.Parameter
    values: nn.Parameter
    positions: Tensor
    row_starts: Tensor
    column_of: Tensor
    touched: Tensor | None
    by_column: bool
    taps: list[int]
    way: Way | None
    found: Way | None

    def __init__(self, weight: nn.Parameter, mask: Tensor, user: nn.Module | None, way: Way | None) -> None:
        """``user`` is the Linear, convolution or embedding, if any, whose weight it is."""
        super().__init__()
        index = torch.int32 if weight.numel() < 2**31 else torch.int64
        positions = mask.to(weight.device).flatten().nonzero().squeeze(1)
        if user is not None:
            positions, starts, columns = _matrices(positions, weight.shape, getattr(user, "groups", 1))
            touched, self.by_column = _touched(starts, columns, weight.shape[1] * getattr(user, "groups", 1))
            self.taps = [0, *starts[:, -1].cumsum(0).tolist()]
            self.register_buffer("row_starts", starts.to(index), persistent=False)
            self.register_buffer("column_of", columns.to(index), persistent=False)
            self.register_buffer("touched", None if touched is None else touched.to(index), persistent=False)
        self.weight = weight
        self.values = nn.Parameter(weight.detach().take(positions))
        self.register_buffer("positions", positions.to(index), persistent=False)
        self.way = way
        self.found = None
        _OWNERS[self.values] = weakref.ref(self)

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy or a pickle
        super().__setstate__(state)
        _OWNERS[self.values] = weakref.ref(self)

    def gather(self, dense: Tensor) -> Tensor:
        """The kept entries of a tensor of the weight's shape."""
        dense = dense.to_dense() if dense.is_sparse else dense
        return dense.take(self.positions.long()).to(self.values.dtype)

    def read_(self) -> None:
        """``values`` from the weight."""
        self.values.data.copy_(self.weight.detach().take(self.positions.long()))

    def write_(self) -> None:
        """``values`` into the weight, whose version counter does not move: a graph may hold it."""
        self.weight.data.put_(self.positions.long(), self.values.detach())

    def _save_to_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing: the weight holds the values."""

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing: the weight is loaded, and the next step starts from it."""


def _matrices(positions: Tensor, shape: torch.Size, groups: int) -> tuple[Tensor, Tensor, Tensor]:
    """The positions tap by tap, where in each tap each output's entries begin, and the input of each."""
    outputs, inputs, taps = shape[0], shape[1], shape[2:].numel()
    row, tap = positions // (inputs * taps), positions % taps
    column = positions // taps % inputs + row // (outputs // groups) * inputs  # among the inputs of all groups
    line = tap * outputs + row
    order = line.argsort(stable=True)
    counts = torch.bincount(line, minlength=taps * outputs).view(taps, outputs)
    return positions[order], F.pad(counts.cumsum(1), (1, 0)), column[order]


def _touched(starts: Tensor, columns: Tensor, inputs: int) -> tuple[Tensor | None, bool]:
    """The inputs (true) or outputs (false) with kept entries, whichever are the smaller share; None if it is large."""
    rows, used = starts.diff(dim=1).any(0).nonzero().squeeze(1), columns.unique()
    shares = len(rows) / (starts.shape[1] - 1), len(used) / inputs
    by_column = shares[1] <= shares[0]
    return (None if min(shares) > MANY else used if by_column else rows), by_column


def owners(parameters: Iterable[Tensor]) -> Iterator[Kept]:
    """Those of ``parameters`` that are kept values of a living model."""
    for reference in map(_OWNERS.get, parameters):
        kept = None if reference is None else reference()
        if kept is not None:
            yield kept


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters by name, without the kept values that stand beside them."""
    return {name: p for name, p in model.named_parameters() if p not in _OWNERS}
