"""The weights a run leaves behind, and how to use them again."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from fishexp.data.datasets import Dataset
from fishexp.data.images import Images
from fishexp.data.text import Tokens
from fishexp.delta import Delta
from fishexp.errors import FishexpError
from fishexp.models import DELTA, PREPROCESSING, WEIGHTS, Model, restore_
from fishexp.run.settings import component
from fishexp.system.atomic import replacing, sync
from fishexp.training.checkpoints import BASE, Checkpoints


def save_run(folder: Path, model: Model, data: Dataset, delta: Delta | None = None) -> dict[str, int]:
    """Write the weights and what has to be done to raw examples before the model reads them.

    Args:
        delta: What training changed; written instead of the weights where it is less than half as large, and its base
            is in ``folder`` or was loaded from somewhere. A run with checkpoints has its weights in those.

    Returns:
        Bytes of the weights, ``dense``, and of the ``delta``, if that is what was written.
    """
    sizes = {"dense": sum(t.nbytes for t in model.network.state_dict().values())}
    checkpoints = Checkpoints(folder).last > 0
    small = delta is not None and sum(delta.values(name).nbytes for name in delta.names) < sizes["dense"] / 2
    if delta is not None and small and not checkpoints and (model.source or (folder / BASE).exists()):
        delta.save(folder / DELTA)
        sizes["delta"] = (folder / DELTA).stat().st_size
    whole = not (checkpoints or "delta" in sizes)
    model.save(folder, weights=whole)
    for file in folder.iterdir():
        if file.is_file():
            sync(file)
    if "delta" not in sizes:
        (folder / DELTA).unlink(missing_ok=True)
    if not whole:
        (folder / WEIGHTS).unlink(missing_ok=True)
    about: dict[str, Any] = {"classes": data.classes, "channels": data.channels, "source": model.source}
    if isinstance(data.train, Images):
        about |= {"mean": data.train.mean, "std": data.train.std}
    if isinstance(data.train, Tokens):
        about |= {"max_length": data.train.max_length}
    with replacing(folder / PREPROCESSING) as new:
        new.write_text(json.dumps(about) + "\n")
    return sizes


def forget(folder: Path) -> None:
    """A run begins anew in ``folder``: what an earlier one left is no finished run any more."""
    (folder / PREPROCESSING).unlink(missing_ok=True)
    (folder / BASE).unlink(missing_ok=True)
    Checkpoints(folder).clear()


def load_run(folder: str | Path, epoch: int | None = None) -> tuple[nn.Module, Callable[..., Any]]:
    """The trained model of a run folder, in evaluation mode on the CPU, and what prepares its inputs.

    Args:
        epoch: Of a run with ``regime=checkpointing``: the model after so many epochs, 0 for the first one; None for
            the last.

    Returns:
        model: As during training: its logits are (examples, classes).
        prepare: For images: uint8 (examples, channels, height, width) -> what the model takes. For text: one or two
            lists of sentences -> keyword arguments for the model.

    Raises:
        FishexpError: If ``folder`` is not that of a finished run, or the run has no such epoch.
    """
    folder = Path(folder)
    try:
        about = json.loads((folder / PREPROCESSING).read_text())
        options: Any = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    except OSError as error:
        raise FishexpError(f"{folder} is not the folder of a finished run: {error.filename} is missing") from None
    options["model"] |= {"path": str(folder)}
    if "pretrained" in options["model"]:
        options["model"]["pretrained"] = True  # the run's own weights, even where it began with random ones
    build = component("model", options["model"])
    model: Model = build(about["classes"], about["channels"])
    if epoch is not None:
        if not Checkpoints(folder).last:
            raise FishexpError(f"epoch={epoch}: the run in {folder} kept its last epoch only; use regime=checkpointing")
        restore_(model.network, folder, epoch)
    if model.tokenizer is None:
        images = Images(torch.empty(0), torch.empty(0), mean=tuple(about["mean"]), std=tuple(about["std"]))
        return model.network.eval(), images.normalise

    def tokenise(*texts: Sequence[str]) -> dict[str, Tensor]:
        if any(isinstance(text, str) for text in texts):
            raise FishexpError("prepare takes lists of sentences, got a single string; put it into a list")
        encoded = model.tokenizer(
            *map(list, texts), truncation=True, max_length=about["max_length"], padding=True, return_tensors="pt"
        )
        return dict(encoded)

    return model.network.eval(), tokenise
