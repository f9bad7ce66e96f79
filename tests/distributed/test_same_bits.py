"""Workers in processes end as workers that take turns in one: the same weights, metrics and bytes."""

from pathlib import Path

import pytest

from fishexp.run.record import read
from tests.support.cli import fishexp
from tests.support.launched import TINY, lay_out

SMALL = ("regime.epochs=2", "regime.sync_every=2", "regime.refresh_every=1", "method.samples=16", "threads=1")
DIGITS = ("regime=distributed", "data.train_limit=160", "data.valid_limit=64", "regime.batch_size=16", *SMALL)
# every process of it imports little
LIGHT = (*TINY, "method=fish", "keep=0.3", *SMALL)
SETTINGS = {
    "disjoint": (*DIGITS, "regime.masks=disjoint", "regime.merge=sum", "method.labels=sampled"),
    "disjoint columns": (*DIGITS, "regime.masks=disjoint", "method.unit=column"),
    "ordered": (*LIGHT, "regime.workers=3", "regime.warmup_epochs=1"),
    "ring": (*DIGITS, "regime.reduce=ring", "regime.wire=bf16", "regime.shard=false"),
}


@pytest.mark.filterwarnings("ignore:a library has something to say")  # the model of LIGHT warns
@pytest.mark.parametrize(
    "name",
    ["disjoint", *(pytest.param(name, marks=pytest.mark.slow) for name in ("disjoint columns", "ordered", "ring"))],
)
def test_processes_are_simulated_to_the_bit(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    lay_out(tmp_path)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    runs = []
    for backend in ("processes", "simulated"):
        assert fishexp(*SETTINGS[name], f"regime.backend={backend}", f"outputs={backend}").status == 0
        (folder,) = Path(backend).glob("*/*/*/*")
        (record,) = read(Path(backend, "records.jsonl"))
        weights = {file.name: file.read_bytes() for file in folder.glob("*.safetensors")}
        runs.append((weights, (folder / "metrics.jsonl").read_text(), record["metrics"], record["bytes"]))
    (found, *rest), (expected, *others) = runs
    assert rest == others
    assert set(expected) in ({"base.safetensors", "delta.safetensors"}, {"model.safetensors"})
    assert found.keys() == expected.keys()
    assert [name for name, content in expected.items() if found[name] != content] == []
