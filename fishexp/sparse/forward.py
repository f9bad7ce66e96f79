"""What a forward pass takes of partly kept weights, each brought up to date."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.fx._symbolic_trace import is_fx_symbolic_tracing

from fishexp.errors import FishexpError
from fishexp.sparse.gradient_hooks import gradient_as_a_whole
from fishexp.sparse.parameter import SparseParameter, check_weight
from fishexp.sparse.ranks import check_ranks

_NOTHING = nullcontext()


def entries_in_use(module: Any, name: str) -> Any:
    """Bring the module's weight ``name`` up to date for a forward pass; return its SparseParameter, if it has any.

    Without gradients that is done only as far as the output needs.

    Raises:
        FishexpError: If something follows the tensors of the pass, which would not see what is done here, or the weight
            was set to require a gradient.
    """
    kept: Any = module._modules.get(name + "_kept")
    if kept is None:
        return None
    if is_fx_symbolic_tracing():  # of a module that is no leaf of the trace; what it reads would be a constant
        raise cannot_follow(kept, "a trace by torch.fx")
    compiling = torch.compiler.is_compiling()
    fresh = not compiling and kept.is_fresh()
    if torch._C._are_functorch_transforms_active():
        raise cannot_follow(kept, "torch.func, such as vmap and grad,")
    if not fresh and (torch.jit.is_tracing() or torch.compiler.is_exporting()):  # pyright: ignore[reportPrivateImportUsage]
        raise cannot_follow(kept, "an export or a trace of the model")
    check_weight(module, name, kept)
    check_ranks(kept)
    if torch.is_grad_enabled() and kept.weight.requires_grad and not kept.watched:
        raise gradient_as_a_whole(kept.name)
    if fresh:
        return kept
    if torch.is_grad_enabled() or compiling:
        kept.reconcile()
    else:
        kept.reconcile_for_inference()
    return kept


def without_autocast(tensor: Tensor) -> AbstractContextManager[Any]:
    """Return the context in which operations on the tensor's device keep their types; nothing where they do already."""
    kind = tensor.device.type
    return torch.autocast(kind, enabled=False) if torch.is_autocast_enabled(kind) else _NOTHING


def cannot_follow(kept: SparseParameter, what: str) -> FishexpError:
    """Make the error for what follows a model otherwise than by computing with it."""
    return FishexpError(f"{what} cannot follow {kept.name}, which is partly kept; call sparse.restore() first")


def function_arguments(module: Any, x: Tensor) -> tuple[Any, ...]:
    """Return what the autograd Function of a layer with weight and bias takes.

    Returns:
        Input, weight and bias, under autocast in its type; the kept values of weight and of bias; their
        SparseParameters. The last four are None where a parameter is not partly kept.
    """
    kept = {name: entries_in_use(module, name) for name in ("weight", "bias")}
    weight, bias = (getattr(module, name) if own is None else own.weight.detach() for name, own in kept.items())
    if torch.is_autocast_enabled(x.device.type) and x.dtype != torch.float64:
        dtype = torch.get_autocast_dtype(x.device.type)
        x, weight = x.to(dtype), weight.to(dtype)
        bias = None if bias is None else bias.to(dtype)
    values = (None if own is None else own._parameters["values"] for own in kept.values())
    return x, weight, bias, *values, *kept.values()
