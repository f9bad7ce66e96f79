"""Images in memory as bytes, normalised and augmented a batch at a time."""

import torch
from torch import Tensor


class Images:
    """Keep images as bytes; normalise them, and augment them on request, a batch at a time with no per-image Python.

    Args:
        pixels: uint8 (examples, channels, height, width).
        labels: int64 (examples,).
        mean: Mean of each channel, in [0, 1].
        std: Standard deviation of each channel, in [0, 1].
        crop: Pixels by which an image is padded, with its reflection, before it is cropped back at random.
        flip: Mirror half of the images.
        cutout: Side of the square that is set to the mean, in pixels; 0 for none.
    """

    lengths: Tensor | None = None

    def __init__(
        self,
        pixels: Tensor,
        labels: Tensor,
        *,
        mean: tuple[float, ...],
        std: tuple[float, ...],
        crop: int = 0,
        flip: bool = False,
        cutout: int = 0,
    ) -> None:
        self.pixels, self.labels = pixels, labels
        self.mean, self.std = mean, std
        self.crop, self.flip, self.cutout = crop, flip, cutout

    def __len__(self) -> int:
        return len(self.labels)

    def _with(self, pixels: Tensor, labels: Tensor) -> "Images":
        return Images(pixels, labels, mean=self.mean, std=self.std, crop=self.crop, flip=self.flip, cutout=self.cutout)

    def subset(self, index: Tensor) -> "Images":
        """Return the images at ``index``, in that order."""
        return self._with(self.pixels[index], self.labels[index])

    def normalised_by(self, mean: tuple[float, ...], std: tuple[float, ...]) -> "Images":
        """Return the images with another mean and standard deviation, such as those of a pre-trained model."""
        changed = self._with(self.pixels, self.labels)
        changed.mean, changed.std = mean, std
        return changed

    def to(self, device: torch.device) -> "Images":
        """Return the images on ``device``."""
        return self._with(self.pixels.to(device), self.labels.to(device))

    def normalise(self, pixels: Tensor) -> Tensor:
        """Turn uint8 (batch, channels, height, width) into floats of zero mean and unit variance over the data set."""
        mean = torch.tensor(self.mean, device=pixels.device).view(-1, 1, 1)
        std = torch.tensor(self.std, device=pixels.device).view(-1, 1, 1)
        return (pixels.float() / 255 - mean) / std

    def batch(self, index: Tensor, generator: torch.Generator | None = None) -> tuple[Tensor, Tensor]:
        """Return normalised images and labels at ``index``, augmented if there is a generator to draw from."""
        index = index.to(self.pixels.device)
        if generator is None:
            return self.normalise(self.pixels[index]), self.labels[index]
        return self._augmented(index, generator), self.labels[index]

    def _augmented(self, index: Tensor, generator: torch.Generator) -> Tensor:
        """Crop, flip and cut out, by choosing which rows and columns each image is made of."""
        count, (height, width), device = len(index), self.pixels.shape[-2:], self.pixels.device

        def draw(high: int) -> Tensor:  # an integer in [0, high) for each image: (count, 1)
            return torch.randint(high, (count, 1), generator=generator).to(device)

        rows = _reflect(torch.arange(height, device=device) + draw(2 * self.crop + 1) - self.crop, height)
        columns = _reflect(torch.arange(width, device=device) + draw(2 * self.crop + 1) - self.crop, width)
        if self.flip:
            columns = torch.where(draw(2).bool(), columns.flip(1), columns)
        pixels = self.pixels.movedim(1, -1)[index[:, None, None], rows[:, :, None], columns[:, None, :]]
        images = self.normalise(pixels.movedim(-1, 1))
        if self.cutout:
            top, left = draw(height - self.cutout + 1), draw(width - self.cutout + 1)
            row = torch.arange(height, device=device) - top  # (count, height), 0 at the square's first row
            column = torch.arange(width, device=device) - left  # (count, width)
            inside = ((row >= 0) & (row < self.cutout))[:, :, None] & ((column >= 0) & (column < self.cutout))[:, None]
            images = images.masked_fill(inside[:, None], 0.0)
        return images.contiguous()


def _reflect(position: Tensor, size: int) -> Tensor:
    """Mirror positions beyond either edge at the outermost pixel."""
    position = position.abs()
    return torch.where(position >= size, 2 * (size - 1) - position, position)
