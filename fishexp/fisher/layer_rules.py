"""Gradients of a layer's own parameters, example by example, from the layer's input and the gradient of its output.

Throughout, ``x`` is the input of a module and ``g`` the gradient of its output, both with the examples first.
"""

from collections.abc import Callable
from typing import Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

Power: TypeAlias = Literal["square", "absolute"]

# measured on one core with 1 MiB of L2 cache
FEW_TOKENS = 8  # up to here the squares cost more than the products, and blocks of rows that stay in the cache pay
BLOCK = 2**17  # weights in such a block
FEW_POSITIONS = 64  # of a convolution's output; up to here its columns and one buffer beat torch's own gradient


def add_power(total: Tensor, gradient: Tensor, power: Power, sign: int = 1) -> None:
    """``total += sign * gradient**2``, or its absolute value, which overwrites ``gradient``: no memory is taken."""
    if gradient.is_sparse:
        gradient = gradient.to_dense()
    gradient = gradient.to(total.dtype)  # once; the product below would do it twice
    if power == "square":
        total.addcmul_(gradient, gradient, value=sign)
    else:
        total.add_(gradient.abs_(), alpha=sign)


def add_powers(
    total: Tensor, module: nn.Module, name: str, inputs: tuple[Tensor, ...], g: Tensor, power: Power
) -> None:
    """Add the powers of each example's gradient of the module's parameter ``name``; one buffer of its size at most."""
    known = is_known(module, inputs)
    if known and (name == "bias" or type(module) in NORMS):
        gradients = _vectors(module, name, inputs[0], g, total.dtype)
        total.add_(_powered(gradients, power).sum(0))
    elif known and isinstance(module, nn.Embedding):
        _add_embedding_powers(total, module, inputs[0], g, power)
    elif known and (matrices := _matrices(module, inputs[0], g)):
        _add_matrix_powers(total.flatten(1), *matrices, power)
    else:
        for i in range(len(g)):
            add_power(total, gradient(module, name, tuple(x[i : i + 1] for x in inputs), g[i : i + 1]), power)


def gradient(module: nn.Module, name: str, inputs: tuple[Tensor, ...], g: Tensor) -> Tensor:
    """Gradient of the module's parameter ``name`` from a single example, in a new tensor."""
    if not is_known(module, inputs):
        return _by_autograd(module, name, inputs, g)
    x = inputs[0]
    if name == "bias" or type(module) in NORMS:
        return _vectors(module, name, x, g, g.dtype)[0]
    if isinstance(module, nn.Linear):
        return g.flatten(0, -2).t() @ x.flatten(0, -2).to(g.dtype)
    if isinstance(module, nn.Conv2d):
        return _conv_weight(module, x.to(g.dtype), g)
    assert isinstance(module, nn.Embedding)
    total = g.new_zeros(module.weight.shape)
    kept = _trained(module, x)
    return total.index_add_(0, x[kept], g[kept])


def is_known(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    """Whether this file has the formula; other modules are differentiated by autograd, an example at a time."""
    if len(inputs) != 1 or not module._parameters.keys() <= {"weight", "bias"}:
        return False
    x = inputs[0]
    if type(module) is nn.Linear:
        return x.dim() > 1
    if type(module) is nn.Conv2d:
        return x.dim() == 4
    if type(module) is nn.Embedding:
        return module.max_norm is None and not module.scale_grad_by_freq and not module.sparse
    if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
        return type(module) in NORMS and module.running_mean is not None and not module.training
    return type(module) in NORMS


def _vectors(module: nn.Module, name: str, x: Tensor, g: Tensor, dtype: torch.dtype) -> Tensor:
    """(examples, *the parameter's shape) for a bias or the weight of a norm."""
    if name == "weight":
        g = g * NORMS[type(module)](module, x.to(g.dtype))
    if isinstance(module, nn.Linear | nn.LayerNorm):  # the parameter's dimensions are the last
        return g.reshape(len(g), -1, *module._parameters[name].shape).sum(1, dtype=dtype)  # type: ignore[union-attr]
    return g.reshape(*g.shape[:2], -1).sum(2, dtype=dtype)  # channels are second


NORMS: dict[type[nn.Module], Callable[..., Tensor]] = {  # the input normalised, before weight and bias
    nn.LayerNorm: lambda m, x: F.layer_norm(x, m.normalized_shape, eps=m.eps),
    nn.GroupNorm: lambda m, x: F.group_norm(x, m.num_groups, eps=m.eps),
    nn.BatchNorm1d: lambda m, x: F.batch_norm(x, m.running_mean, m.running_var, eps=m.eps),
    nn.BatchNorm2d: lambda m, x: F.batch_norm(x, m.running_mean, m.running_var, eps=m.eps),
}


def _conv_weight(module: nn.Conv2d, x: Tensor, g: Tensor) -> Tensor:
    x, padding = _padded(module, x)
    shape, more = module.weight.shape, (module.stride, padding, module.dilation, module.groups)
    return nn.grad.conv2d_weight(x, shape, g, *more)  # type: ignore[arg-type]


def _padded(module: nn.Conv2d, x: Tensor) -> tuple[Tensor, int | tuple[int, ...]]:
    """The input and the zeros still to be put around it."""
    if not isinstance(module.padding, str) and module.padding_mode == "zeros":
        return x, module.padding
    mode = "constant" if module.padding_mode == "zeros" else module.padding_mode
    return F.pad(x, module._reversed_padding_repeated_twice, mode), 0


def _matrices(module: nn.Module, x: Tensor, g: Tensor) -> tuple[Tensor, Tensor] | None:
    """(examples, tokens, inputs) and (examples, tokens, outputs), whose products are the gradients of the weight.

    A convolution's tokens are the positions of its output. None if the module has no such form, or is slower in it.
    """
    if isinstance(module, nn.Linear):
        return x.reshape(len(x), -1, x.shape[-1]), g.reshape(len(g), -1, g.shape[-1])
    if not isinstance(module, nn.Conv2d) or module.groups > 1 or g[0, 0].numel() > FEW_POSITIONS:
        return None
    x, padding = _padded(module, x)
    columns = F.unfold(x, module.kernel_size, module.dilation, padding, module.stride)  # type: ignore[arg-type]
    return columns.transpose(1, 2), g.flatten(2).transpose(1, 2)


def _add_matrix_powers(total: Tensor, x: Tensor, g: Tensor, power: Power) -> None:
    """For the product of ``g`` and ``x`` over the tokens, example by example in one buffer."""
    if x.shape[1] == 1:
        rows, columns = (_powered(t[:, 0].to(total.dtype), power) for t in (g, x))
        total.addmm_(rows.t(), columns)
        return
    x = x.to(g.dtype)
    size = len(total)
    if x.shape[1] <= FEW_TOKENS and not total.is_cuda:
        size = min(size, max(1, BLOCK // total.shape[1]))
    buffer = g.new_empty(size, total.shape[1])
    for part, rows in zip(total.split(size), g.transpose(1, 2).split(size, 1), strict=True):
        product = buffer[: len(part)]
        for one, columns in zip(rows, x, strict=True):
            add_power(part, torch.mm(one, columns, out=product), power)


def _add_embedding_powers(total: Tensor, module: nn.Embedding, x: Tensor, g: Tensor, power: Power) -> None:
    """Without a gradient of the whole table: only rows that an example uses are formed."""
    size = module.num_embeddings
    kept = _trained(module, x)
    rows = x + size * torch.arange(len(x), device=x.device).view(-1, *[1] * (x.dim() - 1))  # row of which example
    used, place = rows[kept].unique(return_inverse=True)
    sums = g.new_zeros(len(used), g.shape[-1], dtype=total.dtype)
    sums.index_add_(0, place, g[kept].to(total.dtype))  # a token repeated in an example adds up before its square
    total.index_add_(0, used % size, _powered(sums, power))


def _trained(module: nn.Embedding, x: Tensor) -> Tensor:
    """Where the tokens are not padding, whose row has no gradient."""
    return torch.ones_like(x, dtype=torch.bool) if module.padding_idx is None else x != module.padding_idx


def _powered(gradients: Tensor, power: Power) -> Tensor:
    return gradients.square() if power == "square" else gradients.abs()


def _by_autograd(module: nn.Module, name: str, inputs: tuple[Tensor, ...], g: Tensor) -> Tensor:
    """The module once more, past its hooks, with this parameter alone to be differentiated."""
    parameter = module._parameters[name]
    assert parameter is not None
    try:
        with torch.enable_grad():
            parameter.requires_grad_(True)
            output = module.forward(*(x.detach() for x in inputs))
            found = torch.autograd.grad(output, parameter, g, allow_unused=True)[0]
    finally:
        parameter.requires_grad_(False)
    return torch.zeros_like(parameter) if found is None else found.contiguous()  # an expanded one cannot be written to
