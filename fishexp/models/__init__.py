"""What learns: one file an architecture, each with ``build(classes, channels, *, ...) -> Model``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from torch import nn

WEIGHTS = "model.safetensors"  # a file of all weights in a folder, as Hugging Face names it


class Save(Protocol):
    """Writes whatever is needed to load a network again into a folder, the weights or all but these."""

    def __call__(self, folder: Path, *, weights: bool = True) -> None: ...


@dataclass(frozen=True)
class Model:
    """A network, and what must be known about it besides.

    Attributes:
        network: Returns logits (examples, classes), or an object with ``.logits``.
        head: Names of the parameters of its freshly initialised classifier.
        save: Writes it into a folder.
        source: Folder, file or hub id that its weights came from; None if some of them but the head's are new.
        tokenizer: Of a model that reads text.
    """

    network: nn.Module
    head: tuple[str, ...]
    save: Save
    source: str | None = None
    tokenizer: Any = None
