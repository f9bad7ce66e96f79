"""The kept entries of a weight: values that train in its place, and where in it they are."""

import weakref
from collections.abc import Callable, Iterator, MutableMapping
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook, register_optimizer_step_pre_hook
from torch.utils.weak import WeakTensorKeyDictionary

from fishexp.errors import FishexpError

GradientMethod: TypeAlias = Literal["sampled", "touched", "dense"]

MANY = 0.4  # with a larger share of its rows and of its columns touched than this, a matrix is not worth compressing

INDICES = ("positions", "row_starts", "column_of", "touched")

_OWNERS: MutableMapping[Tensor, Callable[[], "SparseParameter | None"]] = (
    WeakTensorKeyDictionary()
)  # values -> whose they are


class SparseParameter(nn.Module):
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
            where both are many, or the convolution is in groups.
        groups: Of the convolution.
        taps: Where each tap's entries begin, and the last one's end.
        way: How the gradient is found; None for :func:`fishexp.sparse.cost_model.choose`.
        found: The way of the last backward pass, None before the first.
    """

    weight: nn.Parameter
    values: nn.Parameter
    positions: Tensor
    row_starts: Tensor
    column_of: Tensor
    touched: Tensor | None
    by_column: bool
    groups: int
    taps: list[int]
    way: GradientMethod | None
    found: GradientMethod | None

    def __init__(self, weight: nn.Parameter, mask: Tensor, user: nn.Module | None, way: GradientMethod | None) -> None:
        """``user`` is the Linear, convolution or embedding, if any, whose weight it is."""
        super().__init__()
        index = torch.int32 if weight.numel() < 2**31 else torch.int64
        positions = mask.to(weight.device).flatten().nonzero().squeeze(1)
        self.groups = getattr(user, "groups", 1)
        if user is not None:
            positions, starts, columns = _matrices(positions, weight.shape, self.groups)
            touched, self.by_column = _touched(starts, columns, weight.shape[1])
            if self.groups > 1:
                touched = None  # the touched channels of a group are no convolution of their own
            self.taps = [0, *starts[:, -1].cumsum(0).tolist()]
            self.row_starts, self.column_of = starts.to(index), columns.to(index)
            self.touched = None if touched is None else touched.to(index)
        self.weight = weight
        self.values = nn.Parameter(weight.detach().take(positions))
        self.positions = positions.to(index)
        self.way = way
        self.found = None
        _OWNERS[self.values] = weakref.ref(self)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseParameter":
        """Moves the indices as well. They are no buffers, which others would broadcast, average or count."""
        super()._apply(fn, recurse)
        for name in INDICES:
            if isinstance(index := getattr(self, name, None), Tensor):
                setattr(self, name, fn(index))
        return self

    def __setstate__(self, state: dict[str, Any]) -> None:  # of a copy or a pickle
        super().__setstate__(state)
        _OWNERS[self.values] = weakref.ref(self)

    def gather(self, dense: Tensor) -> Tensor:
        """The kept entries of a tensor of the weight's shape."""
        dense = dense.to_dense() if dense.is_sparse else dense
        return dense.take(self.positions.long()).to(self.values.dtype)

    def read_(self) -> None:
        """``values`` from the weight."""
        self.values.detach().copy_(self.weight.detach().take(self.positions.long()))

    def write_(self) -> None:
        """``values`` into the weight."""
        with torch.no_grad():
            self.weight.put_(self.positions.long(), self.values)

    def _save_to_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """Nothing: the weight holds the values."""

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """The weight is loaded by now; the values are its."""
        self.read_()


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


def retire(kept: SparseParameter) -> None:
    """Another mask has taken the place of this one: no optimiser may move its values any more."""
    _OWNERS[kept.values] = _retired


def _retired() -> SparseParameter:
    raise FishexpError("an optimiser of an earlier mask cannot step; make one of the new sparse.parameters()")


def _owners(optimiser: Optimizer) -> Iterator[SparseParameter]:
    """Whose values the optimiser moves, of models that live."""
    for p in (p for group in optimiser.param_groups for p in group["params"]):
        owner = _OWNERS.get(p)
        if owner is not None and (kept := owner()) is not None:
            yield kept


# Hooks around each step, since no version counter tells of one (fused steps raise none). The weights are what counts:
# values loaded into them after `sparsify` are where the step starts from. They are registered here, where an unpickled
# model's values come from.


def _before_step(optimiser: Optimizer, *_: object) -> None:
    for kept in _owners(optimiser):
        if isinstance(optimiser, torch.optim.LBFGS):
            raise FishexpError(
                "LBFGS looks at the loss within a step, where the model has the old weights; take another"
            )
        kept.read_()


def _after_step(optimiser: Optimizer, *_: object) -> None:
    for kept in _owners(optimiser):
        kept.write_()


register_optimizer_step_pre_hook(_before_step)
register_optimizer_step_post_hook(_after_step)


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """The model's own parameters of numbers with a point by name, without the kept values that stand beside them."""
    return {
        name: p
        for name, p in model.named_parameters()
        if p not in _OWNERS and (p.is_floating_point() or p.is_complex())
    }
