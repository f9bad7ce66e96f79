"""Inputs that all examples of a batch share, though they are as long as there are examples."""

from collections.abc import Callable
from itertools import combinations

import torch
from torch import Tensor, nn

from fishexp.fisher.batches import Inputs, has_examples, logits_of, select, tensors_of
from fishexp.fisher.eval_mode import evaluating, forked_random_streams

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
            found = _difference(model, inputs, examples, shared, together)
            if found <= _rounding(together):
                return shared
            differences[shared] = found
    warn("what the model returns for an example depends on the others of its batch, or is drawn at random")
    return min(differences, key=differences.__getitem__)


def _subsets(keys: list[int | str]) -> list[frozenset[int | str]]:
    """Return the sets of inputs that may be shared, the smallest first; one has to have the examples."""
    most = len(keys) - 1 if len(keys) <= MAX_TRIED else 1
    return [frozenset(some) for count in range(most + 1) for some in combinations(keys, count)]


def _difference(
    model: nn.Module, inputs: Inputs, examples: int, shared: frozenset[int | str], together: Tensor
) -> float:
    """Return how far the first and the last example's logits alone are from those in the batch; inf if none come."""
    worst = 0.0
    for i in {0, examples - 1}:
        try:
            alone = logits_of(model, select(inputs, slice(i, i + 1), examples, shared))
        except Exception:  # whatever a model says of inputs that do not fit
            return float("inf")
        if alone.shape != together[i : i + 1].shape:
            return float("inf")
        difference = (alone.double() - together[i : i + 1].double()).abs().max().item()
        worst = max(worst, difference if difference == difference else float("inf"))
    return worst


def _rounding(logits: Tensor) -> float:
    """Return a difference that logits may have by rounding."""
    return 256 * torch.finfo(logits.dtype).eps * max(logits.abs().max().item(), 1e-30)
