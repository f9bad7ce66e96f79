"""Digits: 1,797 images of 8x8 pixels, from scikit-learn (UCI optical recognition of handwritten digits)."""

from typing import Annotated, Any

import torch
from annotated_types import Ge

from fishexp.data.datasets import Dataset, Outline
from fishexp.data.images import Images
from fishexp.data.metrics import accuracy


def load(
    *,
    train_limit: Annotated[int, Ge(1)] | None,
    valid_limit: Annotated[int, Ge(1)] | None,
    holdout: Annotated[int, Ge(0)],
) -> Dataset:
    """Load 1,437 digits to train on, shifted by up to a pixel, and the last 360 to report on."""
    from sklearn.datasets import load_digits

    digits: Any = load_digits()
    pixels = torch.from_numpy(digits.images * (255 / 16)).round().to(torch.uint8)[:, None]  # (1797, 1, 8, 8)
    labels = torch.from_numpy(digits.target).long()
    split = len(labels) * 4 // 5

    def part(chosen: slice) -> Images:
        return Images(pixels[chosen], labels[chosen], mean=(0.305,), std=(0.376,), crop=1)

    names = tuple(map(str, range(10)))
    train, valid = part(slice(split)), part(slice(split, None))
    dataset = Dataset(train, {"": valid}, classes=10, channels=1, metrics=accuracy, names=names)
    return dataset.limited(train_limit, valid_limit, holdout)


def outline() -> Outline:
    """Say what the data set is, without loading it."""
    return Outline(classes=10, channels=1, train=1437)
