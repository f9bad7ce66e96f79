"""A stand-in for CUDA graphs, which computes on the CPU."""

from collections.abc import Callable

from torch import Tensor, nn

from fishexp.fisher.cuda_graphs import Captured, OwnPasses


class StandIn:
    """Compute passes again, into the tensors that they filled when they were captured.

    Args:
        change: What a wrong graph does to a gradient.
    """

    def __init__(self, model: nn.Module, change: Callable[[Tensor], Tensor] = lambda gradient: gradient) -> None:
        self.model, self.change, self.replays, self.captures = model, change, 0, 0

    def capture(self, passes: OwnPasses) -> tuple[Captured, Tensor]:
        self.captures += 1
        again = Again(self, passes)
        return again, again.loss


class Again:
    def __init__(self, owner: StandIn, passes: OwnPasses) -> None:
        self._owner, self._passes = owner, passes
        self.loss = passes().clone()
        self._filled = {p: p.grad for p in owner.model.parameters() if p.grad is not None}

    def replay(self) -> None:
        self._owner.replays += 1
        self.loss.copy_(self._passes())
        for p, gradient in self._filled.items():
            assert p.grad is not None
            gradient.copy_(self._owner.change(p.grad))
