"""Folders of images: their classes, splits and sizes, and what cannot be read."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from fishexp.data import imagefolder
from fishexp.data.datasets import Dataset
from tests.support.checks import refusal

SIZE = 16


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def write(folder: str, count: int, colour: int = 0, shape: tuple[int, int] = (20, 30), ending: str = "png") -> None:
    """Write images of noise whose channel ``colour`` is bright."""
    Path(folder).mkdir(parents=True)
    generator = np.random.default_rng(colour)
    for i in range(count):
        pixels = generator.integers(0, 100, (*shape, 3), dtype=np.uint8)
        pixels[..., colour] += 150
        Image.fromarray(pixels).save(f"{folder}/{i}.{ending}")


def load(root: str = "root", **options: Any) -> Dataset:
    unsaid: dict[str, Any] = {"size": SIZE, "flip": True, "valid_fraction": 0.1}
    unsaid |= {"train_limit": None, "valid_limit": None, "holdout": 0}
    return imagefolder.load(root=root, **unsaid | options)


@pytest.mark.parametrize("valid", ["val", "valid", "validation", "dev", "test"])
def test_folders_for_training_and_to_report_on(valid: str) -> None:
    write("root/train/red", 4)
    write("root/train/blue", 3, 2)
    write("root/train/blue/more", 2, 2, ending="JPEG")
    write(f"root/{valid}/red", 2)
    (Path("root/train/blue") / "notes.txt").write_text("no image")
    data = load()
    assert (data.names, data.classes, data.channels) == (("blue", "red"), 2, 3)
    assert data.train.labels.tolist() == [0] * 5 + [1] * 4
    assert data.valid[""].labels.tolist() == [1, 1]
    assert data.train.pixels.shape == (9, 3, SIZE, SIZE)
    assert data.train.pixels.dtype == torch.uint8
    brightest = data.train.pixels.float().mean((2, 3)).argmax(1)
    assert brightest.tolist() == [2] * 5 + [0] * 4
    values = data.train.pixels.double() / 255
    assert data.train.mean == pytest.approx(values.mean((0, 2, 3)).tolist(), abs=1e-6)
    assert data.train.std == pytest.approx(values.std((0, 2, 3), correction=0).tolist(), abs=1e-6)
    assert data.valid[""].mean == data.train.mean
    assert (data.train.crop, data.train.flip) == (SIZE // 8, True)


def test_one_folder_is_split() -> None:
    write("root/red", 12)
    write("root/blue", 8, 2)
    first, again = load(), load()
    assert (len(first.train), len(first.valid[""])) == (18, 2)
    assert torch.equal(first.valid[""].pixels, again.valid[""].pixels)
    held = load(holdout=4, train_limit=5)
    assert (len(held.train), list(held.valid), len(held.valid["holdout"])) == (5, ["holdout"], 4)


def test_images_are_cut_to_their_centre_in_colour() -> None:
    pixels = np.zeros((10, 40), np.uint8)
    pixels[:, 15:25] = 200
    for name in ("a", "b"):
        Path(f"root/{name}").mkdir(parents=True)
        for i in range(2):
            Image.fromarray(pixels).save(f"root/{name}/{i}.png")
    data = load(size=10)
    assert torch.equal(data.train.pixels, torch.full((3, 3, 10, 10), 200, dtype=torch.uint8))
    assert data.train.std == (round(1 / 255, 6),) * 3
    assert torch.isfinite(data.train.batch(torch.arange(3))[0]).all()


def test_what_cannot_be_read_gets_a_line(monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(load).startswith("data.root=root is not a folder; it holds train/CLASS/... and val/CLASS/...")
    Path("root").mkdir()
    assert refusal(load) == "root holds no folders, one for each class; two classes are needed"
    write("root/red", 5)
    assert refusal(load) == "root holds one class, red; two classes are needed"
    Path("root/blue").mkdir()
    assert refusal(load).startswith("root/blue holds no images (.bmp, .jpeg, ")
    write("root/blue/deep", 5)
    Path("root/blue/deep/9.png").write_bytes(Path("root/blue/deep/1.png").read_bytes()[:200])
    assert refusal(load).startswith("root/blue/deep/9.png is no image that can be read (")
    Path("root/blue/deep/9.png").write_text("")
    assert refusal(load).startswith("root/blue/deep/9.png is no image that can be read (cannot identify image file")
    Path("root/blue/deep/9.png").unlink()
    monkeypatch.setattr(imagefolder, "free_memory", lambda: 5_000)
    assert refusal(load) == (
        "10 images of 16x16 pixels take 0.0 GB, and 0.0 GB of memory are free; lower data.size or data.train_limit"
    )


def test_train_and_val_may_be_capitalised() -> None:
    for part, count in (("Train", 3), ("Val", 2)):
        write(f"root/{part}/red", count)
        write(f"root/{part}/blue", count, 2)
    data = load()
    assert (data.names, len(data.train), len(data.valid[""])) == (("blue", "red"), 6, 4)


@pytest.mark.parametrize(
    ("folders", "refused"),
    [
        (("Testing", "Training"), "Testing and Training"),
        (("seg_test", "seg_train"), "seg_test and seg_train"),
        (("blue", "red", "test"), "test"),
        (("test-negative", "test-positive"), ""),
        (("boots", "trainers"), ""),
    ],
)
def test_parts_of_a_data_set_are_not_taken_for_its_classes(folders: tuple[str, ...], refused: str) -> None:
    for folder in folders:
        write(f"root/{folder}/red", 2)
        write(f"root/{folder}/blue", 2, 2)
    if not refused:
        assert load().names == folders
        return
    assert refusal(load) == (
        f"root holds no folder train, and {refused} would be taken for a class; call the folder of the images to train "
        "on train, and that of those to report on val"
    )


def test_a_class_that_only_the_reported_images_have() -> None:
    write("root/train/red", 3)
    write("root/train/blue", 3)
    write("root/val/green", 3)
    assert refusal(load) == "root/val/green: root/train has no such class; there are: blue, red"
