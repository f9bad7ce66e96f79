"""Runs that are cut short, and what they leave behind."""

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fishexp as library
from fishexp.run.record import read
from fishexp.training.snapshots import Snapshots

SMALL = (
    "data.train_limit=160",
    "data.valid_limit=64",
    "regime.batch_size=16",
    "method=random",
    "keep=0.02",
    "threads=1",
)


class Cut(BaseException):
    """End a run as a kill does: no part of it catches this."""


def cut_after(saves: int, patch: pytest.MonkeyPatch) -> None:
    """End the process, as it were, right after so many snapshots."""
    original, left = Snapshots.save, [saves]

    def save(self: Snapshots, *arguments: Any) -> None:
        original(self, *arguments)
        left[0] -= 1
        if left[0] == 0:
            raise Cut

    patch.setattr(Snapshots, "save", save)


def run_folder(outputs: str) -> Path:
    """Return the folder of the only run."""
    (folder,) = Path(outputs).glob("*/*/*/*")
    return folder


def left_behind(outputs: str) -> tuple[dict[str, Tensor], list[dict[str, Any]], dict[str, Any]]:
    """Return every tensor of every epoch, the metrics of each, and what the record says of the result."""
    folder = run_folder(outputs)
    epochs = len(list((folder / "checkpoints").glob("*"))) or None
    tensors = {}
    for epoch in [None] if epochs is None else range(epochs + 1):
        model, _ = library.load_run(folder, epoch)
        tensors |= {f"{epoch}.{name}": value for name, value in model.state_dict().items()}
    metrics = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    record = list(read(Path(outputs) / "records.jsonl"))[-1]
    if (folder / "delta.safetensors").exists():
        record["delta"] = (folder / "delta.safetensors").read_bytes()
    return (
        tensors,
        metrics,
        {key: record.get(key) for key in ("status", "metrics", "epochs", "kept", "total", "bytes", "run_id", "delta")},
    )


def assert_alike(first: str, second: str) -> None:
    """Assert that two finished runs left the same behind."""
    (a, metrics_a, record_a), (b, metrics_b, record_b) = left_behind(first), left_behind(second)
    assert a.keys() == b.keys()
    assert [name for name in a if not torch.equal(a[name], b[name])] == []
    assert metrics_a == metrics_b
    assert record_a == record_b
    assert record_a["status"] == "finished"
    assert not (run_folder(second) / "snapshots").exists()
