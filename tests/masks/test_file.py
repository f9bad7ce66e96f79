"""A mask comes back from its file; a file that is damaged or lies is refused, and takes no memory."""

import json
import math
import random
import tracemalloc
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import safetensors
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save, save_file
from torch import nn

from fishexp.errors import FishexpError
from fishexp.masks import file, load_mask, save_mask, top_k
from fishexp.masks.random_masks import Seeded, random_scores
from fishexp.masks.topk import Mask, count
from fishexp.sparse import sparsify
from tests.support.checks import refusal

SHAPES = [(), (0,), (1,), (7,), (0, 3), (5, 8), (300,), (3, 2, 9)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("masks")


@given(
    shapes=st.lists(st.sampled_from(SHAPES), max_size=6),
    density=st.sampled_from([0, 0.01, 0.3, 0.9, 1]),
    names=st.lists(st.text(max_size=9), min_size=6, max_size=6, unique=True),
    transposed=st.booleans(),
    seed=st.integers(0, 2**32),
)
def test_names_shapes_order_and_entries_come_back(
    folder: Path, shapes: list[tuple[int, ...]], density: float, names: list[str], transposed: bool, seed: int
) -> None:
    generator = torch.Generator().manual_seed(seed)
    masks = [torch.rand(shape, generator=generator) < density for shape in shapes]
    mask = dict(zip(names, [m.T if transposed and m.dim() == 2 else m for m in masks], strict=False))
    save_mask(mask, folder / "mask")
    found = load_mask(str(folder / "mask"))
    assert list(found) == list(mask)
    assert not isinstance(found, Seeded)
    for name, kept in mask.items():
        assert found[name].dtype == torch.bool
        assert found[name].shape == kept.shape
        assert found[name].equal(kept)
    content = (folder / "mask").read_bytes()
    save_mask(found, folder / "mask")
    assert (folder / "mask").read_bytes() == content


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(40, 50), nn.BatchNorm1d(50), nn.Linear(50, 6), nn.Linear(6, 3))


def shapes_of(model: nn.Module) -> dict[str, torch.Size]:
    return {name: p.shape for name, p in model.named_parameters()}


def test_a_mask_that_came_back_trains_as_it_did(tmp_path: Path) -> None:
    trained = []
    scores = {name: torch.rand(shape) for name, shape in shapes_of(network()).items()}
    mask = top_k(scores, 0.1, ["3.weight", "3.bias"])
    save_mask(mask, tmp_path / "mask")
    for one in (mask, load_mask(tmp_path / "mask")):
        model = network()
        optimiser = torch.optim.SGD(sparsify(model, one).parameters(), lr=0.1)
        model(torch.ones(8, 40)).square().sum().backward()
        optimiser.step()
        trained.append(model.state_dict())
    assert all(trained[0][name].equal(trained[1][name]) for name in trained[0])


@pytest.mark.parametrize("head", [(), ("3.weight", "3.bias")])
def test_a_random_mask_is_its_seed(tmp_path: Path, head: tuple[str, ...]) -> None:
    shapes = {f"{i}.weight": (400, 250) for i in range(3)} | {"3.weight": (4, 400), "3.bias": (4,)}
    mask = top_k(random_scores(shapes, 5), 0.1, head)
    save_mask(mask, tmp_path / "seed")
    assert (tmp_path / "seed").stat().st_size < 1000
    found = load_mask(tmp_path / "seed")
    assert isinstance(found, Seeded)
    assert found.seed == 5
    assert list(found) == list(mask)
    assert all(found[name].equal(kept) for name, kept in mask.items())
    mask["0.weight"].view(-1)[7].logical_not_()  # no longer what the seed draws
    save_mask(mask, tmp_path / "seed")
    found = load_mask(tmp_path / "seed")
    assert not isinstance(found, Seeded)
    assert all(found[name].equal(kept) for name, kept in mask.items())


def test_another_torchs_random_numbers_are_refused(tmp_path: Path) -> None:
    save_mask(top_k(random_scores({"w": (50, 50)}, 5), 0.1), tmp_path / "mask")
    with mock.patch("torch.rand", lambda *size, **options: torch.full(size, 0.5)):
        line = refusal(load_mask, tmp_path / "mask")
    assert line.startswith(
        "seed 5 draws another random mask here than the one that was saved; was it made with another"
    )


def test_empty_random_masks(tmp_path: Path) -> None:
    for mask in (Seeded({}, 3), Seeded({"w": torch.zeros(4, dtype=torch.bool)}, 3)):
        save_mask(mask, tmp_path / "mask")
        found = load_mask(tmp_path / "mask")
        assert list(found) == list(mask)
        assert not count(found)


def test_the_file_is_about_as_small_as_can_be(tmp_path: Path) -> None:
    """At half a percent, of which nothing else is known, at most 5 % above the entropy, names and shapes included."""
    torch.manual_seed(0)
    shapes = {f"encoder.layer.{i}.attention.self.query.weight": (384, 1536) for i in range(10)}
    mask = top_k({name: torch.rand(shape) for name, shape in shapes.items()}, 0.005)
    save_mask(mask, tmp_path / "mask")
    n, k = 10 * 384 * 1536, count(mask)
    entropy = (math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)) / math.log(2) / 8
    assert (tmp_path / "mask").stat().st_size < 1.05 * entropy


@pytest.mark.parametrize(
    "kept",
    [torch.ones(3), None, torch.ones(3, dtype=torch.bool, device="meta"), torch.eye(3).bool().to_sparse(), [True]],
)
def test_what_is_no_mask(tmp_path: Path, kept: Any) -> None:
    assert refusal(save_mask, {"w": kept}, tmp_path / "mask") == "the mask of w is not a dense bool tensor"
    assert not list(tmp_path.iterdir())


def test_a_file_that_cannot_be_written_leaves_the_old_one(tmp_path: Path) -> None:
    mask = {"w": torch.ones(4, dtype=torch.bool)}
    save_mask(mask, tmp_path / "mask")
    with (
        mock.patch.object(Path, "write_bytes", side_effect=OSError(28, "No space left")),
        pytest.raises(OSError, match="No"),
    ):
        save_mask({"v": torch.zeros(4, dtype=torch.bool)}, tmp_path / "mask")
    assert [path.name for path in tmp_path.iterdir()] == ["mask"]
    assert load_mask(tmp_path / "mask")["w"].all()


def some(tmp_path: Path) -> tuple[Path, Mask]:
    """A mask with tensors of every coding but the seed's."""
    torch.manual_seed(1)
    mask = {
        "few": torch.rand(40, 30) < 0.05,
        "most": torch.rand(40, 30) < 0.95,
        "whole": torch.ones(9, dtype=torch.bool),
        "none": torch.zeros(9, dtype=torch.bool),
    }
    save_mask(mask, tmp_path / "mask")
    return tmp_path / "mask", mask


def test_every_file_that_is_damaged_is_refused_in_a_line(tmp_path: Path) -> None:
    path, mask = some(tmp_path)
    content, draw = path.read_bytes(), random.Random(0)
    damaged = [content[:size] for size in range(0, len(content), 7)] + [content + b"\0", b"", b"no mask " * 99]
    for _ in range(400):
        place = draw.randrange(len(content))
        damaged.append(content[:place] + bytes([content[place] ^ 1 << draw.randrange(8)]) + content[place + 1 :])
    for one in damaged:
        path.write_bytes(one)
        assert refusal(load_mask, path).startswith(str(path))
    path.write_bytes(content)
    assert all(kept.equal(mask[name]) for name, kept in load_mask(path).items())
    with pytest.raises(FileNotFoundError):
        load_mask(tmp_path / "gone")


def rewrite(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the index of a mask's file, and let the checksum fit it."""
    vectors = {name: bytes(vector["data"]) for name, vector in safetensors.deserialize(path.read_bytes())}
    index = json.loads(zlib.decompress(vectors["index"]))
    del index["checksum"]
    change(index)
    data = np.frombuffer(vectors["positions"], np.uint8).copy()
    text = json.dumps(index | {"checksum": file._checksum(index, data)}).encode()
    packed = np.frombuffer(zlib.compress(text), np.uint8).copy()
    path.write_bytes(save({"index": torch.from_numpy(packed), "positions": torch.from_numpy(data)}))


def set_in(entry: int, place: int, value: Any) -> Callable[[dict[str, Any]], object]:
    return lambda index: index["tensors"][entry].__setitem__(place, value)


@contextmanager
def traced_peak() -> Iterator[Callable[[], int]]:
    """Yield a function that returns the most bytes that Python and numpy held at once, in memory or on paper."""
    tracemalloc.start()
    try:
        yield lambda: tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()


HUGE = 1 << 35
LIES: list[Callable[[dict[str, Any]], object]] = [
    *(set_in(0, place, value) for place in range(5) for value in (None, -1, True, {}, 1.5, 1 << 70)),
    *(set_in(0, place, "x") for place in range(1, 5)),
    set_in(0, 1, [40, -30]), set_in(0, 1, [1] * 99), set_in(0, 1, [40, True]), set_in(0, 1, [4, 3]),
    set_in(0, 0, "most"), set_in(0, 2, "whole"), set_in(0, 2, "none"), set_in(0, 2, "seed"), set_in(0, 2, "zip"),
    set_in(0, 2, "runs by column"), set_in(0, 3, 1), set_in(0, 3, 1199), set_in(0, 4, 0), set_in(1, 4, 10**9),
    set_in(2, 3, 8), set_in(2, 4, 1), set_in(3, 3, 1), set_in(3, 4, 1),
    lambda index: index["tensors"][0].pop(), lambda index: index["tensors"].pop(0),
    lambda index: index["tensors"].append(index["tensors"][3]), lambda index: index.pop("tensors"),
    lambda index: index.pop("seed"), lambda index: index.update(tensors=7),
    lambda index: index.update(seed=[1, 2, 3, "x"]),
    lambda index: index.update(version=2), lambda index: index.update(version=None),
    lambda index: index["tensors"].append(["zz", [HUGE], "whole", HUGE, 0]),
    lambda index: index["tensors"].append(["zz", [HUGE, 4], "none", 0, 0]),
    lambda index: index["tensors"].append(["zz", [HUGE], "holes", HUGE - 1, 0]),
    lambda index: index["tensors"].append(["zz", [HUGE], "runs", HUGE // 2, 0]),
    lambda index: index["tensors"].append(["zz", [HUGE], "gaps", HUGE // 2, 0]),
]  # fmt: skip


@pytest.mark.parametrize("change", LIES)
def test_a_file_that_lies_is_refused_and_takes_no_memory(
    tmp_path: Path, change: Callable[[dict[str, Any]], object]
) -> None:
    path, _ = some(tmp_path)
    rewrite(path, change)
    with mock.patch("torch.rand", side_effect=AssertionError("drawn")), traced_peak() as peak:
        line = refusal(load_mask, path)
        assert peak() < 1 << 24
    assert line.startswith((f"{path} is damaged: ", f"{path} is a mask of another version"))


def test_a_seed_that_lies_is_refused_before_anything_is_drawn(tmp_path: Path) -> None:
    path = tmp_path / "mask"
    for place, value in [(0, -1), (0, 2**63), (0, True), (0, "4"), (1, 2**24), (2, -1), (3, 5), (3, None)]:
        save_mask(top_k(random_scores({"w": (50, 50)}, 5), 0.1), path)
        rewrite(path, lambda index, place=place, value=value: index["seed"].__setitem__(place, value))
        with mock.patch("torch.rand", side_effect=AssertionError("drawn")):
            assert refusal(load_mask, path).startswith(f"{path} is damaged: it has a mask by a seed that is none")
    for shape, kept in (([1 << 33], 250), ([1 << 26], 1 << 25), ([2500], 2500)):
        save_mask(top_k(random_scores({"w": (50, 50)}, 5), 0.1), path)
        rewrite(
            path,
            lambda index, shape=shape, kept=kept: index["tensors"][0].__setitem__(slice(1, 4), [shape, "seed", kept]),
        )
        with mock.patch("torch.rand", side_effect=AssertionError("drawn")):
            assert refusal(load_mask, path).startswith(f"{path} is damaged: ")


def test_a_text_that_nests_without_end_is_refused(tmp_path: Path) -> None:
    for depth in (900, 990, 1000, 100_000):
        text = b'{"version": 1, "tensors": ' + b"[" * depth + b"]" * depth + b', "seed": null, "checksum": ""}'
        packed = torch.from_numpy(np.frombuffer(zlib.compress(text), np.uint8).copy())
        save_file({"index": packed, "positions": torch.zeros(0, dtype=torch.uint8)}, tmp_path / "mask")
        assert refusal(load_mask, tmp_path / "mask").startswith(f"{tmp_path / 'mask'} is damaged: ")


def test_a_text_that_never_ends_is_cut(tmp_path: Path) -> None:
    bomb = np.frombuffer(zlib.compress(b" " * (1 << 28)), np.uint8).copy()
    save_file({"index": torch.from_numpy(bomb), "positions": torch.zeros(0, dtype=torch.uint8)}, tmp_path / "mask")
    with traced_peak() as peak:
        assert refusal(load_mask, tmp_path / "mask").endswith(
            "mask is damaged: its index is not written as a mask's is"
        )
        assert peak() < 1 << 26


def test_other_files(tmp_path: Path) -> None:
    save_file({"w": torch.ones(3)}, tmp_path / "weights")
    assert (
        refusal(load_mask, tmp_path / "weights") == f"{tmp_path / 'weights'} is no mask, but another safetensors file"
    )
    (tmp_path / "text").write_text("mask")
    assert refusal(load_mask, tmp_path / "text") == f"{tmp_path / 'text'} is not a safetensors file, or damaged"


def test_a_mask_that_no_reader_would_believe_is_not_written(tmp_path: Path) -> None:
    with mock.patch("fishexp.masks.position_codec.MOST", 10), mock.patch.object(file, "FEWEST", 0):
        line = refusal(save_mask, {"w": torch.ones(11, dtype=torch.bool)}, tmp_path / "mask")
    assert "cannot be saved" in line
    with mock.patch.object(file, "_LONGEST_TEXT", 99):
        line = refusal(save_mask, {"w" * 99: torch.ones(11, dtype=torch.bool)}, tmp_path / "mask")
    assert "its names and shapes take" in line
    assert refusal(save_mask, {7: torch.ones(1, dtype=torch.bool)}, tmp_path / "mask").endswith(
        "names of parameters, got a int"
    )
    assert not list(tmp_path.iterdir())


def test_masks_come_from_the_package() -> None:
    import fishexp.masks

    assert {"load_mask", "save_mask", "top_k"} <= set(dir(fishexp.masks))
    with pytest.raises(AttributeError):
        fishexp.masks.no_such_name  # noqa: B018
    assert issubclass(FishexpError, ValueError)
