"""Folders of images, one for each class, as torchvision's ImageFolder reads them; held in memory in one size."""

import logging
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Lt
from torch import Tensor

from fishexp.data.datasets import Dataset, Outline, split_off
from fishexp.data.image_files import ENDINGS, image_files, read_images
from fishexp.data.images import Images
from fishexp.data.metrics import accuracy
from fishexp.errors import FishexpError
from fishexp.system.hardware import free_memory

log = logging.getLogger(__name__)

# folder of the images to train on, and those to report on, the first that is there
_TRAIN, _VALID = "train", ("val", "valid", "validation", "dev", "test")
# words of names that such folders have elsewhere
_TRAINS, _REPORTS = {_TRAIN, "training"}, {*_VALID, "testing"}
# share of the free memory that images may take up
_SHARE = 0.8
# images that are counted together for mean and standard deviation
_TOGETHER = 256


def load(
    *,
    root: str,
    size: Annotated[int, Ge(8)],
    flip: bool,
    valid_fraction: Annotated[float, Gt(0), Lt(1)],
    train_limit: Annotated[int, Ge(1)] | None,
    valid_limit: Annotated[int, Ge(1)] | None,
    holdout: Annotated[int, Ge(0)],
) -> Dataset:
    """Load images from ``root/train/CLASS/...`` and ``root/val/CLASS/...``, or all from ``root/CLASS/...``.

    Each is resized to ``size`` at its shorter side and cut to its centre. Training images are shifted by up to an
    eighth of that. Mean and standard deviation are those of the training images.

    Args:
        root: The folder; that of the images to report on may be called val, valid, validation, dev or test.
        size: Side of the images, in pixels.
        flip: Mirror half of the training images.
        valid_fraction: Share of the training images to report on where no folder has others.

    Raises:
        FishexpError: If there are no such folders, a class or an image is missing or cannot be read, or they do not fit
            into memory.
    """
    train, valid, names = _listed(Path(root), valid_fraction)
    listed = Dataset(train, {"": valid}, len(names), channels=3, metrics=accuracy, names=names)
    listed = listed.limited(train_limit, valid_limit, holdout)
    _check_memory(sum(map(len, (listed.train, *listed.valid.values()))), size)
    pixels = read_images(listed.train.paths, (size, size))
    mean, std = _moments(pixels)
    options: dict[str, Any] = {"mean": mean, "std": std, "crop": size // 8, "flip": flip}
    reported = {
        name: Images(read_images(part.paths, (size, size)), part.labels, **options)
        for name, part in listed.valid.items()
    }
    return Dataset(
        Images(pixels, listed.train.labels, **options), reported, len(names), channels=3, metrics=accuracy, names=names
    )


def outline(*, root: str, valid_fraction: float) -> Outline:
    """Count classes and training images by the names of their files, without opening any."""
    train, _, names = _listed(Path(root), valid_fraction)
    return Outline(len(names), channels=3, train=len(train))


@dataclass(frozen=True)
class _Files:
    """Hold images on disk, with the numbers of their classes."""

    paths: list[Path]
    labels: Tensor  # (images,)

    def __len__(self) -> int:
        return len(self.paths)

    def subset(self, index: Tensor) -> "_Files":
        return _Files([self.paths[i] for i in index.tolist()], self.labels[index])


def _listed(root: Path, valid_fraction: float) -> tuple[_Files, _Files, tuple[str, ...]]:
    """List the images to train on and to report on, and the names of the classes."""
    if not root.is_dir():
        raise FishexpError(
            f"data.root={root} is not a folder; it holds train/CLASS/... and val/CLASS/..., or CLASS/..."
        )
    train = _part(root, (_TRAIN,)) or root
    names = _classes(train)
    if train == root:
        _check_no_parts(root, names)
    if len(names) < 2:
        found = f"holds one class, {names[0]}" if names else "holds no folders, one for each class"
        raise FishexpError(f"{train} {found}; two classes are needed")
    files = _files_of(train, names)
    valid = _part(root, _VALID) if train != root else None
    log.info("%s: %d images of %d classes (%s)", train, len(files), len(names), ", ".join(names[:10]))
    if valid is None:
        return *split_off(files, valid_fraction, str(train)), names
    others = _classes(valid)
    if unknown := [name for name in others if name not in names]:
        raise FishexpError(f"{valid / unknown[0]}: {train} has no such class; there are: {', '.join(names)}")
    reported = _files_of(valid, others, names)
    log.info("%s: %d images to report on", valid, len(reported))
    return files, reported, names


def _part(root: Path, names: Sequence[str]) -> Path | None:
    """Find the first of these folders that is there, however its name is capitalised, as some systems do not care."""
    there = {name.casefold(): root / name for name in _classes(root)}
    return next((there[name] for name in names if name in there), None)


def _check_no_parts(root: Path, names: Sequence[str]) -> None:
    """Refuse parts of a data set that would be taken for its classes: Training and Testing, or val beside classes."""
    words = [set(re.split(r"[\W_]+", name.casefold())) for name in names]
    parts = [name for name in names if name.casefold() in _REPORTS]
    if all(each & (_TRAINS | _REPORTS) for each in words) and any(each & _TRAINS for each in words):
        parts = list(names)
    if parts:
        found = " and ".join(parts)
        raise FishexpError(
            f"{root} holds no folder train, and {found} would be taken for a class; call the folder of the images to "
            "train on train, and that of those to report on val"
        )


def _classes(folder: Path) -> tuple[str, ...]:
    return tuple(sorted(path.name for path in folder.iterdir() if path.is_dir() and not path.name.startswith(".")))


def _files_of(folder: Path, names: Sequence[str], numbered: Sequence[str] | None = None) -> _Files:
    """List the images in the folders ``names``; their classes are numbered as in ``numbered``, or ``names``."""
    paths, labels = [], []
    for name in names:
        found = image_files(folder / name)
        if not found:
            raise FishexpError(f"{folder / name} holds no images ({', '.join(ENDINGS)}); remove it, or fill it")
        paths += found
        labels += [(numbered or names).index(name)] * len(found)
    if not paths:
        raise FishexpError(f"{folder} holds no folders, one for each class")
    return _Files(paths, torch.tensor(labels))


def _check_memory(images: int, size: int) -> None:
    """Refuse more images than the memory carries."""
    needed, free = images * 3 * size * size, free_memory()
    if needed > _SHARE * free:
        raise FishexpError(
            f"{images:,} images of {size}x{size} pixels take {needed / 1e9:.1f} GB, and {free / 1e9:.1f} GB of memory "
            "are free; lower data.size or data.train_limit"
        )


def _moments(pixels: Tensor) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Compute mean and standard deviation of each channel, in [0, 1], from counts of each byte."""
    values = torch.arange(256, dtype=torch.double) / 255
    means, deviations = [], []
    for channel in range(pixels.shape[1]):
        counts = torch.zeros(256, dtype=torch.double)
        for part in pixels[:, channel].split(_TOGETHER):
            counts += part.flatten().bincount(minlength=256)
        share = counts / counts.sum()
        mean = (share * values).sum()
        variance = (share * (values - mean).square()).sum()
        means.append(round(mean.item(), 6))
        deviations.append(round(max(variance.sqrt().item(), 1 / 255), 6))  # of images of a single colour it is 0
    return tuple(means), tuple(deviations)
