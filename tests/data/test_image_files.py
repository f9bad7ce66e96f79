"""Images of a folder, read in one size."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from fishexp.data.image_files import image_files, read_images
from tests.support.checks import refusal


def test_the_centre_is_read_and_a_gray_image_has_three_equal_colours(tmp_path: Path) -> None:
    """By hand: of 6 x 4 pixels the middle rows, at a height and width of 2 x 4; nothing is resized."""
    pixels = torch.arange(24, dtype=torch.uint8).view(6, 4)
    Image.fromarray(pixels.numpy()).save(tmp_path / "gray.png")
    (gray,) = read_images([tmp_path / "gray.png"], (2, 4), channels=1)
    assert gray.tolist() == [[[8, 9, 10, 11], [12, 13, 14, 15]]]
    (colours,) = read_images([tmp_path / "gray.png"], (2, 4))
    assert torch.equal(colours, gray.expand(3, 2, 4))


def test_a_larger_image_is_resized(tmp_path: Path) -> None:
    """Of four squares of a colour each, 32 pixels wide, two pixels each are left; their corners have seen no other."""
    colours = np.array([[[250, 0, 0], [0, 250, 0]], [[0, 0, 250], [250, 250, 250]]], np.uint8)
    Image.fromarray(colours.repeat(32, 0).repeat(32, 1)).save(tmp_path / "squares.bmp")
    (read,) = read_images([tmp_path / "squares.bmp"], (4, 4))
    corners = read[:, ::3, ::3].permute(1, 2, 0).numpy()
    assert corners == pytest.approx(colours, abs=10)
    assert read.shape == (3, 4, 4)


@pytest.mark.parametrize(("dtype", "ending"), [(np.uint16, "png"), (np.int32, "tif"), (np.float32, "tiff")])
def test_values_of_more_than_8_bits_are_refused_and_not_cut_off(dtype: type, ending: str, tmp_path: Path) -> None:
    file = tmp_path / f"x-ray.{ending}"
    Image.fromarray(np.arange(100, 500, 4, dtype=dtype).reshape(10, 10)).save(file)
    for channels in (1, 3):
        line = refusal(read_images, [file], (4, 4), channels)
        assert line.startswith(f"{file} has more than 8 bits for a value (mode ")


def test_images_are_listed_by_name_and_nothing_else_is(tmp_path: Path) -> None:
    (tmp_path / "more").mkdir()
    (tmp_path / "more/d.png").mkdir()
    for name in ("b.PNG", "a.jpg", "notes.txt", "more/c.webp", "png"):
        (tmp_path / name).write_bytes(b"")
    assert [str(file.relative_to(tmp_path)) for file in image_files(tmp_path)] == ["a.jpg", "b.PNG", "more/c.webp"]
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere/link").symlink_to(tmp_path / "more")
    assert image_files(tmp_path / "elsewhere") == [tmp_path / "elsewhere/link/c.webp"]
