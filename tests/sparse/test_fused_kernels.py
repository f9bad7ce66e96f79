"""The kernels that bring weights on a GPU up to date, in Triton's interpreter; on a GPU in tests/cuda."""

import os
import subprocess
import sys

import pytest

pytest.importorskip("triton", reason="Triton is not installed")

# five tensors of a type: values changed, weight changed, neither, both, and a single entry
CHECK = """
import torch
from fishexp.sparse.fused_kernels import Table

torch.manual_seed(0)
for number, place in ((torch.int32, torch.int32), (torch.int16, torch.int32), (torch.int64, torch.int64)):
    tensors, expected = [], []
    for size, kept, changed in ((5000, 2500, "v"), (300, 7, "w"), (64, 64, ""), (9000, 1025, "vw"), (10, 1, "w")):
        weight = torch.randint(-1000, 1000, (size,)).to(number)
        places = torch.randperm(size)[:kept]
        synced = weight[places].clone()
        values = synced.clone()
        if "v" in changed:
            values[-1] += 3
        if "w" in changed:
            weight[places[0]] += 5
        entries = values.clone() if "v" in changed else weight[places].clone()
        tensors.append((values, synced, weight, places.to(place)))
        expected.append((entries, weight.scatter(0, places, entries)))
    table = Table(tensors)
    for _ in range(2):
        table.reconcile()
        for (values, synced, weight, _), (entries, whole) in zip(tensors, expected, strict=True):
            assert torch.equal(values, entries)
            assert torch.equal(synced, entries)
            assert torch.equal(weight, whole)
"""


def test_values_that_changed_are_written_and_a_weight_that_changed_is_read() -> None:
    environment = os.environ | {"TRITON_INTERPRET": "1"}
    done = subprocess.run([sys.executable, "-c", CHECK], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
