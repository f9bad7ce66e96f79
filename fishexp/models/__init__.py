"""Models: one file an architecture, each with ``build(classes, channels, *, ...) -> Model``.

It may have ``outline(classes, channels, *, ...) -> Outline`` too, which takes options of ``build``: the network without
weights, for ``plan=true``. ``classes`` is None where nobody knows before the data are read.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple, Protocol

from torch import nn

WEIGHTS = "model.safetensors"  # a file of all weights in a folder, as Hugging Face names it


class Save(Protocol):
    """Write what is needed to load a network again into a folder: all of it, or all but the weights."""

    def __call__(self, folder: Path, *, weights: bool = True) -> None: ...


class Outline(NamedTuple):
    """Hold a network on the meta device, which has shapes and no values, and the names of its head's parameters."""

    network: nn.Module
    head: tuple[str, ...]


@dataclass(frozen=True)
class Model:
    """Hold a network with what training and its run folder need to know about it.

    Attributes:
        network: Returns logits (examples, classes), or an object with ``.logits``.
        head: Names of the parameters of the classifier.
        save: Writes the network into a folder.
        source: Folder, file or hub id that the weights came from; None if any outside the head are new.
        tokenizer: Tokenizer of a model that reads text, else None.
        classes: Names of the classes in the order of the logits, if the classifier came with them; None if it is new,
            or nobody named them.
        normalisation: Mean and standard deviation of each channel, in [0, 1], of the images that its weights come from;
            None: it takes those of the data set.
        name_classes: Writes the names of the classes to where the network keeps them and ``save`` finds them; None if
            it keeps none.
    """

    network: nn.Module
    head: tuple[str, ...]
    save: Save
    source: str | None = None
    tokenizer: Any = None
    classes: tuple[str, ...] | None = None
    name_classes: Callable[[Sequence[str]], None] | None = None
    normalisation: tuple[tuple[float, ...], tuple[float, ...]] | None = None
