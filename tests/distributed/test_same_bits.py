"""Workers in processes end as workers that take turns in one: the same weights, metrics and bytes."""

from pathlib import Path

import pytest
import torch

import fishexp as library
from fishexp.run.record import read
from tests.support.cli import fishexp

SMALL = (
    "regime=distributed",
    "data.train_limit=160",
    "data.valid_limit=64",
    "regime.batch_size=16",
    "regime.epochs=2",
    "regime.sync_every=2",
    "regime.refresh_every=1",
    "method.samples=16",
    "threads=1",
)
SETTINGS = {
    "disjoint": ("regime.masks=disjoint", "regime.merge=sum", "method.labels=sampled"),
    "ordered": ("regime.workers=3", "regime.warmup_epochs=1"),
    "ring": ("regime.reduce=ring", "regime.wire=bf16", "regime.shard=false"),
}


@pytest.mark.parametrize("name", ["disjoint", "ordered", pytest.param("ring", marks=pytest.mark.slow)])
def test_processes_are_simulated_to_the_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    runs = []
    for backend in ("processes", "simulated"):
        assert fishexp(*SMALL, *SETTINGS[name], f"regime.backend={backend}", f"outputs={backend}").status == 0
        (folder,) = Path(backend).glob("*/*/*/*")
        (record,) = read(Path(backend, "records.jsonl"))
        weights = library.load_run(folder)[0].state_dict()
        runs.append((weights, (folder / "metrics.jsonl").read_text(), record["metrics"], record["bytes"]))
    (found, *rest), (expected, *others) = runs
    assert rest == others
    assert [name for name, tensor in expected.items() if not torch.equal(found[name], tensor)] == []
