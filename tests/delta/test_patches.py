"""Sparse patches: the new values by position, in memory and in a file."""

import json
from pathlib import Path
from unittest import mock

import pytest
import torch
from safetensors import safe_open

from fishexp.delta import Delta
from fishexp.delta.fingerprint import bits
from tests.support.checks import refusal
from tests.support.delta_cases import example, same_bits, trained_in_part
from tests.support.delta_commands import run


def test_patches_written_into_the_base_give_the_result() -> None:
    delta, before, after = trained_in_part()
    found = list(delta.patches())
    assert {patch.name for patch in found} == {*delta.names}
    for patch in found:
        assert patch.indices.dtype == torch.int32
        assert patch.indices.is_contiguous()
        assert patch.values.is_contiguous()
        assert patch.full_shape == tuple(after[patch.name].shape)
        bits(before[patch.name]).view(-1).index_copy_(0, patch.indices.long(), bits(patch.values))
    assert same_bits(before, after)


def test_a_file_of_patches_has_new_tensors_and_rows_too(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, after = example()
    Delta.diff(before, after).save(tmp_path / "delta.safetensors")
    assert run("export", tmp_path / "delta.safetensors", "--to", "patches", "-o", tmp_path / "patches.safetensors") == 0
    assert "NAME.indices and NAME.values" in capsys.readouterr().out
    with safe_open(tmp_path / "patches.safetensors", "pt") as file:
        shapes = json.loads(file.metadata()["full_shapes"])
        assert {f"{name}.{what}" for name in shapes for what in ("indices", "values")} == set(file.keys())
        for name, shape in shapes.items():
            whole = torch.zeros(shape, dtype=after[name].dtype)
            if name in before:
                whole.view(-1)[: before[name].numel()] = before[name].flatten()
            indices = file.get_tensor(f"{name}.indices")
            bits(whole).view(-1).index_copy_(0, indices.long(), bits(file.get_tensor(f"{name}.values")))
            before[name] = whole
    del before["c.gone"]
    assert same_bits(before, after)


def test_a_tensor_that_int32_cannot_count_is_refused() -> None:
    delta, _, _ = trained_in_part()
    with mock.patch("fishexp.delta.patches.MOST_ENTRIES", 160 * 300 - 1):
        assert refusal(list, delta.patches()) == "narrow has 48,000 entries, more than int32 positions can name"
