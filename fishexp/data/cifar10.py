"""CIFAR-10: 50,000 and 10,000 photographs of 32x32 pixels in 10 classes (Krizhevsky, 2009)."""

import os
from pathlib import Path
from typing import Annotated

import torch
from annotated_types import Ge

from fishexp.data import default_root
from fishexp.data.datasets import Dataset, Outline
from fishexp.data.images import Images
from fishexp.data.metrics import accuracy
from fishexp.errors import FishexpError, first_line

# mean and standard deviation of the 50,000 training images, per channel, in [0, 1]
MEAN = (0.4914, 0.4822, 0.4465)
STD = (0.2470, 0.2435, 0.2616)


def load(
    *,
    root: str | None,
    train_limit: Annotated[int, Ge(1)] | None,
    valid_limit: Annotated[int, Ge(1)] | None,
    holdout: Annotated[int, Ge(0)],
) -> Dataset:
    """Load the data set from torchvision's layout, after the md5 of every file was checked: the files are pickles.

    Training images are augmented as in the paper's code: padded by 4 and cropped, flipped, an 8x8 square cut out.

    Args:
        root: Folder that holds ``cifar-10-batches-py/``; None: ``$FISHEXP_DATA/cifar10``, else a download.

    Raises:
        FishexpError: If a file is missing or not the original, or the download fails.
    """
    from torchvision.datasets import CIFAR10

    folder = Path(root) if root is not None else default_root("cifar10")
    if folder is None:
        folder = _download()
    _check_files(folder)
    parts, names = [], ()
    for train in (True, False):
        raw = CIFAR10(folder, train=train)
        pixels = torch.from_numpy(raw.data).permute(0, 3, 1, 2).contiguous()  # (examples, 3, 32, 32)
        labels, names = torch.tensor(raw.targets), tuple(raw.classes)
        parts.append(Images(pixels, labels, mean=MEAN, std=STD, crop=4, flip=True, cutout=8))
    dataset = Dataset(parts[0], {"": parts[1]}, classes=10, channels=3, metrics=accuracy, names=names)
    return dataset.limited(train_limit, valid_limit, holdout)


def files() -> list[Path]:
    """List none: :func:`load` takes the original files only, so that it does not matter where they lie."""
    return []


def outline() -> Outline:
    """Say what the data set is, without loading it."""
    return Outline(classes=10, channels=3, train=50_000)


def _check_files(folder: Path) -> None:
    """Refuse a folder in which a file is missing or is not the original, and name the first such file."""
    from torchvision.datasets import CIFAR10
    from torchvision.datasets.utils import check_md5

    batches = folder / CIFAR10.base_folder
    if not batches.is_dir():
        raise FishexpError(f"data.root={folder} does not hold {CIFAR10.base_folder}/; name the folder above it")
    meta = [CIFAR10.meta["filename"], CIFAR10.meta["md5"]]
    for name, md5 in [*CIFAR10.train_list, *CIFAR10.test_list, meta]:
        path = batches / name
        if not path.is_file():
            raise FishexpError(f"{path} is missing; copy the six CIFAR-10 batches and batches.meta there")
        if not check_md5(path, md5):
            size = path.stat().st_size
            raise FishexpError(f"{path} ({size:,} bytes) is not the original: its md5 is not {md5}; fetch it again")


def _download() -> Path:
    """Download the data set into the cache, unless it is there, and return its folder."""
    from torchvision.datasets import CIFAR10

    folder = Path(os.environ.get("XDG_CACHE_HOME", Path.home() / ".cache"), "fishexp", "cifar10")
    try:
        CIFAR10(folder, download=True)
    except (OSError, RuntimeError) as error:
        raise FishexpError(
            f"data.root is not set and CIFAR-10 could not be downloaded ({first_line(error)}); "
            "give data.root=DIR, or set FISHEXP_DATA"
        ) from None
    return folder
