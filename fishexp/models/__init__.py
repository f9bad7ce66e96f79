"""What learns: one file an architecture, each with ``build(classes, channels, *, ...) -> Model``."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn


@dataclass(frozen=True)
class Model:
    """A network, and what must be known about it besides.

    Attributes:
        network: Returns logits (examples, classes), or an object with ``.logits``.
        head: Names of the parameters of its freshly initialised classifier.
        save: Writes the weights, and whatever else is needed to load them again, into a folder.
        tokenizer: Of a model that reads text.
    """

    network: nn.Module
    head: tuple[str, ...]
    save: Callable[[Path], None]
    tokenizer: Any = None
