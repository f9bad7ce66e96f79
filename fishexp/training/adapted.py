"""Parameters that train beside a model's weights, and are merged into these in the end: adapters."""

from collections.abc import Callable, Collection, Mapping

import torch
from torch import Tensor, nn

from fishexp.delta import Delta
from fishexp.delta.diff import Original, trained
from fishexp.training.problem import Problem


class Adapted:
    """Make parameters of a model train that has adapters in the place of some layers, and nothing else.

    Args:
        model: With its adapters, and the parameters that train requiring gradients.
        merged: name -> weight into which adapters are going to be merged; by its name before there were any.
        merge: Merges the adapters into these weights, and makes the model the plain one again.

    Attributes:
        parameters: The parameters for an optimiser.
        seed, sparse: None, as there is no mask.
    """

    seed = None
    sparse = None

    def __init__(self, model: nn.Module, merged: Mapping[str, Tensor], merge: Callable[[], object]) -> None:
        self._model, self._merged, self._merge = model, merged, merge
        train = {name: p for name, p in model.named_parameters() if p.requires_grad}
        self.parameters = list(train.values())
        self._originals = {name: Original(None, p.detach().clone(), always=True) for name, p in train.items()}
        for name, buffer in model.named_buffers():
            self._originals[name] = Original(None, buffer.clone(), always=False)

    def delta(self) -> Delta:
        """Make a delta of the model with its adapters against what it was as training began."""
        return Delta.of(trained(self._model, self._originals, ()))

    def tensors(self) -> dict[str, Tensor]:
        """Return what a snapshot holds beside the delta: nothing."""
        return {}

    @torch.no_grad()
    def finish(self, fresh: Collection[str]) -> Delta:
        """Merge the adapters; return the delta of the plain model, in which adapted weights have changed entirely.

        Args:
            fresh: Names of weights that began at random, which are no part of the base.
        """
        before = {name: Original(None, weight.detach().clone(), always=True) for name, weight in self._merged.items()}
        self._merge()
        names = {name for name, _ in self._model.named_parameters()} | {n for n, _ in self._model.named_buffers()}
        before |= {name: original for name, original in self._originals.items() if name in names}
        return Delta.of(trained(self._model, before, fresh))


class Adapter:
    """Put adapters into a problem's model; an instance is called once, as training begins or resumes.

    Args:
        adapt: A method's function of that name, with its options bound.
        keep: Fraction of the number of all weights that may train, head included.
        report_kept: Called with the number of parameters that train, twice, as one worker has all of them, and with
            name -> [numbers, *shape] of each.
    """

    def __init__(
        self,
        problem: Problem,
        adapt: Callable[[Problem, float | None], Adapted],
        keep: float | None,
        report_kept: Callable[[int, int, dict[str, list[int]]], None],
    ) -> None:
        self._problem, self._adapt, self._keep, self._report_kept = problem, adapt, keep, report_kept

    def __call__(self) -> Adapted:
        """Adapt the model."""
        adapted = self._adapt(self._problem, self._keep)
        trains = {name: [p.numel(), *p.shape] for name, p in self._problem.model.named_parameters() if p.requires_grad}
        count = sum(p.numel() for p in adapted.parameters)
        self._report_kept(count, count, trains)
        return adapted
