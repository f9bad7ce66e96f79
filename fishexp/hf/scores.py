"""Scores from what a Trainer would train on: its examples, its collator, its loss."""

import copy
import logging
import random
from collections.abc import Generator, Iterator, Mapping
from contextlib import contextmanager
from itertools import chain
from typing import Any

import numpy as np
import torch
from accelerate.data_loader import DataLoaderStateMixin
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import PreTrainedModel, Trainer

from fishexp.errors import FishexpError
from fishexp.fisher import diagonal_fisher
from fishexp.fisher.batches import Batches, logits_of, select
from fishexp.fisher.eval_mode import attributes_kept, evaluating, forked_random_streams
from fishexp.fisher.losses import IGNORED, Labels, Loss, example_losses
from fishexp.masks.topk import Scores

log = logging.getLogger(__name__)

# by how much, relatively, the trainer's loss may differ from the mean of what is scored, by the type of the logits
TOLERANCES = {torch.float16: 0.01, torch.bfloat16: 0.01, torch.float32: 1e-4, torch.float64: 1e-4}


def fisher_scores(
    trainer: Trainer, samples: int = 1024, labels: Labels = "true_label", loss: Loss | None = None
) -> Scores:
    """Compute the Fisher information of a trainer's model over the first examples of its train dataloader.

    They come through the trainer's collator; the global random streams are as before afterwards. The loss is the
    cross-entropy of classes, tokens (-100 is no label) or next tokens, the binary one of several labels, or the squared
    error, whichever is the trainer's; any other is refused, and has to be given.

    Args:
        samples: How many examples; all of them if there are fewer.
        labels: As for :func:`fishexp.diagonal_fisher`: ``true_label``, or of classes ``expected`` or ``sampled``.
        loss: (logits, labels) -> mean over the batch or the loss of each example, with the labels as the collator
            gives them.

    Returns:
        As :func:`fishexp.diagonal_fisher`, for :func:`fishexp.top_k`.

    Raises:
        FishexpError: If there is no example, the batches have not exactly one of the trainer's labels, its loss is none
            of those above, or none of classes though ``labels`` are drawn, or it is one of several processes, whose
            examples differ.
    """
    if trainer.accelerator.num_processes > 1:
        raise FishexpError(
            "each process would score other examples and find another mask; score in one, and give all the file of "
            "fishexp.masks.save_mask"
        )
    model: Any = trainer.model  # by its types it may be None
    batches = _batches(trainer, samples)
    with _streams_kept(model):
        try:
            first = next(batches, None)
            if first is None:
                raise FishexpError("the trainer's train dataloader gives no example to score")
            shifts = False
            if loss is None:
                loss, shifts = _loss_of(trainer, first)
                if loss is not None and labels != "true_label":
                    what = "the binary one of several labels" if loss is _binary else "a squared error"
                    about = f"labels={labels} draws one of a model's classes, and the trainer's loss is {what}"
                    raise FishexpError(f"{about}; use true_label")
            pairs = _pairs(model, chain([first], batches), _label_name(trainer, first), shifts=shifts)
            with trainer.accelerator.autocast():
                return diagonal_fisher(model, pairs, labels, loss=loss)
        finally:
            batches.close()


def head(model: nn.Module) -> tuple[str, ...]:
    """Name the weights that a transformers model has outside of its base model, for ``always`` of ``top_k``.

    They are those of a head, which is usually new. A language model's, which is pre-trained, is none.

    Raises:
        FishexpError: If it is no model of transformers.
    """
    if not isinstance(model, PreTrainedModel):
        raise FishexpError(f"a {type(model).__name__} does not tell which part of it is a head; name its weights")
    if model.get_output_embeddings() is not None:
        return ()
    within = set(model.base_model.parameters())
    return tuple(name for name, p in model.named_parameters() if p not in within)


@contextmanager
def _streams_kept(model: nn.Module) -> Iterator[None]:
    """Restore the global random streams afterwards, Python's and numpy's too, from which collators may draw."""
    python, numbers = random.getstate(), np.random.get_state()
    try:
        with forked_random_streams(model):
            yield
    finally:
        random.setstate(python)
        np.random.set_state(numbers)


def _batches(trainer: Trainer, samples: int) -> Generator[dict[str, Any]]:
    """Yield what the collator makes of the first examples, on the model's device; ``samples`` of them at most."""
    left, loader = samples, trainer.get_train_dataloader()
    try:
        for batch in loader:
            if left <= 0:
                return
            inputs: Any = trainer._prepare_inputs(batch)
            count = len(inputs[_label_name(trainer, inputs)])
            part: Any = inputs if count <= left else select(inputs, slice(0, left), count)
            yield part
            left -= count
    finally:
        if isinstance(loader, DataLoaderStateMixin):
            loader.end()  # else accelerate takes it for the one that training reads
    if left > 0:
        log.warning("samples=%d: there are %d training examples, all are used", samples, samples - left)


def _label_name(trainer: Trainer, inputs: Mapping[str, Any]) -> str:
    names = [name for name in trainer.label_names if isinstance(inputs.get(name), Tensor)]
    if len(names) != 1:
        raise FishexpError(
            f"the batches have {', '.join(names) or 'none'} of the trainer's labels {', '.join(trainer.label_names)}; "
            "an example needs one tensor of labels to be scored"
        )
    return names[0]


def _pairs(model: nn.Module, batches: Iterator[dict[str, Any]], name: str, *, shifts: bool) -> Batches:
    """Yield inputs and labels, of each token that of the next one if ``shifts``."""
    for batch in batches:
        yield _without_labels(model, batch, name), _shifted(batch[name]) if shifts else batch[name]


def _without_labels(model: nn.Module, inputs: dict[str, Any], name: str) -> dict[str, Any]:
    """Return what the logits are made of: of an encoder-decoder's labels are its decoder's inputs."""
    keeps = getattr(getattr(model, "config", None), "is_encoder_decoder", False)
    return {key: value for key, value in inputs.items() if key != name or keeps}


def _shifted(labels: Tensor) -> Tensor:
    """Return for each token the label of the next one; the last has none."""
    return F.pad(labels[:, 1:], (0, 1), value=IGNORED)


def _loss_of(trainer: Trainer, inputs: dict[str, Any]) -> tuple[Loss | None, bool]:
    """Find what the trainer's loss is, None for cross-entropy, and whether tokens are labelled by the next ones.

    It is one whose mean over all labels of a batch is the loss that the trainer computes.

    Raises:
        FishexpError: If there is none.
    """
    if trainer.label_smoother is not None or trainer.compute_loss_func is not None:  # near equal in a new model
        what = "compute_loss_func" if trainer.label_smoother is None else "label_smoothing_factor"
        raise FishexpError(
            f"the trainer has a {what}, so its loss is its own; give loss=, a function of logits and labels"
        )
    model: Any = trainer.model
    name = _label_name(trainer, inputs)
    labels, value = inputs[name], _own_loss(trainer, inputs)
    with torch.no_grad(), evaluating(model), attributes_kept(model):
        logits = logits_of(model, _without_labels(model, inputs, name))
    tolerance = TOLERANCES[logits.dtype]
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    of_classes = not labels.is_floating_point()
    tried = [(None, False), (None, True)] if of_classes else [(_binary, False), (_squared_error, False)]
    found: list[tuple[Loss | None, bool]] = []
    for loss, shifts in tried:
        if shifts and (labels.dim() < 2 or logits.dim() < 3):
            continue
        if loss is not None and logits.numel() != labels.numel():
            continue
        wanted = _shifted(labels) if shifts else labels
        count = int((wanted != IGNORED).sum()) if of_classes else labels.numel()
        mean = example_losses(loss, logits, wanted).sum() / count
        if abs(mean - value) <= tolerance * abs(value):
            found.append((loss, shifts))
    if found:
        return (None, _labels_next(trainer, inputs)) if len(found) > 1 and of_classes else found[0]
    raise FishexpError(
        f"the trainer's loss is {float(value):.4g}, which is neither the cross-entropy nor the squared error of its "
        "logits and labels; give loss=, a function of these"
    )


def _own_loss(trainer: Trainer, inputs: dict[str, Any]) -> Any:
    """Compute the trainer's own loss of a batch, with its model in evaluation mode."""
    model: Any = trainer.model
    metrics = copy.deepcopy(vars(trainer).get("_metrics"))
    with torch.no_grad(), evaluating(model), attributes_kept(model):
        value = trainer.compute_loss(model, dict(inputs))
    if metrics is not None:
        vars(trainer)["_metrics"] = metrics  # in which TRL's trainers collect what compute_loss finds
    return value


def _labels_next(trainer: Trainer, inputs: dict[str, Any]) -> bool:
    """Tell whether tokens are labelled by the next ones: a label of the first token alone counts for nothing then.

    To a new model all labels are about as likely, so that the loss itself does not tell.
    """
    name = _label_name(trainer, inputs)
    labels = inputs[name]
    first = torch.full_like(labels, IGNORED)
    first[:, 0] = labels[labels != IGNORED][0]
    return not _own_loss(trainer, {**inputs, name: first}) > 0  # a mean over no labels is zero or NaN


def _binary(logits: Tensor, labels: Tensor) -> Tensor:
    return F.binary_cross_entropy_with_logits(logits.reshape(labels.shape), labels, reduction="none")


def _squared_error(logits: Tensor, labels: Tensor) -> Tensor:
    return (logits.reshape(labels.shape) - labels).square()
