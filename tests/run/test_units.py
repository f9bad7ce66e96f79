"""Runs whose rows, columns or channels move together."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import fishexp as library
from fishexp.delta import Delta
from fishexp.masks.budget import budget
from fishexp.masks.units import Unit, unit_means
from fishexp.run import runner
from tests.support.cli import QUICK, fishexp, records
from tests.support.resuming import run_folder

KEEP = 0.03


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def trained_by(arguments: Sequence[str], monkeypatch: pytest.MonkeyPatch) -> dict[str, Tensor]:
    """Carry out a run, and return what its model was when it had been trained."""
    states: list[dict[str, Tensor]] = []
    original = runner._save

    def save(folder: Path, outputs: Path, model: Any, *others: Any) -> Any:
        states.append({name: tensor.clone() for name, tensor in model.network.state_dict().items()})
        return original(folder, outputs, model, *others)

    monkeypatch.setattr(runner, "_save", save)
    assert fishexp(*QUICK, f"keep={KEEP}", *arguments).status == 0
    return states[0]


@pytest.mark.parametrize("method", [("method=fish", "samples=16"), ("method=random",), ("method=magnitude",)])
@pytest.mark.parametrize("unit", ["row", "column", "channel"])
def test_whole_units_move_within_the_budget_and_the_delta_has_them_to_the_bit(
    unit: Unit, method: tuple[str, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = trained_by((*method, f"unit={unit}"), monkeypatch)
    folder, (record,) = run_folder("outputs"), records(tmp_path)
    assert f"-{unit}-{KEEP}" in str(folder)
    model, _ = library.load_run(folder)
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())

    names = dict(model.named_parameters())
    delta = Delta.load(folder / "delta.safetensors")
    kept = {name: mask for name, mask in delta.mask(model).items() if name in names}
    assert record["kept"] == sum(int(mask.sum()) for mask in kept.values())
    assert record["kept_by"] == {name: [int(m.sum()), *m.shape] for name, m in kept.items() if m.any()}
    assert 0.98 * budget(KEEP, record["total"]) < record["kept"] <= budget(KEEP, record["total"])
    assert f"{record['kept']:,} of {record['total']:,} weights may move in {unit}s" in (folder / "log.txt").read_text()
    shares = unit_means({name: mask.float() for name, mask in kept.items()}, unit)
    assert all(((share == 0) | (share == 1)).all() for share in shares.values())
    partly = [name for name, mask in kept.items() if mask.ndim > 1 and 0 < mask.sum() < mask.numel()]
    assert partly  # the vectors do not take it all


@pytest.mark.parametrize("masks", ["same", "disjoint"])
def test_workers_move_whole_units(masks: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    workers = ("regime=distributed", "backend=simulated", "workers=3", "warmup_epochs=0", "sync_every=1")
    state = trained_by((*workers, f"masks={masks}", "unit=channel"), monkeypatch)
    (record,) = records(tmp_path)
    model, _ = library.load_run(run_folder("outputs"))
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    most = budget(KEEP, record["total"])
    each = record["kept"] if masks == "same" else record["kept_per_worker"]
    assert sum(kept for kept, *_ in record["kept_by"].values()) == record["kept"]
    assert 0.98 * most < each <= most
    head = sum(p.numel() for name, p in model.named_parameters() if name.startswith("fc."))
    assert masks == "same" or record["kept"] <= 3 * (each - head) + head


def test_units_are_part_of_what_a_run_is(tmp_path: Path) -> None:
    for unit in ("entry", "row"):
        assert fishexp(*QUICK, f"unit={unit}").status == 0
    first, second = records(tmp_path)
    assert first["run_id"] != second["run_id"]
    assert [run["config"]["method"]["unit"] for run in (first, second)] == ["entry", "row"]
    folders = sorted(str(folder.relative_to("outputs").parent) for folder in Path("outputs").glob("*/*/*/*"))
    assert folders == ["digits/resnet8/random-0.005", "digits/resnet8/random-row-0.005"]


@pytest.mark.parametrize("method", ["bitfit", "full"])
def test_methods_that_name_their_weights_have_no_units(method: str) -> None:
    assert fishexp(f"method={method}", "method.unit=row").mistake().startswith("unknown key method.unit")
