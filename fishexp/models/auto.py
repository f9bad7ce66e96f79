"""Any sentence classifier of transformers: DistilBERT, RoBERTa, ALBERT, DeBERTa, ELECTRA, MPNet, GPT-2 and others."""

import torch

from fishexp.errors import FishexpError, first_line
from fishexp.models import Model, Outline
from fishexp.models.text_classifier import load_classifier, outline_classifier

# a short text and one by which it is padded
_SHORT, _LONG = "a", "a " * 8
# largest difference of logits, and relative to the largest of them, that is rounding
_ROUNDING = 1e-4


def build(classes: int, channels: int, *, path: str, pretrained: bool, activation_checkpointing: bool) -> Model:
    """Build a classifier in float32 with ``classes`` outputs, freshly initialised unless ``path`` has one.

    Args:
        classes: Number of labels; 1 is a regression.
        channels: Must be 0: text.
        path: Folder or hub id.
        pretrained: If false, random weights in the shape that the config.json at ``path`` gives.
        activation_checkpointing: Recompute activations in the backward pass.

    Raises:
        FishexpError: As :func:`fishexp.models.text_classifier.load_classifier` does, and if the network cannot read a
            batch, or reads an example otherwise beside a longer one.
    """
    model = load_classifier(
        path, classes, channels, pretrained=pretrained, activation_checkpointing=activation_checkpointing
    )
    _check_batches(path, model)
    return model


def outline(classes: int | None, channels: int, *, path: str, pretrained: bool) -> Outline:
    """Build a classifier without weights, as :func:`fishexp.models.text_classifier.outline_classifier` does."""
    return outline_classifier(path, classes, channels, pretrained=pretrained)


def _check_batches(path: str, model: Model) -> None:
    """Check that a text has the same logits alone and padded, as it has not where padding is taken for tokens."""
    training = model.network.training
    model.network.eval()
    try:
        with torch.no_grad():
            logits = [
                model.network(**model.tokenizer(texts, padding=True, return_tensors="pt")).logits[0]
                for texts in ([_SHORT], [_SHORT, _LONG])
            ]
    except Exception as error:  # whatever a network raises that wants other inputs
        raise FishexpError(
            f"model.path={path} is a {type(model.network).__name__}, which cannot read texts in batches: "
            f"{first_line(error)}"
        ) from None
    finally:
        model.network.train(training)
    alone, padded = logits
    if not torch.allclose(alone, padded, rtol=_ROUNDING, atol=_ROUNDING):
        raise FishexpError(
            f"model.path={path} is a {type(model.network).__name__}, which reads padding as if it were text; is the "
            f"pad_token_id of its config.json that of its tokenizer, {model.tokenizer.pad_token_id}?"
        )
