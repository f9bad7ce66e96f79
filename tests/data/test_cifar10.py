"""CIFAR-10 from disk equals torchvision's; files that are not the originals are refused before they are unpickled."""

import pickle
from pathlib import Path

import numpy as np
import pytest
import torch
from torchvision.datasets import CIFAR10
from torchvision.transforms.v2 import functional as transforms

from fishexp.data import cifar10
from fishexp.data.datasets import Dataset
from tests.support.checks import refusal

BATCHES = "cifar-10-batches-py"


def load(root: Path | None, **limits: int) -> Dataset:
    return cifar10.load(
        root=None if root is None else str(root), **{"train_limit": None, "valid_limit": None, "holdout": 0} | limits
    )


@pytest.fixture(scope="module")
def official(real_data: Path) -> Path:
    return real_data / "cifar10"


@pytest.fixture(scope="module")
def data(official: Path) -> Dataset:
    return load(official)


@pytest.fixture
def copy(official: Path, tmp_path: Path) -> Path:
    """Make a folder whose files are links to the official files, to be replaced."""
    (tmp_path / BATCHES).mkdir()
    for file in (official / BATCHES).iterdir():
        (tmp_path / BATCHES / file.name).symlink_to(file)
    return tmp_path


def replace(file: Path, content: bytes) -> None:
    file.unlink()
    file.write_bytes(content)


def test_sizes_and_balanced_labels(data: Dataset) -> None:
    assert (data.classes, data.channels, list(data.valid)) == (10, 3, [""])
    assert (data.names[0], data.names[9]) == ("airplane", "truck")
    for part, size in [(data.train, 50_000), (data.valid[""], 10_000)]:
        assert part.pixels.shape == (size, 3, 32, 32)
        assert part.pixels.dtype == torch.uint8
        assert part.labels.bincount().tolist() == [size // 10] * 10


def test_mean_and_std_are_those_of_the_training_images(data: Dataset) -> None:
    values = np.arange(256) / 255
    for channel in range(3):
        counts = sum(
            np.bincount(part[:, channel].flatten().numpy(), minlength=256) for part in data.train.pixels.split(5_000)
        )
        mean = np.average(values, weights=counts)
        std = np.sqrt(np.average((values - mean) ** 2, weights=counts))
        assert (round(mean, 4), round(std, 4)) == (cifar10.MEAN[channel], cifar10.STD[channel])


def test_equals_torchvision(data: Dataset, official: Path) -> None:
    for part, train in [(data.train, True), (data.valid[""], False)]:
        theirs = CIFAR10(official, train=train)
        assert np.array_equal(part.pixels.permute(0, 2, 3, 1).numpy(), theirs.data)
        assert part.labels.tolist() == theirs.targets
        for i in (0, 1, len(theirs) - 1):
            image, label = theirs[i]
            expected = transforms.normalize(
                transforms.to_dtype(transforms.pil_to_tensor(image), torch.float32, scale=True),
                list(cifar10.MEAN),
                list(cifar10.STD),
            )
            found, labels = part.batch(torch.tensor([i]))
            torch.testing.assert_close(found[0], expected)
            assert labels.tolist() == [label]


def test_training_images_are_augmented_as_in_the_papers_code(data: Dataset) -> None:
    assert (data.train.crop, data.train.flip, data.train.cutout) == (4, True, 8)
    batch, _ = data.train.batch(torch.arange(64), torch.Generator().manual_seed(0))
    assert ((batch == 0).all(1).sum((1, 2)) >= 64).all()  # the square is 8 x 8 pixels in all channels


def test_the_folder_is_found_through_the_variable(real_data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("FISHEXP_DATA", str(real_data))
    assert len(load(None, train_limit=7, valid_limit=5).train) == 7


def test_a_missing_folder_or_file_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert refusal(load, tmp_path) == f"data.root={tmp_path} does not hold {BATCHES}/; name the folder above it"
    monkeypatch.setenv("FISHEXP_DATA", str(tmp_path))
    assert refusal(load, None).startswith(f"data.root={tmp_path / 'cifar10'} does not hold {BATCHES}/")
    (tmp_path / BATCHES).mkdir()
    missing = tmp_path / BATCHES / "data_batch_1"
    assert refusal(load, tmp_path) == f"{missing} is missing; copy the six CIFAR-10 batches and batches.meta there"


@pytest.mark.parametrize("name", ["data_batch_3", "test_batch", "batches.meta"])
def test_a_missing_file_among_good_ones_is_named(copy: Path, name: str) -> None:
    (copy / BATCHES / name).unlink()
    assert refusal(load, copy).startswith(f"{copy / BATCHES / name} is missing; ")


class Evil:
    """Leave a file behind when it is unpickled."""

    def __init__(self, trace: Path) -> None:
        self.trace = trace

    def __reduce__(self) -> tuple[object, tuple[str, str]]:
        return open, (str(self.trace), "w")


def evil(trace: Path) -> bytes:
    content = pickle.dumps(Evil(trace))
    pickle.loads(content).close()
    assert trace.exists(), "the test's own pickle does nothing"
    trace.unlink()
    return content


def test_a_foreign_pickle_is_never_loaded(tmp_path: Path) -> None:
    (tmp_path / BATCHES).mkdir()
    file = tmp_path / BATCHES / "data_batch_1"
    file.write_bytes(evil(tmp_path / "trace"))
    size = file.stat().st_size
    assert (
        refusal(load, tmp_path)
        == f"{file} ({size:,} bytes) is not the original: its md5 is not {CIFAR10.train_list[0][1]}; fetch it again"
    )
    assert not (tmp_path / "trace").exists()


@pytest.mark.parametrize("name", ["data_batch_1", "data_batch_5", "test_batch", "batches.meta"])
def test_nothing_is_unpickled_unless_every_file_is_the_original(
    copy: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = copy / BATCHES / name
    original = file.read_bytes()
    flipped = original[:-100] + bytes([original[-100] ^ 1]) + original[-99:]

    def unpickle(*_: object, **__: object) -> None:
        raise AssertionError("something was unpickled")

    monkeypatch.setattr(pickle, "load", unpickle)
    for content in (flipped, original[:-100], b"", evil(copy / "trace")):
        replace(file, content)
        assert refusal(load, copy).startswith(f"{file} ({len(content):,} bytes) is not the original: its md5 is not ")
        assert not (copy / "trace").exists()


@pytest.mark.usefixtures("no_network")
def test_no_root_and_no_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("FISHEXP_DATA", raising=False)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    message = refusal(load, None)
    assert message.startswith("data.root is not set and CIFAR-10 could not be downloaded (")
    assert message.endswith("Name or service not known>); give data.root=DIR, or set FISHEXP_DATA")
