"""The weights a run leaves behind, and how to use them again."""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf
from torch import Tensor, nn

from fishexp.errors import FishexpError
from fishexp.examples import Data
from fishexp.images import Images
from fishexp.models import Model
from fishexp.settings import component
from fishexp.text import Tokens

PREPROCESSING = "preprocessing.json"


def save_run(folder: Path, model: Model, data: Data) -> None:
    """Write the weights and what has to be done to raw examples before the model reads them."""
    model.save(folder)
    about: dict[str, Any] = {"classes": data.classes, "channels": data.channels}
    if isinstance(data.train, Images):
        about |= {"mean": data.train.mean, "std": data.train.std}
    if isinstance(data.train, Tokens):
        about |= {"max_length": data.train.max_length}
    (folder / PREPROCESSING).write_text(json.dumps(about) + "\n")


def load_run(folder: str | Path) -> tuple[nn.Module, Callable[..., Any]]:
    """The trained model of a run folder, in evaluation mode on the CPU, and what prepares its inputs.

    Returns:
        model: As during training: its logits are (examples, classes).
        prepare: For images: uint8 (examples, channels, height, width) -> what the model takes. For text: one or two
            lists of sentences -> keyword arguments for the model.

    Raises:
        FishexpError: If ``folder`` is not that of a finished run.
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
