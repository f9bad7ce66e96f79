"""Deltas of checkpoints far larger than the memory that it takes to make and apply them."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from fishexp.delta import Delta

CHILD = """
import resource, sys
from fishexp.delta.__main__ import main
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
status = main(sys.argv[1:])
print(before, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
sys.exit(status)
"""


def child(*arguments: object) -> int:
    """By how many KiB the work raises the peak memory of a process that has done its imports."""
    command = [sys.executable, "-c", CHILD, *map(str, arguments)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    before, after = map(int, done.stdout.split()[-2:])
    return after - before


def large(path: Path, size: int, changes: int) -> Path:
    """A file of so many bytes in two tensors, most of them holes on the disk, and as many entries that differ."""
    end, rng = size // 2, np.random.default_rng(0)
    kind = {"dtype": "F32", "shape": [end // 4 // 4096, 4096]}
    header = {"first": kind | {"data_offsets": [0, end]}, "second": kind | {"data_offsets": [end, 2 * end]}}
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    with path.open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + size)
        for length, times in [(4000, 200), (4, changes)]:
            for _ in range(times):
                file.seek(8 + len(text) + 4 * int(rng.integers(size // 4 - 1000)))
                file.write(rng.bytes(length))
    return path


def check_memory(folder: Path, size: int, changes: int) -> None:
    """Some dozen megabytes beside what the imports took, whatever the size; the result is the other model."""
    base, tuned = large(folder / "base", size, 0), large(folder / "tuned", size, changes)
    assert child("diff", base, tuned, "-o", folder / "delta") < 64 << 10
    assert child("apply", base, folder / "delta", "-o", folder / "out") < 64 << 10
    difference = Delta.diff(tuned, folder / "out")
    assert difference.kept == 0
    assert Delta.load(folder / "delta").kept >= 0.99 * changes
    (folder / "out").unlink()  # it has no holes


def test_memory_does_not_grow_with_the_model(tmp_path: Path) -> None:
    check_memory(tmp_path, 1 << 27, 1000)


@pytest.mark.slow
def test_a_model_larger_than_the_memory_allowed(tmp_path: Path) -> None:
    """3 GB, by processes that never had more than 0.7."""
    check_memory(tmp_path, 3 << 30, 3000)
