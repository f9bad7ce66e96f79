"""Whether an optimiser was made before sparsify, so that it moves nothing of what trains."""

import gc
import sys
import warnings
from collections import Counter
from collections.abc import Mapping
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from fishexp.sparse.parameter import SparseParameter

# references to a frozen weight in the model's SparseState
_OURS = 1


def watch_for_old_optimizers(model: nn.Module, kept: Mapping[str, SparseParameter]) -> None:
    """Warn at the first gradient if an optimiser holds one of these weights and none holds its values.

    By then the optimiser that is to move the values has been made. To look takes 0.2 s in a process with half a million
    objects; where nothing but the model holds a weight, as is usual but for recurrent layers, there is nothing to look
    for.
    """
    holders = Counter(id(p) for module in model.modules() for p in module._parameters.values())
    alone = [nn.Parameter(torch.empty(0))]
    own = sys.getrefcount(alone[0]) + _OURS
    held = {}
    for name, one in kept.items():
        alone[0] = one.weight
        if sys.getrefcount(alone[0]) > own + holders[id(one.weight)]:
            held[name] = one
    if held:
        _FirstGradient(held)


class _FirstGradient:
    """Look for optimisers when the first of some values gets a gradient."""

    def __init__(self, kept: Mapping[str, SparseParameter]) -> None:
        self._kept = {name: ref(one) for name, one in kept.items()}  # the values hold this object
        self._handles = [one.values.register_post_accumulate_grad_hook(self) for one in kept.values()]

    def __call__(self, values: Tensor) -> None:
        for handle in self._handles:
            handle.remove()
        kept = {name: one for name, found in self._kept.items() if (one := found()) is not None}
        moved = _in_parameter_groups([p for one in kept.values() for p in (one.weight, one.values)])
        for name, one in kept.items():
            if id(one.weight) in moved and id(one.values) not in moved:
                warnings.warn(
                    f"an optimiser holds {name} and none holds its kept entries, which alone train: it was made before "
                    "sparsify; make one of sparse.parameters()",
                    stacklevel=2,
                )
                return


def _in_parameter_groups(parameters: list[nn.Parameter]) -> set[int]:
    """Return the ids of those of the parameters that are in a parameter group of any optimiser."""
    lists: list[Any] = [found for found in gc.get_referrers(*parameters) if type(found) is list]
    groups = [found for found in gc.get_referrers(*lists) if isinstance(found, dict) and "params" in found]
    return {id(p) for group in groups if isinstance(group["params"], list) for p in group["params"]}
