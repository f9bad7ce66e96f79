"""Images are normalised, and augmented as by a slow, obvious loop."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from fishexp.data.images import Images

# of two channels, in [0, 1]
MEAN, STD = (0.4, 0.5), (0.2, 0.3)


def some_images(count: int, height: int, width: int, *, crop: int = 0, flip: bool = False, cutout: int = 0) -> Images:
    generator = torch.Generator().manual_seed(0)
    pixels = torch.randint(256, (count, 2, height, width), generator=generator, dtype=torch.uint8)
    return Images(pixels, torch.arange(count), mean=MEAN, std=STD, crop=crop, flip=flip, cutout=cutout)


def slow_augmentation(images: Images, index: Tensor, generator: torch.Generator) -> Tensor:
    """Pad, crop, mirror, normalise and cut out an image after another, by the same draws in the same order."""
    n, (height, width) = len(index), images.pixels.shape[-2:]

    def draw(high: int) -> list[int]:
        return torch.randint(high, (n, 1), generator=generator).flatten().tolist()

    downs, rights = draw(2 * images.crop + 1), draw(2 * images.crop + 1)
    flips = draw(2) if images.flip else [0] * n
    tops, lefts = (draw(side - images.cutout + 1) if images.cutout else [0] * n for side in (height, width))
    batch = []
    for i, down, right, flip, top, left in zip(index.tolist(), downs, rights, flips, tops, lefts, strict=True):
        edge = (images.crop, images.crop)
        padded = np.pad(images.pixels[i].numpy(), ((0, 0), edge, edge), mode="reflect")
        image = padded[:, down : down + height, right : right + width]
        image = image[:, :, ::-1] if flip else image
        normal = np.stack([(image[c].astype(np.float32) / 255 - MEAN[c]) / STD[c] for c in range(2)])
        normal[:, top : top + images.cutout, left : left + images.cutout] = 0.0
        batch.append(torch.from_numpy(normal))
    return torch.stack(batch)


@given(
    height=st.integers(5, 9), width=st.integers(5, 9), crop=st.integers(0, 4), flip=st.booleans(),
    cutout=st.integers(0, 5), index=st.lists(st.integers(0, 6), min_size=1, max_size=9), seed=st.integers(0, 99),
)  # fmt: skip
def test_augmentation_equals_a_slow_one(
    height: int, width: int, crop: int, flip: bool, cutout: int, index: list[int], seed: int
) -> None:
    images = some_images(7, height, width, crop=crop, flip=flip, cutout=cutout)
    found, labels = images.batch(torch.tensor(index), torch.Generator().manual_seed(seed))
    expected = slow_augmentation(images, torch.tensor(index), torch.Generator().manual_seed(seed))
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    assert labels.tolist() == index


def test_every_crop_flip_and_cutout_is_as_likely() -> None:
    """Count 5 x 5 crops of either handedness, then 5 x 5 places of the square: each within 5 standard deviations."""
    draws = 5_000
    for options, kinds in [({"crop": 2, "flip": True}, 50), ({"cutout": 2}, 25)]:
        images = some_images(1, 6, 6, **options)
        batch, _ = images.batch(torch.zeros(draws, dtype=torch.long), torch.Generator().manual_seed(0))
        counts = batch.unique(dim=0, return_counts=True)[1]
        assert len(counts) == kinds
        assert (counts - draws / kinds).abs().max() < 5 * (draws / kinds) ** 0.5


def test_draws_are_new_each_time_and_the_generators_own() -> None:
    images = some_images(50, 8, 8, crop=4, flip=True, cutout=4)
    index, generator, state = torch.arange(50), torch.Generator().manual_seed(3), torch.get_rng_state()
    first, second = images.batch(index, generator)[0], images.batch(index, generator)[0]
    assert not torch.equal(first, second)
    assert torch.equal(first, images.batch(index, torch.Generator().manual_seed(3))[0])
    assert torch.equal(state, torch.get_rng_state())


def test_clean_images_are_normalised_and_not_augmented() -> None:
    images = some_images(20, 6, 7, crop=2, flip=True, cutout=3).subset(torch.tensor([4, 2, 9]))
    found, labels = images.batch(torch.tensor([2, 0]))
    assert labels.tolist() == [9, 4]
    expected = some_images(20, 6, 7).pixels[[9, 4]].float() / 255
    for channel in range(2):
        torch.testing.assert_close(found[:, channel] * STD[channel] + MEAN[channel], expected[:, channel])
