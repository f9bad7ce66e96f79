"""The kept entries of a weight: values that train in its place, and where in it they are."""

import warnings
from collections.abc import Callable, Iterator
from typing import Any, Literal, NoReturn, TypeAlias

import torch
from torch import Tensor, nn

from fishexp.errors import FishexpError
from fishexp.sparse.costs import Costs
from fishexp.sparse.entry_memory import EntryMemory, entries_at
from fishexp.sparse.gradient_hooks import add_alarm, has_alarm, remove_alarm
from fishexp.sparse.layout import Layout, csr, submatrix_lines

GradientMethod: TypeAlias = Literal["sddmm", "submatrix", "dense"]

# warning of a read
_BOTH_CHANGED = (
    "both the kept entries of a weight and the weight itself were written since it was last read; the kept entries' "
    "values count. Write either; the weight through its module, as in module.weight"
)

# attributes of a SparseParameter that are index tensors, where it has them
INDICES = ("positions", "crow_indices", "col_indices", "submatrix_lines", "_submatrix_places")


class SparseParameter(nn.Module):
    """Hold the kept entries of a weight: ``values``, a parameter that trains in its place, and their positions.

    The values are the truth: whoever writes them, an optimiser of any kind or not, the weight has them from the next
    time that it is read through its module (:meth:`reconcile`). It sits beside the weight in the module that owns it
    and goes where the model goes: to another device or type, into a copy or a pickle, but not into ``state_dict()``,
    which has the weight itself.

    The model's own parameter is set aside (``original``) and a frozen one that shares its memory takes its place in the
    modules (``weight``). So whoever reaches the original in another way than by its name in a module, through a list,
    a closure, a view or whatever was made before, computes with the right numbers but cannot train: autograd brings a
    gradient to the original, which is refused then and there (:meth:`arm`). That sees every such use in every step and
    costs nothing, where a comparison of gradients would see those of one step only and cost a dense backward pass.

    It is no :mod:`torch.nn.utils.parametrize`: that would copy the whole weight in each forward pass and form its whole
    gradient in each backward pass, and ``state_dict()`` would have other names.

    Attributes:
        name: The weight's name in the model, for errors.
        shape: The weight's, for which the positions hold.
        weight: The weight, shared with its module, which has it registered.
        original: The parameter that the model had in its place, with the same memory.
        values: (kept,) the kept entries, in the weight's type.
        synced: (kept,) the values that values and weight had when they last agreed.
        positions: (kept,) their places in the flattened weight: ascending, but those of a convolution kernel offset by
            kernel offset.
        crow_indices, col_indices: (kernel offsets, outputs + 1) and (kept,): the kept entries of a weight with a layout
            as sparse matrices of outputs by inputs in CSR form, one for each kernel offset. A Linear has one offset, a
            3x3 convolution nine.
        submatrix_lines: The inputs that hold kept entries, if ``by_column``, or the outputs: whichever are the fewer;
            None where both are many, or the convolution is in groups.
        groups: Groups of the convolution, 1 for all other layers.
        offset_starts: Where each kernel offset's entries begin, and the last one's end.
        way: The method that forms the gradient; None for :func:`fishexp.sparse.cost_model.choose`.
        costs: By which that function chooses.
        chosen: The methods that it chose, by type of the product's factors.
        last_method: The method of the last backward pass, None before the first.
        watched: Whether the weight requires a gradient only to find who uses it past its module.
        users: Number of modules that have the weight: more than one if it is tied.
        together: The :class:`~fishexp.sparse.together.Together` that reconciles it, in whose passes no use has to look.
    """

    name: str
    shape: torch.Size
    weight: nn.Parameter
    original: nn.Parameter
    values: nn.Parameter
    synced: Tensor
    positions: Tensor
    crow_indices: Tensor
    col_indices: Tensor
    submatrix_lines: Tensor | None
    by_column: bool
    groups: int
    offset_starts: list[int]
    way: GradientMethod | None
    costs: Costs
    chosen: dict[torch.dtype, GradientMethod]
    last_method: GradientMethod | None
    watched: bool
    users: int
    _memory: EntryMemory | None
    together: Any

    def __init__(
        self,
        name: str,
        weight: nn.Parameter,
        positions: Tensor,
        layout: Layout | None,
        way: GradientMethod | None,
        costs: Costs,
    ) -> None:
        """Take the values from ``weight``.

        Args:
            name: Of the weight in the model.
            weight: The model's own parameter.
            positions: (kept,) ascending places in the flattened weight.
            layout: None if no layer of a registered kind has the weight.
        """
        super().__init__()
        index = torch.int32 if weight.numel() < 2**31 else torch.int64
        self.groups = 1
        if layout is not None:
            self.groups = layout.groups
            order, starts, columns = csr(layout)
            lines, self.by_column = submatrix_lines(starts, columns, layout)
            positions = positions[order]
            self.offset_starts = [0, *starts[:, -1].cumsum(0).tolist()]
            self.crow_indices, self.col_indices = starts.to(index), columns.to(index)
            self.submatrix_lines = None if lines is None else lines.to(index)
        self._submatrix_places: Tensor | None = None
        self.name, self.shape = name, weight.shape
        self.stand_in_for(weight)
        self.values = nn.Parameter(weight.detach().take(positions))
        self.synced = self.values.detach().clone()
        self.positions = positions.to(index)
        self.way, self.costs, self.chosen = way, costs, {}
        self.last_method = None
        self.watched = False
        self.users = 0
        self._versions = self._read_versions()
        self._memory = None
        self.together = None

    def forward(self, *inputs: Any, **keywords: Any) -> NoReturn:
        """Refuse to be called, as by a module that calls all of its children."""
        raise FishexpError(f"{self.name}, partly kept, is called as a layer; keep it whole, or call its layers by name")

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> "SparseParameter":
        """Move the other tensors as well. They are no buffers, which others would broadcast, average or count."""
        self.reconcile()
        super()._apply(fn, recurse)
        moved = fn(self.weight.detach())
        if self.weight.is_meta == moved.is_meta:
            self.weight.data = moved  # the module, which is next, finds it moved; else it makes a new parameter
        self._share_memory()
        self._memory = None
        self.synced = fn(self.synced)
        for name in INDICES:
            if isinstance(tensor := getattr(self, name, None), Tensor):
                if tensor.is_meta and not self.values.is_meta:
                    raise FishexpError(f"{self.name} lost its kept entries on the meta device; call sparsify again")
                setattr(self, name, tensor.to(self.values.device))  # by ``fn`` to_empty() would lose them
        return self

    def __getstate__(self) -> dict[str, Any]:
        """Leave out views, which a copy would have as tensors of their own."""
        return self.__dict__ | {"_memory": None, "together": None}

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Become a copy, whose two parameters were copied one by one."""
        super().__setstate__(state)
        self._share_memory()
        self.arm()

    def stand_in_for(self, weight: nn.Parameter) -> None:
        """Set ``weight`` aside as the original; a frozen parameter that shares its memory becomes the weight."""
        twin = nn.Parameter(weight.detach(), requires_grad=False)
        vars(twin).update(vars(weight))  # what others have marked it with
        self._hold(weight=twin, original=weight)

    def _hold(self, **parameters: nn.Parameter) -> None:
        """Have the parameters as attributes, unregistered: the model has the weight once, by its own name."""
        self.__dict__.update(parameters)

    def _share_memory(self) -> None:
        """Let the original have the memory that the weight was given, or be a new one where torch cannot do that."""
        if self.original.is_meta == self.weight.is_meta:
            self.original.data = self.weight.data
        else:
            self._hold(original=nn.Parameter(self.weight.detach()))

    def arm(self) -> None:
        """Refuse gradients of original and weight from here on. The weight can have them in the first pass only."""
        for parameter in (self.original, self.weight):
            add_alarm(self.name, parameter)
        self.weight.requires_grad_(False)

    def disarm(self) -> nn.Parameter:
        """Undo :meth:`arm`; return the original, with what the weight is now."""
        for parameter in (self.original, self.weight):
            remove_alarm(parameter)
        self._share_memory()
        return self.original

    def replace(self, weight: nn.Parameter) -> None:
        """Let another parameter be the weight; the one before is refused where another module may still have it."""
        remove_alarm(self.original)
        if self.users == 1:
            remove_alarm(self.weight)
        self.stand_in_for(weight)
        self.arm()

    def gather(self, dense: Tensor) -> Tensor:
        """Return the kept entries of a tensor of the weight's shape."""
        dense = dense.to_dense() if dense.is_sparse else dense
        if self._memory is not None and self._memory.is_laid_out_as(dense):
            entries = self._memory.gather(dense)
        else:
            entries = entries_at(dense, self.positions)
        return entries.to(self._parameters["values"].dtype)  # type: ignore[union-attr]  # faster than by __getattr__

    def keeps_whole_lines(self) -> bool:
        """Tell whether all entries are kept of the lines that hold any."""
        if self.submatrix_lines is None:
            return False
        entries = self.shape.numel() // self.shape[int(self.by_column)]  # of a line
        return len(self.positions) == len(self.submatrix_lines) * entries

    def submatrix_places(self) -> Tensor:
        """Return where the kept entries stand in the flattened product of the lines that hold any, (kept,)."""
        if self._submatrix_places is None:
            assert self.submatrix_lines is not None
            outputs, inputs = self.weight.shape[:2]
            line = torch.repeat_interleave(self.crow_indices.diff(dim=1).flatten()).long()  # offset * outputs + row
            row, offset, column = line % outputs, line // outputs, self.col_indices.long()
            lines = self.submatrix_lines.long()
            if self.by_column:
                column, inputs = torch.searchsorted(lines, column), len(lines)
            else:
                row = torch.searchsorted(lines, row)
            places = (row * inputs + column) * len(self.crow_indices) + offset
            self._submatrix_places = places.to(self.positions.dtype)
        return self._submatrix_places

    def reconcile(self, *, warns: bool = True) -> None:
        """Write the values into the weight if they have changed since the last time, else take those of the weight.

        Where both have changed, the values count. What has changed is found by looking, as version counters do not tell
        of fused optimisers, or of what writes to ``.data``. Where the weight is written, its counter is raised only if
        something has changed: a backward pass is then refused if the weight is no longer that of its forward pass.
        ``warns`` of both having changed, if that can be seen without waiting.
        """
        if self.weight.is_meta or self.values.is_meta:
            return  # there are no numbers
        if waits_for(self.weight):
            self._reconcile_without_waiting()
            return
        memory = self.entry_memory()
        weight_changed = not torch.equal(memory.read(), memory.synced)
        if not torch.equal(memory.values, memory.synced):
            if weight_changed and warns:
                warnings.warn(_BOTH_CHANGED, stacklevel=2)
            memory.write(memory.values)
            memory.synced.copy_(memory.values)
        elif weight_changed:
            self.take_weight()

    def _reconcile_without_waiting(self) -> None:
        """Do the same on a device whose answers the host would have to wait for: the weight is always written.

        Its version counter is raised if another counter has been.
        """
        memory = self.entry_memory()
        changed = (memory.values != memory.synced).any()
        now = torch.where(changed, memory.values, memory.read())
        memory.write(now, unnoticed=self._read_versions() == self._versions)
        memory.values.data.copy_(now)
        memory.synced.copy_(now)
        self.note_counters()

    def is_fresh(self) -> bool:
        """Tell whether the weight was reconciled as the model's forward pass began, and no counter was raised since."""
        return self.together is not None and self.together.depth > 0 and not self.counters_changed()

    def counters_changed(self) -> bool:
        """Tell whether a version counter is not what it was, or there is none."""
        versions = self._read_versions()
        return versions is None or versions != self._versions

    def note_counters(self) -> None:
        """Take the version counters as those of values and weight that agree."""
        self._versions = self._read_versions()

    def reconcile_for_inference(self) -> None:
        """Do the same as far as a use without gradients needs it, without a look at the entries in the weight.

        Where no counter was raised and the values are as synced, nothing is to be written into the weight, whatever it
        holds. Values that should follow a weight written to through ``.data``, which no counter tells, are not used
        before the next pass with gradients.
        """
        versions = self._read_versions()
        if versions is not None and versions == self._versions and not waits_for(self.weight):
            memory = self.entry_memory()
            if torch.equal(memory.values, memory.synced):
                return
        self.reconcile()
        self.note_counters()

    def _read_versions(self) -> tuple[int, int] | None:
        """Return the version counters, which tensors made in inference mode have not."""
        try:
            return self._parameters["values"]._version, self.weight._version  # type: ignore[union-attr]
        except RuntimeError:
            return None

    def take_weight(self) -> None:
        """Take the values from the weight, whatever they were."""
        if self.weight.is_meta or self.values.is_meta:
            return
        memory = self.entry_memory()
        now = memory.read()
        memory.values.copy_(now)
        memory.synced.copy_(now)

    def entry_memory(self) -> EntryMemory:
        """Return the views of weight and values, made anew if their memory is another.

        Raises:
            FishexpError: If the weight was given numbers of another type.
        """
        tensors = self.weight, self.values, self.synced
        if self._memory is None or torch.compiler.is_compiling() or not self._memory.is_of(*tensors):
            if self.weight.dtype != self.values.dtype:
                raise FishexpError(
                    f"{self.name} is {self.weight.dtype}, its kept entries {self.values.dtype}; change types of the "
                    "whole model, as by model.to()"
                )
            self._memory = EntryMemory(*tensors, self.positions)
        return self._memory

    def _save_to_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """Save nothing: the weight, which has been saved by reference, holds the values from here on."""
        self.reconcile()

    def _load_from_state_dict(self, *arguments: Any, **keywords: Any) -> None:
        """Take the values from the weight, which was brought up to date and then loaded, if the state has it."""
        self.take_weight()


def waits_for(tensor: Tensor) -> bool:
    """Tell whether the host would have to wait for the tensor's device to look at a number of it."""
    return tensor.device.type != "cpu"


def kept_entries(module: Any, name: str) -> Any:
    """Bring the module's weight ``name`` up to date; return its SparseParameter, None if it is not partly kept.

    The weight may have been assigned anew; it is then that weight whose entries train.

    Raises:
        FishexpError: If the module has no parameter of the weight's shape any more.
    """
    kept = module._modules.get(f"{name}_kept")
    if kept is not None:
        check_weight(module, name, kept)
        kept.reconcile()
    return kept


def check_weight(module: Any, name: str, kept: SparseParameter) -> None:
    """Let the parameter that the module has by now become the weight, if it can."""
    weight = module._parameters.get(name)
    if weight is kept.weight and weight.shape == kept.shape:
        return
    if not isinstance(weight, nn.Parameter) or type(weight.data) is not Tensor or weight.shape != kept.shape:
        raise FishexpError(
            f"{kept.name} is partly kept and was replaced by {describe(weight)}, which has no such entries; "
            "call sparse.restore() before you replace or resize it"
        )
    same_memory = weight.data_ptr() == kept.weight.data_ptr() and weight.stride() == kept.weight.stride()
    if weight is not kept.original and not (kept.users > 1 and same_memory):
        if has_alarm(weight):
            raise FishexpError(
                f"{kept.name} is partly kept and was tied to another such weight, or untied from one; call "
                "sparse.restore() before you tie or untie weights"
            )
        kept.replace(weight)
    module._parameters[name] = kept.weight


def describe(tensor: Any) -> str:
    """Name the type and shape of what stands in a weight's place."""
    return f"a {type(tensor).__name__} of shape {tuple(tensor.shape)}" if isinstance(tensor, Tensor) else "nothing"


def weights(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the model's own floating-point and complex parameters by name, up to date, without the kept values."""
    values = {kept.values for kept in _up_to_date(model)}
    return {
        name: p for name, p in model.named_parameters() if p not in values and (p.is_floating_point() or p.is_complex())
    }


def _up_to_date(model: nn.Module) -> Iterator[SparseParameter]:
    """Bring all partly kept weights of a model up to date; yield their kept entries."""
    for module in model.modules():
        for name, child in module._modules.items():
            if isinstance(child, SparseParameter):
                yield kept_entries(module, name.removesuffix("_kept"))
