"""Hooks that add up the powers of every example's gradient in one forward and backward pass over a batch."""

from collections import defaultdict
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from fishexp.fisher.layer_rules import Power, add_power, rule_of


class Unbatchable(RuntimeError):
    """Say in which module, and why, the examples of a batch cannot be told apart."""


class _Use(NamedTuple):
    """Hold what a call of a module contributes to the gradient of its parameter ``name``."""

    module: nn.Module
    name: str
    inputs: tuple[Tensor, ...]
    output_gradient: Tensor


@contextmanager
def hooked_batch(
    examples: int, model: nn.Module, totals: Mapping[nn.Parameter, Tensor], power: Power
) -> Iterator["HookedBatch"]:
    """Let a forward pass of ``model``, and backward passes by :meth:`HookedBatch.backward`, add to ``totals``.

    The weights are frozen meanwhile: autograd forms gradients of activations only, and what belongs to a weight is
    computed in the moment in which the gradient of its layer's output is there.
    """
    batch = HookedBatch(examples, totals, power)
    names = {module: name for name, module in model.named_modules()}
    owners = {module for module in model.modules() if any(p in totals for p in module._parameters.values())}
    thawed = [p for p in totals if p.requires_grad]
    handles = []
    try:
        for p in thawed:
            p.requires_grad_(False)
        for module in owners:
            label = f"{names[module] or 'the model'} ({type(module).__name__})"
            is_nested = any(part in owners for part in module.modules() if part is not module)
            handles.append(module.register_forward_pre_hook(batch.before))
            handles.append(module.register_forward_hook(batch.after(label, is_nested), with_kwargs=True))
        yield batch
    finally:
        for handle in handles:
            handle.remove()
        for p in thawed:
            p.requires_grad_(True)


class HookedBatch:
    """Hold what the hooks of a batch share.

    Attributes:
        eps: Machine epsilon of the coarsest float type among the layers' outputs.
    """

    def __init__(self, examples: int, totals: Mapping[nn.Parameter, Tensor], power: Power) -> None:
        self.examples, self.totals = examples, totals
        self.power: Power = power
        self.uses: dict[nn.Parameter, int] = defaultdict(int)
        self.repeated: dict[nn.Parameter, list[_Use]] = defaultdict(list)  # weights that are used more than once
        self.starts: list[Tensor] = []  # where the graph begins
        self.recording = True  # until the first backward pass, in which checkpoints run the forward pass once more
        self.eps = 0.0

    def before(self, module: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Repeat for each example what the examples share, such as position ids (1, tokens)."""
        if self.examples == 1 or not all(isinstance(x, Tensor) and x.dim() for x in inputs):
            return inputs
        return tuple(x.expand(self.examples, *x.shape[1:]) if len(x) == 1 else x for x in inputs)

    def after(self, label: str, is_nested: bool) -> Any:
        """Make the forward hook of a module.

        Args:
            label: The module's name and type for messages.
            is_nested: Whether it holds other modules with parameters.
        """

        def hook(module: nn.Module, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any) -> Any:
            if self.recording:
                self._check(label, is_nested, inputs, keywords, output)
            if not torch.is_grad_enabled():
                return None
            if not output.requires_grad:
                start = output.detach().requires_grad_()
                output = start.clone()  # a leaf could not be modified in place
                if self.recording:
                    self.starts.append(start)
            if self.recording:
                self.eps = max(self.eps, torch.finfo(output.dtype).eps)
                names = [name for name, p in module._parameters.items() if p in self.totals]
                for name in names:
                    self.uses[module._parameters[name]] += 1  # type: ignore[index]
                output.register_hook(lambda g: self._receive(module, names, inputs, g))
            return output

        return hook

    def _check(
        self, label: str, is_nested: bool, inputs: tuple[Any, ...], keywords: dict[str, Any], output: Any
    ) -> None:
        if is_nested:
            raise Unbatchable(f"{label} uses parameters beside those of the modules in it")
        if not isinstance(output, Tensor) or not all(isinstance(x, Tensor) for x in (*inputs, *keywords.values())):
            raise Unbatchable(f"{label} takes or returns something other than tensors")
        if keywords or not inputs:
            raise Unbatchable(f"{label} is not called with positional inputs alone")
        if any(x.dim() == 0 or len(x) != self.examples for x in (*inputs, output)):
            raise Unbatchable(f"{label} does not have the examples in the first dimension")

    @torch.no_grad()
    def _receive(self, module: nn.Module, names: list[str], inputs: tuple[Tensor, ...], g: Tensor) -> None:
        """Score the module's parameters ``names`` from the gradient of its output."""
        for name in names:
            p = module._parameters[name]
            assert p is not None
            if self.uses[p] == 1:
                rule_of(module, inputs).add_powers(self.totals[p], module, name, inputs, g, self.power)
            else:
                self.repeated[p].append(_Use(module, name, inputs, g))

    def backward(self, objective: Tensor, more: bool) -> None:
        """Add the powers of the examples' gradients of ``objective``, a sum with a term for each example.

        Args:
            more: Keep the graph for another pass.
        """
        self.recording = False
        torch.autograd.grad(objective, self.starts, retain_graph=more, allow_unused=True)
        for p, uses in self.repeated.items():
            for i in range(self.examples):
                add_power(self.totals[p], self._summed(uses, i), self.power)
        self.repeated.clear()

    @torch.no_grad()
    def _summed(self, uses: list[_Use], i: int) -> Tensor:
        """Return the gradient of the ``i``-th example, summed over all uses of a parameter."""
        total = None
        for use in uses:
            inputs, g = tuple(x[i : i + 1] for x in use.inputs), use.output_gradient[i : i + 1]
            gradient = rule_of(use.module, inputs).gradient(use.module, use.name, inputs, g)
            total = gradient if total is None else total.add_(gradient)
        assert total is not None
        return total
