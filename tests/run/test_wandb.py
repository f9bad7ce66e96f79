"""W&B offline: what its own reader finds in the runs we leave behind."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import QUICK, fishexp, records


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("WANDB_RUN_GROUP", "WANDB_API_KEY", "WANDB_MODE", "WANDB_PROJECT"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no credentials of whoever runs the tests


def inspect(folder: Path) -> list[dict[str, Any]]:
    """The records of one offline run, through `wandb leet inspect`."""
    (run,) = folder.glob("wandb/offline-run-*")
    wandb = Path(sys.executable).parent / "wandb"
    done = subprocess.run([wandb, "leet", "inspect", "--json", run], capture_output=True, text=True, check=True)
    return [json.loads(line) for line in done.stdout.splitlines()]


def only(found: list[dict[str, Any]], kind: str) -> list[Any]:
    return [record[kind] for record in found if record["type"] == kind]


def items(entry: Any) -> dict[str, Any]:
    """W&B's history and summary lines hold a list of keys and JSON values."""
    pairs = entry.get("item", entry.get("update"))
    return pairs if isinstance(pairs, dict) else {pair["key"]: json.loads(pair["value_json"]) for pair in pairs}


def test_a_sweep_leaves_runs_of_one_group_that_do_not_bleed_into_each_other(tmp_path: Path) -> None:
    assert fishexp("-m", *QUICK, "regime.epochs=2", "seed=0,1", "wandb=offline").status == 0
    found = records(tmp_path)
    groups, ids = set(), set()
    for record in found:
        folder = next(tmp_path.glob(f"outputs/digits/resnet8/*/seed{record['seed']}-{record['run_id']}"))
        log = inspect(folder)
        (run,) = only(log, "run")
        groups.add(run["run_group"])
        ids.add(run["run_id"])
        config = {key: value for key, value in run["config"]["update"].items() if key != "_wandb"}
        assert config == record["config"]
        history = [items(entry) for entry in only(log, "history")]
        assert [entry["epoch"] for entry in history] == [1, 2]
        assert history[-1]["accuracy"] == record["metrics"]["accuracy"]
        summary: dict[str, Any] = {}
        for entry in only(log, "summary"):
            summary |= items(entry)
        assert (summary["status"], summary["kept"], summary["run_id"]) == ("finished", record["kept"], record["run_id"])
        assert [entry["exit_code"] for entry in only(log, "exit")] == [0]
    assert len(groups) == 1
    assert len(ids) == 2


def test_a_failed_run_is_ended_as_failed(tmp_path: Path) -> None:
    assert fishexp(*QUICK, "method=full", "regime.lr=1e12", "wandb=offline").status == 1
    log = inspect(next(tmp_path.glob("outputs/digits/resnet8/full/*")))
    (end,) = only(log, "exit")
    assert end["exit_code"] == 1


def test_online_without_an_account_says_what_to_do(tmp_path: Path) -> None:
    assert "wandb=offline needs no account" in fishexp(*QUICK, "wandb=online").mistake()
