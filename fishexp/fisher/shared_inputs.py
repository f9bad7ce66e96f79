"""Inputs that all examples of a batch share, though they are as long as there are examples."""

import warnings
from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor, nn

from fishexp.fisher.batches import Inputs, has_examples, logits_of, select, tensors_of
from fishexp.fisher.eval_mode import evaluating, forked_random_streams
from fishexp.fisher.tf32 import TF32_EPS, tf32_is_allowed

# why examples are scored alone
DEPENDS = "what the model returns for an example depends on the others of its batch, or is drawn at random"
# inputs as long as there are examples; with more, only a single one is tried as shared
MAX_TRIED = 6


@torch.no_grad()
def inputs_shared_by_examples(
    model: nn.Module, inputs: Inputs, examples: int, warn: Callable[[str], None]
) -> frozenset[int | str]:
    """Find the inputs that have no part for each example: an attention mask (tokens, tokens), class weights ...

    What an example alone returns has to be what it returns in its batch. So of the inputs that are as long as there
    are examples, the fewest stay whole with which that is so. ``warn`` is called with a message if there are none.
    """
    candidates = [key for key, value in tensors_of(inputs).items() if has_examples(value, examples)]
    if len(candidates) < 2 or examples == 1:
        return frozenset()
    with evaluating(model), forked_random_streams(model):
        together = logits_of(model, inputs)
        differences = {}
        for shared in _subsets(candidates):
            found = max(difference_alone(model, inputs, examples, shared, together, i) for i in {0, examples - 1})
            if found <= 1:
                return shared
            differences[shared] = found
    warn(DEPENDS)
    return min(differences, key=differences.__getitem__)


def _subsets(keys: list[int | str]) -> list[frozenset[int | str]]:
    """Return the sets of inputs that may be shared, the smallest first; one has to have the examples."""
    most = len(keys) - 1 if len(keys) <= MAX_TRIED else 1
    return [frozenset(some) for count in range(most + 1) for some in combinations(keys, count)]


@torch.no_grad()
def difference_alone(
    model: nn.Module, inputs: Inputs, examples: int, shared: frozenset[int | str], together: Tensor, i: int
) -> float:
    """Return how far the logits of the ``i``-th example alone are from those in its batch.

    Args:
        shared: Inputs that stay whole.
        together: Logits of the batch.

    Returns:
        As a multiple of what rounding may make of the largest; inf if the model fails, or returns another shape.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # reentrant checkpoints miss gradients
            alone = logits_of(model, select(inputs, slice(i, i + 1), examples, shared))
    except Exception:  # whatever a model says of inputs that do not fit
        return float("inf")
    wanted = together[i : i + 1]
    if alone.shape != wanted.shape:
        return float("inf")
    if not bool(wanted.isfinite().all()):
        return 0.0
    device = together.device.type
    computed = [p.dtype for p in model.parameters() if p.is_floating_point()]
    computed += [torch.get_autocast_dtype(device)] if torch.is_autocast_enabled(device) else []
    eps = max(torch.finfo(dtype).eps for dtype in (together.dtype, *computed))
    if device == "cuda" and torch.float32 in computed and tf32_is_allowed():
        eps = max(eps, TF32_EPS)
    rounding = eps**0.5 * max(together.abs().max().item(), torch.finfo(torch.float32).tiny)
    difference = (alone.double() - wanted.double()).abs().max().item() / rounding
    return difference if difference == difference else float("inf")
