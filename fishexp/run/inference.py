"""What a finished run says of new examples: as a pipeline of transformers, or for the rows of a table."""

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from fishexp.data.columns import Columns, find_text
from fishexp.data.examples import texts_of
from fishexp.data.tables import Table
from fishexp.data.text import Sentences
from fishexp.errors import FishexpError
from fishexp.fisher.batches import logits_of
from fishexp.models import Model
from fishexp.run.artifacts import load_trained, preprocessing
from fishexp.system import hardware

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Predicted:
    """Hold what a model says of the rows of a table.

    Attributes:
        columns: Names of the columns that the sentences were in.
        names: Names of the classes; empty for a regression.
        outputs: (rows, classes) probabilities, or (rows, 1) numbers of a regression; float32, on the CPU.
    """

    columns: tuple[str, ...]
    names: tuple[str, ...]
    outputs: Tensor

    def answers(self) -> list[str] | list[float]:
        """Return the name of the most probable class for each row, or the number of a regression."""
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
    epoch: int | None = None,
    allow_code: bool = False,
    allow_download: bool = False,
) -> Predicted:
    """Predict the class of each row of a table, or its number, with the trained model of a run on text.

    Args:
        text: Name of the column of sentences, or the two of pairs; None: those of the run's own table, else found.
        batch_size: Rows a batch; changes speed only.
        device: auto, cpu, cuda or mps.
        epoch: The epoch to load, of a run with ``regime=checkpointing``; None for the last.

    Raises:
        FishexpError: If the run cannot be loaded or was on images, or a column or a text is missing.
    """
    model, about = load_trained(folder, epoch, allow_code, allow_download)
    _check_text(folder, model)
    columns = _columns(table, text, tuple(about.get("columns", ())))
    first, *second = texts_of(table, columns)
    sentences = Sentences(first, second[0] if second else None, torch.zeros(len(first)), about["max_length"])
    with hardware.device(device) as where:
        logits = _logits(model, sentences, batch_size, where)
    classes = about["classes"]
    names = about.get("names") or list(map(str, range(classes)))
    return Predicted(columns, tuple(names), logits.softmax(-1)) if classes > 1 else Predicted(columns, (), logits)


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
        raise _not_text(folder)


def refuse_images(folder: Path) -> None:
    """Refuse a run on images before its model and a file of examples are read.

    Raises:
        FishexpError: If it was on images.
    """
    if "mean" in preprocessing(folder):
        raise _not_text(folder)


def _not_text(folder: str | Path) -> FishexpError:
    return FishexpError(f"{folder} is a run on images, this reads text; fishexp.load_run gives its model")
