"""What learns: one file an architecture, each with ``build(classes, channels, *, ...) -> Model``."""

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from safetensors.torch import load_model
from torch import nn

from fishexp.delta import Delta
from fishexp.errors import FishexpError
from fishexp.training.checkpoints import BASE, Checkpoints

WEIGHTS, DELTA, PREPROCESSING = "model.safetensors", "delta.safetensors", "preprocessing.json"


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


def changes(folder: Path) -> bool:
    """Whether it is the folder of a run that left what training changed, not the weights."""
    return not (folder / WEIGHTS).exists() and ((folder / DELTA).exists() or Checkpoints(folder).last > 0)


def origin(folder: Path) -> str | None:
    """Where the weights were loaded from that a run changed, if ``folder`` is the run's and has only the change.

    Raises:
        FishexpError: If they are not there any more.
    """
    if (folder / BASE).exists() or not changes(folder):
        return None
    source = json.loads((folder / PREPROCESSING).read_text()).get("source")
    if source is None or (Path(source).is_absolute() and not Path(source).exists()):
        raise FishexpError(f"{folder} holds what training changed in {source or 'a base'}, which is not there any more")
    return source


def restore_(network: nn.Module, folder: Path, epoch: int | None = None) -> None:
    """Make a network that has the weights of :func:`origin` the trained one of the run in ``folder``.

    Args:
        epoch: Of a run with checkpoints; None for the last.

    Raises:
        FishexpError: If the run has no such epoch, or its base is another than it was.
    """
    if not changes(folder):
        return
    if (folder / BASE).exists():
        load_model(network, folder / BASE)
    if (folder / DELTA).exists():
        Delta.load(folder / DELTA).apply_(network)
    else:
        checkpoints = Checkpoints(folder)
        checkpoints.restore_(network, checkpoints.last if epoch is None else epoch)
