"""The reader in numpy that documents the delta's format: of any delta it reads what fishexp's own reader does."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from fishexp import Delta, diagonal_fisher, sparsify, top_k
from fishexp.delta.file import read_beginning
from fishexp.delta.fingerprint import bits
from fishexp.masks.random_masks import random_scores
from tests.support.delta_cases import TYPES, disturbed, example, noise

ROOT = Path(__file__).parents[2]
VERSION_1 = ROOT / "tests" / "delta" / "version1"


def reader() -> Any:
    """Import the module of docs/, which is no package."""
    spec = importlib.util.spec_from_file_location("read_delta", ROOT / "docs" / "read_delta.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def assert_reads_the_same(file: Path) -> Delta:
    delta, found = Delta.load(file), reader().read_delta(file)
    assert found.keys() == set(delta.names)
    for name, (positions, values) in found.items():
        assert positions.tolist() == delta.positions(name).tolist(), name
        assert values.tobytes() == bits(delta.values(name)).numpy().tobytes(), name
    return delta


def codings(file: Path) -> set[str]:
    with file.open("rb") as opened:
        return {entry.coding for entry in read_beginning(opened, file).header.moved.values()}


def trained(dtype: torch.dtype, *, random: bool) -> Delta:
    """Train a tenth of two layers for a step, chosen by its Fisher information or by a seed."""
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(20, 60), torch.nn.ReLU(), torch.nn.Linear(60, 4))
    inputs, labels = torch.randn(12, 20), torch.arange(12) % 4
    scores = random_scores({name: p.shape for name, p in model.named_parameters()}, 2**40 + 7)
    if not random:
        scores = diagonal_fisher(model, [(inputs, labels)])
    mask = top_k(scores, 0.1)
    model.to(dtype)
    sparse = sparsify(model, mask)
    optimiser = torch.optim.SGD(sparse.parameters(), lr=0.5)
    torch.nn.functional.cross_entropy(model(inputs.to(dtype)).float(), labels).backward()
    optimiser.step()
    return sparse.delta()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("random", [False, True])
def test_a_mask_of_fish_and_one_drawn_by_a_seed(dtype: torch.dtype, random: bool, tmp_path: Path) -> None:
    file = tmp_path / "delta.safetensors"
    trained(dtype, random=random).save(file)
    assert assert_reads_the_same(file).changes > 50
    assert ("seed" in codings(file)) == random


def test_another_mask_than_the_one_that_was_saved_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file, module = tmp_path / "delta.safetensors", reader()
    trained(torch.float32, random=True).save(file)
    draw = np.random.RandomState
    monkeypatch.setattr(np.random, "RandomState", lambda seed: draw(seed + 1))
    with pytest.raises(ValueError, match=f"seed {2**40 + 7} draws another mask here"):
        module.read_delta(file)


@pytest.mark.parametrize("dtype", TYPES)
@pytest.mark.parametrize("density", [0.01, 0.3])
def test_values_of_all_types_as_they_are_and_as_planes(dtype: torch.dtype, density: float, tmp_path: Path) -> None:
    generator = torch.Generator().manual_seed(0)
    before = {"a": noise(dtype, (200, 300), generator), "b": noise(dtype, (9, 1), generator)}
    after = {name: disturbed(tensor, density, generator) for name, tensor in before.items()}
    if dtype.is_floating_point and dtype.itemsize > 1:  # of few exponents, which planes make shorter
        after["a"] = torch.where(bits(before["a"]) == bits(after["a"]), before["a"], torch.rand(200, 300).to(dtype))
    Delta.diff(before, after).save(tmp_path / "d")
    assert_reads_the_same(tmp_path / "d")
    if dtype == torch.float32:
        assert (b'"values.F32.3"' in (tmp_path / "d").read_bytes()) == (density == 0.01)


def chosen(which: str, shape: tuple[int, ...]) -> Tensor:
    """Return a mask of which the positions are written in that way."""
    mask = torch.zeros(shape, dtype=torch.bool)
    match which:
        case "gaps":
            mask[::3, ::7] = True
        case "holes":
            mask[:] = torch.rand(shape, generator=torch.Generator().manual_seed(0)) < 0.97
        case "runs":
            mask.view(-1)[5:90] = mask.view(-1)[200:260] = True
        case "runs by column":
            mask[3:39, [1, 5, 6]] = True
        case "gaps of rows":
            mask[[3, 20]] = True
        case "gaps of columns":
            mask[:, [1, 5], 0, 1] = True
        case "gaps of channels":
            mask[:, [1, 4]] = True
    return mask


@pytest.mark.parametrize(
    ("which", "shape"),
    [
        ("gaps", (40, 50)), ("holes", (40, 50)), ("runs", (40, 50)), ("runs by column", (40, 50)),
        ("gaps of rows", (40, 50)), ("gaps of columns", (12, 9, 3, 3)), ("gaps of channels", (12, 9, 3, 3)),
    ],
)  # fmt: skip
def test_positions_in_all_codings(which: str, shape: tuple[int, ...], tmp_path: Path) -> None:
    before = {"weight": torch.rand(shape)}
    Delta.diff(before, {"weight": before["weight"] + chosen(which, shape)}).save(tmp_path / "d")
    assert codings(tmp_path / "d") == {which}
    assert_reads_the_same(tmp_path / "d")


def test_new_tensors_new_rows_and_entries_that_did_not_move(tmp_path: Path) -> None:
    Delta.diff(*example()).save(tmp_path / "d")
    assert "whole" in codings(tmp_path / "d")
    assert_reads_the_same(tmp_path / "d")
    model = torch.nn.Linear(30, 20)
    sparse = sparsify(model, {name: torch.rand(p.shape) < 0.5 for name, p in model.named_parameters()})
    with torch.no_grad():
        for p in sparse.parameters():
            p[::3] += 1
    sparse.delta().save(tmp_path / "unmoved")
    delta = assert_reads_the_same(tmp_path / "unmoved")
    assert 0 < delta.changes < delta.kept


@pytest.mark.parametrize("name", ["delta.safetensors", "delta_seed.safetensors"])
def test_files_of_version_1(name: str) -> None:
    assert_reads_the_same(VERSION_1 / name)


def test_a_damaged_file_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "d"
    Delta.diff(*example()).save(file)
    data = bytearray(file.read_bytes())
    data[-1] ^= 1
    file.write_bytes(data)
    with pytest.raises(ValueError, match="its checksum is another one"):
        reader().read_delta(file)
