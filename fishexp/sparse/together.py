"""On a GPU: bring all partly kept weights of a model up to date at once, before each of its forward passes."""

import logging
from typing import Any

import torch
from torch import nn

from fishexp.sparse.entry_memory import EntryMemory
from fishexp.sparse.modules import remove_pass_hooks
from fishexp.sparse.parameter import SparseParameter

logger = logging.getLogger(__name__)

# attribute of a sparsified module that holds its Together
_TOGETHER = "_fishexp_together"


class Together:
    """Reconcile the partly kept weights of a model in a few kernels, where one weight alone takes nine.

    A GPU does each of these in microseconds, and the host takes longer to ask for them. In a forward pass of the model
    its weights are as they were when it began, unless a version counter tells of a change; what a module writes through
    ``.data`` in the middle of a pass, the kept values have from the next pass on.
    """

    def __init__(self) -> None:
        self.depth = 0  # of the model's forward passes that are going on
        self._kept: list[SparseParameter] | None = None
        self._memories: list[EntryMemory] = []
        self._tables: list[Any] = []
        self._refused = False

    def __reduce__(self) -> tuple[type, tuple[()]]:
        """Be made anew in a copy, which has other tensors."""
        return Together, ()

    def begin(self, model: nn.Module) -> None:
        """Bring everything up to date, if the weights are on a GPU, for as long as ``depth`` is not 0."""
        if self._kept is None:
            self._kept = [module for module in model.modules() if isinstance(module, SparseParameter)]
            for kept in self._kept:
                kept.together = self
        if not self._refused and self._kept and all(kept.weight.is_cuda for kept in self._kept) and self._reconcile():
            self.depth += 1

    def end(self) -> None:
        """Let every use of a weight look for itself again."""
        self.depth = max(self.depth - 1, 0)

    def _reconcile(self) -> bool:
        assert self._kept is not None
        memories = [kept.entry_memory() for kept in self._kept]
        if len(memories) != len(self._memories) or any(
            a is not b for a, b in zip(memories, self._memories, strict=True)
        ):
            tables = _tables(memories)
            if tables is None:
                self._refused = True
                return False
            self._memories, self._tables = memories, tables
        changed = [kept.weight for kept in self._kept if kept.counters_changed() and not kept.weight.is_inference()]
        for table in self._tables:
            table.reconcile()
        if changed:
            torch.autograd.graph.increment_version(changed)
        for kept in self._kept:
            kept.note_counters()
        return True


def _tables(memories: list[EntryMemory]) -> list[Any] | None:
    """Make a table for each type of number; None where Triton, or its compiler, is missing or a type has no kernel."""
    try:
        from fishexp.sparse.fused_kernels import Table

        groups: dict[Any, list[Any]] = {}
        for memory in memories:
            tensors = memory.vectors()
            groups.setdefault((tensors[0].element_size(), tensors[3].element_size()), []).append(tensors)
            if tensors[0].dim() != 1:  # complex
                return None
        tables = [Table(group) for group in groups.values()]
        for table in tables:
            table.reconcile()  # compiles; what it does is done again
    except Exception as error:  # Triton's own are of many kinds
        logger.debug("weights are brought up to date one by one: %s", error)
        return None
    return tables


def reconcile_in_passes(model: nn.Module) -> None:
    """Bring the model's partly kept weights up to date together from here on, where they are on a GPU or get there."""
    if not torch.cuda.is_available():
        return
    vars(model)[_TOGETHER] = Together()
    model.register_forward_pre_hook(_begin)
    model.register_forward_hook(_end, always_call=True)


def _begin(model: nn.Module, inputs: Any) -> None:
    together = _of(model)
    if together is not None:
        together.begin(model)


def _end(model: nn.Module, inputs: Any, output: Any) -> None:
    together = _of(model)
    if together is not None:
        together.end()


def _of(model: nn.Module) -> Together | None:
    """Return what the hooks work with; None in what is compiled or transformed, and in replicas of DataParallel."""
    if (
        torch.compiler.is_compiling()
        or torch._C._are_functorch_transforms_active()
        or torch.jit.is_tracing()  # pyright: ignore[reportPrivateImportUsage]
        or hasattr(model, "_is_replica")
    ):
        return None
    return vars(model).get(_TOGETHER)


def stop(model: nn.Module) -> None:
    """Undo :func:`reconcile_in_passes`."""
    vars(model).pop(_TOGETHER, None)
    remove_pass_hooks(model, _begin, _end)
