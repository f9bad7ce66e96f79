"""The batches that a model is called with, and the logits it returns."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeAlias

from torch import Tensor, nn

# a tensor; a mapping is passed as keyword arguments, a tuple as positional ones; first dimension: examples
Inputs: TypeAlias = Tensor | Mapping[str, Any] | tuple[Any, ...]
Batches: TypeAlias = Iterable[tuple[Inputs, Tensor]]  # (inputs, labels)


def logits_of(model: nn.Module, inputs: Inputs, each: Callable[[Tensor], Tensor] = lambda tensor: tensor) -> Tensor:
    """Call the model and return its logits, be its output a tensor, a tuple, or an object or mapping with ``logits``.

    Args:
        each: Called with each tensor of the inputs; what it returns takes its place.
    """
    inputs = mapped(inputs, each)
    if isinstance(inputs, Mapping):
        outputs = model(**inputs)
    else:
        outputs = model(*inputs) if isinstance(inputs, tuple) else model(inputs)
    if isinstance(outputs, Mapping):
        return outputs["logits"]
    if isinstance(outputs, tuple):
        return getattr(outputs, "logits", outputs[0])
    return getattr(outputs, "logits", outputs)


def select(
    inputs: Inputs, index: slice | list[int], examples: int, shared: frozenset[int | str] = frozenset()
) -> Inputs:
    """Return some of a batch's ``examples``. A tensor without them, such as position ids (1, tokens), stays whole.

    Args:
        shared: Names, or places, of tensors that are as long by chance and stay whole as well.
    """
    if isinstance(inputs, Mapping):
        return {key: v[index] if key not in shared and has_examples(v, examples) else v for key, v in inputs.items()}
    if isinstance(inputs, tuple):
        return tuple(v[index] if i not in shared and has_examples(v, examples) else v for i, v in enumerate(inputs))
    return inputs[index]


def has_examples(value: Any, examples: int) -> bool:
    """Tell whether a value is a tensor as long as there are examples."""
    return isinstance(value, Tensor) and value.dim() > 0 and len(value) == examples


def tensors_of(inputs: Inputs) -> dict[int | str, Tensor]:
    """Return the tensors of the inputs by name or place."""
    if isinstance(inputs, Tensor):
        return {0: inputs}
    items = inputs.items() if isinstance(inputs, Mapping) else enumerate(inputs)
    return {key: value for key, value in items if isinstance(value, Tensor)}


def mapped(inputs: Inputs, each: Callable[[Tensor], Tensor]) -> Inputs:
    """Return the inputs with what ``each`` returns of each tensor."""
    if isinstance(inputs, Tensor):
        return each(inputs)
    if isinstance(inputs, Mapping):
        return {key: each(value) if isinstance(value, Tensor) else value for key, value in inputs.items()}
    return tuple(each(value) if isinstance(value, Tensor) else value for value in inputs)
