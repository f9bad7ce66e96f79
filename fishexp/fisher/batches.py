"""The batches that a model is called with, and the logits it returns."""

from collections.abc import Iterable, Mapping
from typing import TypeAlias

from torch import Tensor, nn

Inputs: TypeAlias = Tensor | Mapping[str, Tensor]  # first dimension: examples; a mapping is passed as keyword arguments
Batches: TypeAlias = Iterable[tuple[Inputs, Tensor]]  # (inputs, labels)


def logits_of(model: nn.Module, inputs: Inputs) -> Tensor:
    """Call the model and return its logits, be its output a tensor or an object with ``.logits``."""
    outputs = model(**inputs) if isinstance(inputs, Mapping) else model(inputs)
    return getattr(outputs, "logits", outputs)


def select(inputs: Inputs, index: slice | list[int], examples: int) -> Inputs:
    """Return some of a batch's ``examples``. A tensor without them, such as position ids (1, tokens), stays whole."""
    if isinstance(inputs, Mapping):
        return {key: value[index] if len(value) == examples else value for key, value in inputs.items()}
    return inputs[index]
