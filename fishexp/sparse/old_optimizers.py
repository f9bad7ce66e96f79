"""Whether an optimiser was made before sparsify, so that it does not move what trains."""

import gc
import sys
import warnings
from collections import Counter
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from fishexp.sparse.gradient_hooks import add_watch, remove_watch
from fishexp.sparse.handle import SparseState

# references to a frozen weight in the model's SparseState
_OURS = 1


def watch_for_old_optimizers(model: nn.Module, state: SparseState) -> None:
    """Warn at the first gradient if an optimiser holds a frozen weight, and none holds some of what trains.

    By then the optimiser that is to move it has been made. To look takes 0.2 s in a process with half a million
    objects; where nothing but the model holds a weight, as is usual but for recurrent layers, there is nothing to look
    for.
    """
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    alone = [nn.Parameter(torch.empty(0))]
    own = sys.getrefcount(alone[0]) + _OURS
    for name in state.frozen:
        alone[0] = state.frozen[name]
        if sys.getrefcount(alone[0]) > own + holders[id(alone[0])] + (name in state.kept):  # whose original it is
            _FirstGradient(state)
            return


class _FirstGradient:
    """Look for optimisers when the first of what trains gets a gradient."""

    def __init__(self, state: SparseState) -> None:
        self._state = ref(state)  # what trains holds this object
        for parameter in state.parameters.values():
            add_watch(parameter, self)

    def __call__(self, parameter: Tensor) -> None:
        state = self._state()
        for watched in [parameter] if state is None else state.parameters.values():
            remove_watch(watched)
        if state is None:
            return
        grouped = _in_parameter_groups([*state.frozen.values(), *state.parameters.values()])
        held = next((name for name, p in state.frozen.items() if id(p) in grouped), None)
        missed = next((name for name, p in state.parameters.items() if id(p) not in grouped), None)
        if held is not None and missed is not None:
            warnings.warn(
                f"an optimiser holds {held}, which does not train as a whole, and none holds the kept entries of "
                f"{missed}: it was made before sparsify; make one of sparse.parameters()",
                stacklevel=2,
            )


def _in_parameter_groups(parameters: list[nn.Parameter]) -> set[int]:
    """Return the ids of what is in a parameter group, of any optimiser, with one of these parameters."""
    lists: list[Any] = [found for found in gc.get_referrers(*parameters) if type(found) is list]
    groups = [found for found in gc.get_referrers(*lists) if isinstance(found, dict) and "params" in found]
    return {id(p) for group in groups if isinstance(group["params"], list) for p in group["params"]}
