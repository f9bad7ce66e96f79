"""What a finished run says of new examples: as a pipeline of transformers, for the rows of a table, or for images."""

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor

from fishexp.data.columns import Columns, find_text
from fishexp.data.examples import texts_of
from fishexp.data.image_files import CHANNELS, read_images
from fishexp.data.tables import Table
from fishexp.data.text import Sentences
from fishexp.errors import FishexpError
from fishexp.fisher.batches import logits_of
from fishexp.models import Model
from fishexp.run.artifacts import PREPROCESSING, check_finished, load_run, load_trained, preprocessing
from fishexp.system import hardware

log = logging.getLogger(__name__)

_LARGEST = 1 << 12  # pixels of a side that a run folder may claim


class Loading(TypedDict, total=False):
    """Say how a run is loaded, as to :func:`fishexp.load_run`."""

    epoch: int | None
    allow_code: bool
    allow_download: bool


@dataclass(frozen=True)
class Predicted:
    """Hold what a model says of the rows of a table, or of images.

    Attributes:
        names: Names of the classes; empty for a regression.
        outputs: (examples, classes) probabilities, or (examples, 1) numbers of a regression; float32, on the CPU.
    """

    names: tuple[str, ...]
    outputs: Tensor

    def answers(self) -> list[str] | list[float]:
        """Return the name of the most probable class of each example, or the number of a regression."""
        if not self.names:
            return self.outputs[:, 0].tolist()
        return [self.names[number] for number in self.outputs.argmax(-1).tolist()]


def load_pipeline(
    folder: str | Path, epoch: int | None = None, allow_code: bool = False, allow_download: bool = False
) -> Any:
    """Load the trained model of a run on text as a text-classification pipeline of transformers.

    It names the classes as the data set did, and cuts texts where training did. Arguments and errors are those of
    :func:`fishexp.load_run`.

    Returns:
        A ``transformers.TextClassificationPipeline``, which takes a text, or ``{"text": ..., "text_pair": ...}``.

    Raises:
        FishexpError: Also if the run was on images.
    """
    from transformers import TextClassificationPipeline

    model, about = load_trained(Path(folder), epoch, allow_code, allow_download)
    _check_text(folder, model)
    return TextClassificationPipeline(
        model=model.network, tokenizer=model.tokenizer, truncation=True, max_length=about["max_length"]
    )  # type: ignore[arg-type]


def predict(
    folder: Path,
    table: Table,
    *,
    text: Columns = None,
    batch_size: int = 64,
    device: str = "auto",
    **loading: Unpack[Loading],
) -> Predicted:
    """Predict the class of each row of a table, or its number, with the trained model of a run on text.

    Args:
        text: Name of the column of sentences, or the two of pairs; None: those of the run's own table, else found.
        batch_size: Rows a batch; changes speed only.
        device: auto, cpu, cuda or mps.
        loading: How the run is loaded.

    Raises:
        FishexpError: If the run cannot be loaded or was on images, or a column or a text is missing.
    """
    model, about = load_trained(folder, **loading)
    _check_text(folder, model)
    columns = _columns(table, text, tuple(about.get("columns", ())))
    first, *second = texts_of(table, columns)
    sentences = Sentences(first, second[0] if second else None, torch.zeros(len(first)), about["max_length"])
    with hardware.device(device) as where:
        logits = _logits(model, sentences, batch_size, where)
    return _predicted(folder, logits, about)


def predict_images(
    folder: Path, files: Sequence[Path], *, batch_size: int = 64, device: str = "auto", **loading: Unpack[Loading]
) -> Predicted:
    """Predict the class of each image with the trained model of a run on images, in the size that the run had them in.

    Args:
        files: One image each; of those that are larger or of another shape the centre is taken.
        batch_size: Images read and predicted at a time; changes speed only.
        device: auto, cpu, cuda or mps.
        loading: How the run is loaded.

    Raises:
        FishexpError: If the run cannot be loaded or does not say how large its images were, or an image cannot be read.
    """
    about = preprocessing(folder)
    size, parts = _size(folder, about), []
    network, prepare = load_run(folder, **loading)
    with hardware.device(device) as where, torch.no_grad():
        network.to(where)
        for start in range(0, len(files), batch_size):
            inputs = prepare(read_images(files[start : start + batch_size], size, about["channels"]))
            parts.append(logits_of(network, inputs, lambda tensor: tensor.to(where)).float().cpu())
    return _predicted(folder, torch.cat(parts), about)


def _size(folder: Path, about: Mapping[str, Any]) -> tuple[int, int]:
    """Return height and width of a run's images, in pixels; refuse those that no file holds."""
    if (channels := about.get("channels")) not in tuple(CHANNELS):
        raise FishexpError(f"{folder} is a run on images of {channels!r} channels; files have one or three")
    match about.get("size"):
        case [int(height), int(width)] if 0 < height <= _LARGEST and 0 < width <= _LARGEST:
            return height, width
        case None:
            raise FishexpError(
                f"{folder} does not say how large its images were, as runs of earlier versions do not; "
                "fishexp.load_run gives its model"
            )
        case size:
            raise FishexpError(f"{folder / PREPROCESSING} has size={size!r}; it is not what a run writes")


def _predicted(folder: Path, logits: Tensor, about: Mapping[str, Any]) -> Predicted:
    classes = about["classes"]
    if classes == 1:
        return Predicted((), logits)
    names = about.get("names") or list(map(str, range(classes)))
    if not isinstance(names, list) or len(names) != classes or not all(isinstance(name, str) for name in names):
        raise FishexpError(f"{folder / PREPROCESSING} does not name {classes} classes; it is not what a run writes")
    return Predicted(tuple(names), logits.softmax(-1))


@torch.no_grad()
def _logits(model: Model, sentences: Sentences, batch_size: int, device: torch.device) -> Tensor:
    """Compute the logits of sentences, (examples, classes), those of like length together."""
    network, tokens = model.network.to(device), sentences.tokenised(model.tokenizer)
    parts, order = [], tokens.lengths.argsort(descending=True)
    for chosen in order.split(batch_size):
        inputs, _ = tokens.batch(chosen)
        parts.append(logits_of(network, inputs, lambda tensor: tensor.to(device)).float().cpu())
    return torch.cat(parts)[order.argsort()]


def _columns(table: Table, text: Columns, trained: Sequence[str]) -> tuple[str, ...]:
    """Choose the columns of sentences; a file for a run on pairs has two."""
    if text is None and trained and set(trained) <= set(table.columns):
        return tuple(trained)
    columns = find_text(table, text)
    if trained and len(columns) != len(trained):
        texts = " and ".join(trained)
        raise FishexpError(f"{table.source}: the run read {texts}, this is {' and '.join(columns)}; name others")
    if text is None and trained:
        log.warning(
            "%s: the run read %s, which it lacks; %s is read instead",
            table.source, " and ".join(trained), " and ".join(columns),
        )  # fmt: skip
    return columns


def _check_text(folder: str | Path, model: Model) -> None:
    if model.tokenizer is None:
        raise FishexpError(f"{folder} is a run on images, this reads text; fishexp.load_run gives its model")


def is_on_images(folder: Path) -> bool:
    """Tell whether a finished run was on images, before its model is read.

    Raises:
        FishexpError: If there is no such run.
    """
    check_finished(folder)
    return "mean" in preprocessing(folder)
