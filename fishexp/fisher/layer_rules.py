"""Gradients of a layer's own parameters, example by example, from the layer's input and the gradient of its output.

:data:`RULES` has a rule for each type of module whose formula is known; :class:`LayerRule` differentiates all others.
Throughout, ``x`` is the input of a module and ``g`` the gradient of its output, both with the examples first.
"""

from collections.abc import Callable, Sequence
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Power: TypeAlias = Literal["square", "absolute"]

# The next three were measured on one core with 1 MiB of L2 cache.

# tokens an example; up to here the squares cost more than the products, and blocks of rows that stay in the cache pay
FEW_TOKENS = 8
# weights in such a block
BLOCK_WEIGHTS = 2**17
# positions of a convolution's output; up to here its columns and one buffer beat torch's own gradient
FEW_POSITIONS = 64


def add_power(total: Tensor, gradient: Tensor, power: Power, sign: int = 1) -> None:
    """Add ``sign * gradient**2``, or the absolute value, to ``total``; overwrite ``gradient`` to take no memory."""
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    gradient = gradient.to(total.dtype)  # once; the product below would do it twice
    if power == "square":
        total.addcmul_(gradient, gradient, value=sign)
    else:
        total.add_(gradient.abs_(), alpha=sign)


class LayerRule:
    """Differentiate any module by autograd, an example at a time; rules for types that are known override this."""

    def applies(self, module: Any, x: Tensor) -> bool:
        """Tell whether the rule holds for a module of its type and this input."""
        return True

    def gradient(self, module: Any, name: str, inputs: tuple[Tensor, ...], g: Tensor) -> Tensor:
        """Return the gradient of the module's parameter ``name`` from a single example, in a new tensor.

        The module runs once more, past its hooks, with this parameter alone to be differentiated.
        """
        parameter = module._parameters[name]
        try:
            with torch.enable_grad():
                parameter.requires_grad_(True)
                output = module.forward(*(x.detach() for x in inputs))
                found = torch.autograd.grad(output, parameter, g, allow_unused=True)[0]
        finally:
            parameter.requires_grad_(False)
        if found is None:
            return torch.zeros_like(parameter)
        return found.contiguous()  # an expanded tensor cannot be written to

    def add_powers(
        self, total: Tensor, module: Any, name: str, inputs: tuple[Tensor, ...], g: Tensor, power: Power
    ) -> None:
        """Add the powers of each example's gradient of parameter ``name``; take one buffer of its size at most."""
        for i in range(len(g)):
            add_power(total, self.gradient(module, name, tuple(x[i : i + 1] for x in inputs), g[i : i + 1]), power)


class FormulaRule(LayerRule):
    """Compute the gradients of ``weight`` and ``bias`` of a module with a single input by a formula."""

    def vectors(self, module: Any, name: str, x: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return the gradients of all examples at once, if the parameter is as small as a bias; None if not.

        Returns:
            (examples, *the parameter's shape), summed in ``dtype``.
        """
        return None

    def weight_gradient(self, module: Any, x: Tensor, g: Tensor) -> Tensor:
        """Return the gradient of the weight from a single example, in a new tensor."""
        raise NotImplementedError

    def add_weight_powers(self, total: Tensor, module: Any, x: Tensor, g: Tensor, power: Power) -> None:
        """Add the powers of each example's gradient of the weight."""
        for i in range(len(g)):
            add_power(total, self.weight_gradient(module, x[i : i + 1], g[i : i + 1]), power)

    def gradient(self, module: Any, name: str, inputs: tuple[Tensor, ...], g: Tensor) -> Tensor:
        vectors = self.vectors(module, name, inputs[0], g, g.dtype)
        return self.weight_gradient(module, inputs[0], g) if vectors is None else vectors[0]

    def add_powers(
        self, total: Tensor, module: Any, name: str, inputs: tuple[Tensor, ...], g: Tensor, power: Power
    ) -> None:
        vectors = self.vectors(module, name, inputs[0], g, total.dtype)
        if vectors is None:
            self.add_weight_powers(total, module, inputs[0], g, power)
        else:
            total.add_(_powered(vectors, power).sum(0))


class LinearRule(FormulaRule):
    """Multiply the output's gradient by the input, summed over an example's tokens."""

    def applies(self, module: nn.Linear, x: Tensor) -> bool:
        return x.dim() > 1

    def vectors(self, module: nn.Linear, name: str, x: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor | None:
        return _sum_over_first(g, module.bias.shape, dtype) if name == "bias" else None

    def weight_gradient(self, module: nn.Linear, x: Tensor, g: Tensor) -> Tensor:
        return g.flatten(0, -2).t() @ x.flatten(0, -2).to(g.dtype)

    def add_weight_powers(self, total: Tensor, module: nn.Linear, x: Tensor, g: Tensor, power: Power) -> None:
        x, g = x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
        _add_product_powers(total, x, g, power)


class Conv2dRule(FormulaRule):
    """Correlate the input with the output's gradient."""

    def applies(self, module: nn.Conv2d, x: Tensor) -> bool:
        return x.dim() == 4

    def vectors(self, module: nn.Conv2d, name: str, x: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor | None:
        return _sum_over_last(g, dtype) if name == "bias" else None

    def weight_gradient(self, module: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
        x, padding = self._padded(module, x.to(g.dtype))
        shape, more = module.weight.shape, (module.stride, padding, module.dilation, module.groups)
        return nn.grad.conv2d_weight(x, shape, g, *more)  # type: ignore[arg-type]

    def add_weight_powers(self, total: Tensor, module: nn.Conv2d, x: Tensor, g: Tensor, power: Power) -> None:
        """Multiply the columns of the input, with positions of the output as tokens, where these are few."""
        if module.groups > 1 or g[0, 0].numel() > FEW_POSITIONS:
            super().add_weight_powers(total, module, x, g, power)
            return
        x, padding = self._padded(module, x)
        columns = F.unfold(x, module.kernel_size, module.dilation, padding, module.stride)  # type: ignore[arg-type]
        _add_product_powers(total.flatten(1), columns.transpose(1, 2), g.flatten(2).transpose(1, 2), power)

    @staticmethod
    def _padded(module: nn.Conv2d, x: Tensor) -> tuple[Tensor, int | tuple[int, ...]]:
        """Return the input and the width of the zeros still to be put around it."""
        if not isinstance(module.padding, str) and module.padding_mode == "zeros":
            return x, module.padding
        mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
        return F.pad(x, module._reversed_padding_repeated_twice, mode), 0


class EmbeddingRule(FormulaRule):
    """Add up the output's gradients at each row's tokens."""

    def applies(self, module: nn.Embedding, x: Tensor) -> bool:
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse

    def weight_gradient(self, module: nn.Embedding, x: Tensor, g: Tensor) -> Tensor:
        total = g.new_zeros(module.weight.shape)
        trained = self._trained(module, x)
        return total.index_add_(0, x[trained], g[trained])

    def add_weight_powers(self, total: Tensor, module: nn.Embedding, x: Tensor, g: Tensor, power: Power) -> None:
        """Form no gradient of the whole table, but of the rows that an example uses."""
        size = module.num_embeddings
        trained = self._trained(module, x)
        rows = x + size * torch.arange(len(x), device=x.device).view(-1, *[1] * (x.dim() - 1))  # row of which example
        used, place = rows[trained].unique(return_inverse=True)
        sums = g.new_zeros(len(used), g.shape[-1], dtype=total.dtype)
        sums.index_add_(0, place, g[trained].to(total.dtype))  # a token repeated in an example: added before its square
        total.index_add_(0, used % size, _powered(sums, power))

    @staticmethod
    def _trained(module: nn.Embedding, x: Tensor) -> Tensor:
        """Return where the tokens are not padding, whose row has no gradient."""
        return torch.ones_like(x, dtype=torch.bool) if module.padding_idx is None else x != module.padding_idx


class NormRule(FormulaRule):
    """Cover a norm that multiplies its normalised input by a weight and adds a bias, one for each channel."""

    def __init__(self, normalised: Callable[[Any, Tensor], Tensor]) -> None:
        """Make a rule; ``normalised`` returns the input of a module as it is before weight and bias."""
        self.normalised = normalised

    def vectors(self, module: Any, name: str, x: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
        return self.sums(module, g * self.normalised(module, x.to(g.dtype)) if name == "weight" else g, dtype)

    def sums(self, module: Any, g: Tensor, dtype: torch.dtype) -> Tensor:
        """Sum over all dimensions that the parameters do not have."""
        return _sum_over_last(g, dtype)


class LayerNormRule(NormRule):
    """Cover a norm whose parameters have the last dimensions of its input."""

    def sums(self, module: nn.LayerNorm, g: Tensor, dtype: torch.dtype) -> Tensor:
        return _sum_over_first(g, module.normalized_shape, dtype)


class BatchNormRule(NormRule):
    """Cover a norm that uses running statistics, so that no example has a part in another's output."""

    def applies(self, module: nn.BatchNorm1d | nn.BatchNorm2d, x: Tensor) -> bool:
        return module.running_mean is not None and not module.training


AUTOGRAD = LayerRule()
BATCH_NORM = BatchNormRule(lambda m, x: F.batch_norm(x, m.running_mean, m.running_var, eps=m.eps))

# exact type of a module -> its rule; all other modules are differentiated by autograd
RULES: dict[type[nn.Module], LayerRule] = {
    nn.Linear: LinearRule(),
    nn.Conv2d: Conv2dRule(),
    nn.Embedding: EmbeddingRule(),
    nn.LayerNorm: LayerNormRule(lambda m, x: F.layer_norm(x, m.normalized_shape, eps=m.eps)),
    nn.GroupNorm: NormRule(lambda m, x: F.group_norm(x, m.num_groups, eps=m.eps)),
    nn.BatchNorm1d: BATCH_NORM,
    nn.BatchNorm2d: BATCH_NORM,
}


def rule_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> LayerRule:
    """Return the rule for the module's type, or that of autograd where there is none or it does not hold."""
    rule = RULES.get(type(module))
    if rule is None or len(inputs) != 1 or not module._parameters.keys() <= {"weight", "bias"}:
        return AUTOGRAD
    return rule if rule.applies(module, inputs[0]) else AUTOGRAD


def _sum_over_first(g: Tensor, shape: Sequence[int], dtype: torch.dtype) -> Tensor:
    """Sum over the positions of each example, for a parameter that has the last dimensions of ``g``."""
    return g.reshape(len(g), -1, *shape).sum(1, dtype=dtype)


def _sum_over_last(g: Tensor, dtype: torch.dtype) -> Tensor:
    """Sum over the positions of each example, for a parameter that has the second dimension of ``g``."""
    return g.reshape(*g.shape[:2], -1).sum(2, dtype=dtype)


def _add_product_powers(total: Tensor, x: Tensor, g: Tensor, power: Power) -> None:
    """Add the powers of each example's product of ``g`` and ``x`` over the tokens, formed in one buffer.

    Args:
        total: (outputs, inputs).
        x: (examples, tokens, inputs).
        g: (examples, tokens, outputs).
    """
    if x.shape[1] == 1:
        rows, columns = (_powered(t[:, 0].to(total.dtype), power) for t in (g, x))
        total.addmm_(rows.t(), columns)
        return
    x = x.to(g.dtype)
    size = len(total)
    if x.shape[1] <= FEW_TOKENS and not total.is_cuda:
        size = min(size, max(1, BLOCK_WEIGHTS // total.shape[1]))
    buffer = g.new_empty(size, total.shape[1])
    for part, rows in zip(total.split(size), g.transpose(1, 2).split(size, 1), strict=True):
        product = buffer[: len(part)]
        for example, columns in zip(rows, x, strict=True):
            add_power(part, torch.mm(example, columns, out=product), power)


def _powered(gradients: Tensor, power: Power) -> Tensor:
    return gradients.square() if power == "square" else gradients.abs()
