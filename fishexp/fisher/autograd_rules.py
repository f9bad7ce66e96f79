"""Calls of functions that take weights, and rules that differentiate them by autograd, example by example."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fishexp.fisher.layouts import Blocks, Layout
from fishexp.fisher.powers import Power, add_power


@dataclass
class Call:
    """Hold a call of a function that takes weights.

    Attributes:
        function: A function of torch.
        arguments: Its arguments, without gradients: by position, or by name.
        weights: Those that are weights, or made of weights alone.
        inputs: Those that depend on the examples.
    """

    function: Callable[..., Any]
    arguments: dict[int | str, Any]
    weights: tuple[int | str, ...]
    inputs: tuple[int | str, ...]

    @property
    def x(self) -> Tensor:
        return self.arguments["input"]

    def get(self, name: str, default: Any) -> Any:
        """Return an argument, or ``default`` where it was not given."""
        return self.arguments.get(name, default)

    def named(self, parameters: Sequence[str]) -> "Call":
        """Return the call with all arguments by name."""
        name = {**dict(enumerate(parameters)), **{n: n for n in self.arguments if isinstance(n, str)}}
        arguments: dict[int | str, Any] = {name[n]: value for n, value in self.arguments.items()}
        return Call(self.function, arguments, tuple(name[n] for n in self.weights), tuple(name[n] for n in self.inputs))


class Rule:
    """Differentiate a call by autograd, with the output's gradient of one example; right for every function.

    Attributes:
        parameters: The function's parameters by the names that the rule uses, in their order; none to leave them.
        by_rows: Whether the examples of a batch may have rows in any order and number.
    """

    by_rows = True

    def __init__(self, *parameters: str) -> None:
        self.parameters = parameters

    def applies(self, call: Call) -> bool:
        """Tell whether the rule holds for a call."""
        return True

    def fits(self, call: Call, layout: Layout) -> bool:
        """Tell whether the rule holds for examples in this layout."""
        return True

    def joined(self, uses: Sequence[tuple[Call, Layout, Tensor]]) -> tuple[Call, Layout, Tensor] | None:
        """Return a call that has the gradient of these together, with its layout and output's gradient; None if none.

        Args:
            uses: Calls that take the same weight, with their layouts and outputs' gradients.
        """
        return None

    def gradient(self, call: Call, name: Any, layout: Layout, g: Tensor, i: int) -> Tensor:
        """Return the gradient of the weight ``name`` from the ``i``-th example, in a new tensor."""
        return differentiate(call, call.arguments, name, layout.only(g, i))

    def add_powers(self, total: Tensor, call: Call, name: Any, layout: Layout, g: Tensor, power: Power) -> None:
        """Add the powers of each example's gradient of the weight; take one buffer of its size at most."""
        for i in range(layout.examples):
            add_power(total, self.gradient(call, name, layout, g, i), power)


def differentiate(call: Call, arguments: Mapping[int | str, Any], name: int | str, g: Tensor) -> Tensor:
    """Return the gradient of the argument ``name``; the function runs once more."""
    weight = arguments[name].detach().requires_grad_()
    arguments = {**arguments, name: weight}
    positional = [arguments[n] for n in sorted(n for n in arguments if isinstance(n, int))]
    with torch.enable_grad():
        output = call.function(*positional, **{n: value for n, value in arguments.items() if isinstance(n, str)})
        found = torch.autograd.grad(output, weight, g, allow_unused=True)[0]
    if found is None:
        return torch.zeros_like(weight)
    return found.to_dense() if found.is_sparse else found.contiguous()  # an expanded one cannot be written to


class PartRule(Rule):
    """Differentiate by autograd on an example's part of the inputs alone, for functions that never mix examples."""

    by_rows = False

    def __init__(self, dims: int) -> None:
        """Make a rule; inputs with fewer dimensions than ``dims`` have none for the examples."""
        super().__init__()
        self.dims = dims

    def fits(self, call: Call, layout: Layout) -> bool:
        inputs = [call.arguments[n] for n in call.inputs]
        sizes = {len(t) if t.dim() >= self.dims else -1 for t in inputs}
        return isinstance(layout, Blocks) and layout.dim == 0 and len(sizes) == 1 and -1 not in sizes

    def gradient(self, call: Call, name: Any, layout: Layout, g: Tensor, i: int) -> Tensor:
        parts = {n: layout.part(call.arguments[n], i) for n in call.inputs}
        return differentiate(call, {**call.arguments, **parts}, name, layout.part(g, i))


class EinsumRule(Rule):
    """Differentiate an ``einsum`` by autograd on the inputs' parts along the letter of the examples."""

    by_rows = False

    def fits(self, call: Call, layout: Layout) -> bool:
        return isinstance(layout, Blocks) and layout.groups == 1 and self._dims(call, layout.dim) is not None

    def gradient(self, call: Call, name: Any, layout: Layout, g: Tensor, i: int) -> Tensor:
        assert isinstance(layout, Blocks)
        dims = self._dims(call, layout.dim)
        assert dims is not None
        parts = {n: Blocks(layout.examples, dim).part(call.arguments[n], i) for n, dim in dims.items()}
        return differentiate(call, {**call.arguments, **parts}, name, layout.part(g, i))

    @staticmethod
    def _dims(call: Call, dim: int) -> dict[Any, int] | None:
        """Return the examples' dimension in each input; None where another argument has it, or the letters differ."""
        equation = call.arguments.get(0)
        if not isinstance(equation, str) or "->" not in equation or "." in equation:
            return None
        terms, _, out = equation.replace(" ", "").partition("->")
        found = {n + 1: term.index(out[dim]) for n, term in enumerate(terms.split(",")) if term.count(out[dim]) == 1}
        return found if found.keys() == set(call.inputs) and terms.count(out[dim]) == len(found) else None


# right for every function and layout
ANY = Rule()
