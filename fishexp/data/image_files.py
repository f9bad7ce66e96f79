"""Files of images: which a folder holds, and reading them in one size."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import torch
from torch import Tensor

from fishexp.errors import FishexpError, first_line
from fishexp.system.folders import walk

# endings of files that torchvision takes for images
ENDINGS = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
# channels of an image -> what Pillow calls such images: in shades of gray, in colours
CHANNELS = {1: "L", 3: "RGB"}


def image_files(folder: Path) -> list[Path]:
    """List the images in a folder and the folders in it, behind links too, by name."""
    found = (here / name for here, _, files in walk(folder) for name in files)
    return sorted(path for path in found if path.suffix.lower() in ENDINGS)


def read_images(files: Sequence[Path], size: tuple[int, int], channels: int = 3) -> Tensor:
    """Read images: uint8 (images, channels, height, width), of each the centre, once its shorter side fits.

    Args:
        size: Height and width, in pixels.
        channels: 3 for colours, 1 for shades of gray.

    Raises:
        FishexpError: If one cannot be read, or has more than 8 bits for a value; names it.
    """
    pixels = torch.empty(len(files), channels, *size, dtype=torch.uint8)

    def read(number: int) -> None:
        pixels[number] = _image(files[number], size, channels)

    with ThreadPoolExecutor() as threads:
        for _ in threads.map(read, range(len(files))):
            pass
    return pixels


def _image(file: Path, size: tuple[int, int], channels: int) -> Tensor:
    """Read an image: uint8 (channels, height, width)."""
    import numpy as np
    from PIL import Image, ImageOps

    height, width = size
    try:
        with Image.open(file) as opened:
            if opened.mode.startswith(("I", "F")):  # of 16 or 32 bits, which Pillow would cut off at 255
                raise FishexpError(f"{file} has more than 8 bits for a value (mode {opened.mode}); save it with 8")
            image = ImageOps.fit(opened.convert(CHANNELS[channels]), (width, height), Image.Resampling.BILINEAR)
    except FishexpError:
        raise
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise FishexpError(f"{file} is no image that can be read ({first_line(error)}); remove it") from None
    return torch.from_numpy(np.array(image)).view(height, width, channels).permute(2, 0, 1)
