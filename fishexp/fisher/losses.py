"""What an example's loss is, and the terms whose gradients make its Fisher information.

The loss of an example is the sum over its own positions (tokens, pixels) that are not ignored. Nothing that a mean over
the batch divides by belongs to it, be it the number of tokens or the sum of class weights.
"""

import copy
from collections.abc import Callable
from functools import partial
from inspect import signature
from typing import Any, Literal, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from fishexp.errors import FishexpError
from fishexp.fisher.powers import Power

# (logits, labels) -> mean over the batch, or the loss of each example
Loss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
Labels: TypeAlias = Literal["true_label", "expected", "sampled"]

# label of positions without a loss, as in F.cross_entropy
IGNORED = -100
# backward passes a batch: positions * classes; ``expected`` refuses more
MAX_PASSES = 10_000


def example_losses(loss: Loss | None, logits: Tensor, labels: Tensor) -> Tensor:
    """Return (examples,) the loss of each example.

    Args:
        loss: Cross-entropy if None. One of torch is computed without its reduction.
    """
    if loss is None:
        logits = classes_last(logits, labels)
        losses = F.cross_entropy(logits.movedim(-1, 1), labels, ignore_index=IGNORED, reduction="none")
    elif (unreduced := _unreduced(loss)) is not None:
        losses = unreduced(logits, labels)
    else:
        losses = loss(logits, labels) if len(logits) > 1 else loss(logits, labels).reshape(1, -1)
        if losses.dim() == 0:
            rows = range(len(logits))
            losses = torch.stack([loss(logits[i : i + 1], labels[i : i + 1]).reshape(()) for i in rows])
    if losses.dim() == 0 or len(losses) != len(logits):
        raise FishexpError(f"loss returns {tuple(losses.shape)} for {len(logits)} examples; return their mean or each")
    return losses.reshape(len(logits), -1).sum(1)


def check_loss(loss: Loss | None, logits: Tensor, labels: Tensor) -> None:
    """Refuse a loss that divides by a sum over the batch other than the number of examples.

    Raises:
        FishexpError: If it is neither the mean nor the sum of the losses of each example.
    """
    if loss is None or len(logits) < 2 or _unreduced(loss) is not None:
        return
    with torch.no_grad():
        together = loss(logits, labels)
        if together.dim():
            return
        alone = example_losses(loss, logits, labels)
    nearest = min((alone.mean(), alone.sum()), key=lambda value: (value - together).abs().item())
    if not (nearest - together).abs() <= 1e-3 * alone.abs().sum():
        raise FishexpError(
            f"loss is {together:.4g} for a batch and {alone.mean():.4g} on average for each of its examples alone: it "
            "divides by a sum over the batch, such as that of class weights or tokens; return the loss of each example"
        )


def expected_terms(logits: Tensor, labels: Tensor, power: Power) -> list[Tensor]:
    """Return (examples,) terms whose gradients' powers add up to the expectation over labels drawn from the model.

    Raises:
        FishexpError: If there are too many, or the expectation has no such form.
    """
    log_probs, counted = _log_probs(logits, labels, "expected")
    positions, classes = log_probs.shape[1:]
    if positions > 1 and power == "absolute":
        raise FishexpError("labels=expected with power=absolute needs examples with one label each; use sampled")
    if positions * classes > MAX_PASSES:
        raise FishexpError(
            f"labels=expected takes a backward pass for each of {positions} positions and {classes} classes; "
            "use sampled, which takes one"
        )
    probs = log_probs.detach().exp() * counted
    factors = probs.sqrt() if power == "square" else probs  # the weight p of a power of the gradient, as its factor
    return [factors[:, p, c] * log_probs[:, p, c] for p in range(positions) for c in range(classes)]


def sampled_term(logits: Tensor, labels: Tensor, generator: torch.Generator) -> Tensor:
    """Return (examples,) the log-likelihood of labels drawn from the model."""
    log_probs, counted = _log_probs(logits, labels, "sampled")
    probs = log_probs.detach().exp().nan_to_num(1.0).to(generator.device)  # any label will do where scores become NaN
    drawn = torch.stack([torch.multinomial(p, 1, generator=generator) for p in probs]).to(logits.device)
    return (log_probs.gather(2, drawn) * counted).sum((1, 2))


def classes_last(logits: Tensor, labels: Tensor) -> Tensor:
    """Return logits (examples, ..., classes), of which the second dimension may have been the classes.

    Raises:
        FishexpError: If the labels' shape does not tell which dimension it is.
    """
    if logits.dim() == 2:
        return logits
    second = logits.dim() > 2 and logits.shape[:1] + logits.shape[2:] == labels.shape
    last = logits.dim() > 2 and logits.shape[:-1] == labels.shape
    if second == last:
        shapes = f"logits {tuple(logits.shape)} and labels {tuple(labels.shape)}"
        raise FishexpError(
            f"{shapes} do not tell which dimension has the classes; flatten to (examples, classes) and (examples,)"
            + (", or pass loss" if second else "")
        )
    return logits if last else logits.movedim(1, -1)


def _log_probs(logits: Tensor, labels: Tensor, kind: Labels) -> tuple[Tensor, Tensor]:
    """Return log-probabilities (examples, positions, classes), and which count: (examples, positions, 1)."""
    if logits.shape[-1] == 1 or logits.dim() < 2:
        raise FishexpError(f"labels={kind} needs classes to draw from, but the model has one output; use true_label")
    log_probs = classes_last(logits, labels).log_softmax(-1)
    log_probs = log_probs.reshape(len(logits), -1, log_probs.shape[-1])
    if logits.dim() == 2 and labels.numel() != len(logits):  # no classes but their probabilities, none of which is read
        return log_probs, log_probs.new_ones(len(logits), 1, 1)
    return log_probs, (labels != IGNORED).reshape(len(logits), -1, 1).to(log_probs.dtype)


def _unreduced(loss: Any) -> Loss | None:
    """Return a loss of torch without its reduction; None for others."""
    if isinstance(loss, nn.Module):
        if not hasattr(loss, "reduction") or not type(loss).__module__.startswith("torch.nn."):
            return None
        loss = copy.copy(loss)
        loss.reduction = "none"
        return loss
    function = loss.func if isinstance(loss, partial) else loss
    if getattr(function, "__module__", None) != F.__name__ or "reduction" not in signature(function).parameters:
        return None
    return partial(loss, reduction="none")
