"""What reaches or writes a weight otherwise than by its name in a module, where kept entries could not stand in."""

from collections import deque
from collections.abc import Iterator, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.parametrize import ParametrizationList

from fishexp.errors import FishexpError
from fishexp.masks.topk import Mask
from fishexp.sparse.gradient_hooks import has_other_hooks
from fishexp.sparse.parameter import SparseParameter

# attributes of modules that hold weights by name, or that the classes of sparse.modules replace: of recurrent layers
BY_NAME = {"_parameters", "_modules", "_buffers", "_flat_weights"}
# modules that are sequences or mappings of modules
_CONTAINERS = nn.Sequential, nn.ModuleList, nn.ModuleDict


def check_reach(model: nn.Module, parameters: Mapping[str, nn.Parameter], mask: Mask) -> None:
    """Refuse a mask that keeps a weight in part that is reached or written past its module.

    It finds what can be seen before anything runs. What cannot, such as a closure, an object or a view that holds a
    weight, is refused when it brings a gradient: :meth:`fishexp.sparse.parameter.SparseParameter.arm`.

    Args:
        parameters: The model's own parameters by name.
        mask: name -> bool tensor, of the same names.

    Raises:
        FishexpError: With what was found.
    """
    partly = {p: name for name, p in parameters.items() if mask[name].any() and not mask[name].all()}
    for weight, name in partly.items():
        if weight.is_meta:
            raise FishexpError(f"{name} is on the meta device, without values to keep; load the model, then sparsify")
        if type(weight.data) is not Tensor:
            raise FishexpError(f"{name} is a {type(weight.data).__name__}; only plain tensors can be kept in part")
        if has_other_hooks(weight):
            raise FishexpError(
                f"{name} has a hook, which would not be called, as no gradient of it is formed; remove the hook, or "
                "keep it whole or not at all"
            )
    for one, other in _overlaps(parameters):
        if {parameters[one], parameters[other]} & partly.keys():
            raise FishexpError(
                f"{one} and {other} are two parameters in the same memory, so neither can be kept in part; tie them "
                "as one parameter"
            )
    for module in model.modules():
        if isinstance(module, torch.jit.ScriptModule) and not partly.keys().isdisjoint(module.parameters()):
            raise FishexpError(
                f"a {type(module).__name__} is compiled by torch.jit and cannot train weights in part; sparsify the "
                "model that it was made of"
            )
    registered, names = set(model.modules()), {p: name for name, p in parameters.items()}
    for module in registered:
        if (place := _out_of_reach(module, set(partly), registered)) is not None:
            raise FishexpError(
                f"{place} of a {type(module).__name__} holds a weight that the mask keeps in part, where sparsify "
                "cannot stand in for it; keep it whole or not at all, or make it a plain parameter of a module"
            )
        if isinstance(module, nn.Embedding | nn.EmbeddingBag) and module.max_norm is not None:
            name = names.get(module._parameters["weight"])  # type: ignore[arg-type]
            if name is not None and not mask[name].all():
                raise FishexpError(
                    f"{name} is a table with max_norm={module.max_norm:g}, whose forward pass moves entries outside "
                    "the mask; keep it whole, or set max_norm=None"
                )


def _overlaps(parameters: Mapping[str, nn.Parameter]) -> Iterator[tuple[str, str]]:
    """Yield the names of parameters that share memory, by the spans that they lie in."""
    spans = []
    for name, p in parameters.items():
        if p.numel() and not p.is_meta and type(p.data) is Tensor:
            length = 1 + sum((size - 1) * stride for size, stride in zip(p.shape, p.stride(), strict=True))
            spans.append((str(p.device), p.data_ptr(), p.data_ptr() + length * p.element_size(), name))
    last = ("", 0, 0, "")  # the one that reaches farthest
    for span in sorted(spans):
        if span[0] == last[0] and span[1] < last[2]:
            yield last[3], span[3]
        last = max(last, span, key=lambda one: (one[0], one[2]))


def _out_of_reach(module: nn.Module, partly: set[nn.Parameter], registered: set[nn.Module]) -> str | None:
    """Find an attribute through which ``module`` reaches a weight otherwise than by name in a registered module."""
    if isinstance(module, SparseParameter):
        return None
    calls_all = isinstance(module, _CONTAINERS) and not isinstance(module, ParametrizationList)
    if calls_all:  # what stands beside the weight, too
        return next((name for name, p in module._parameters.items() if p in partly), None)
    for name, value in vars(module).items():
        for entry in () if name in BY_NAME else _held(value):
            if isinstance(entry, nn.Parameter) and entry in partly:
                return name
            if isinstance(entry, nn.Module) and entry not in registered and not partly.isdisjoint(entry.parameters()):
                return name
    return None


def _held(value: Any) -> Iterator[Any]:
    """Yield the value or, of a container or partial function, what it holds at any depth.

    Other objects are not looked into: they may lead to all of the program, such as an optimiser of these weights.
    """
    waiting, seen = [value], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen:
            continue
        seen.add(id(value))
        if isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple | set | frozenset | deque):
            waiting.extend(value)
        elif isinstance(value, partial):
            waiting.extend((value.func, value.args, value.keywords))
        else:
            yield value
