"""W&B offline: what its own reader finds in the runs we leave behind."""

import base64
import hashlib
import os
from pathlib import Path
from typing import Any

import pytest

from tests.support.cli import QUICK, fishexp, records
from tests.support.offline import WANDB_VARIABLES, inspect, items, only
from tests.support.program import Program


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in WANDB_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))  # no credentials of whoever runs the tests


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


def test_the_delta_of_a_run_is_an_artifact_and_that_of_dense_training_is_not(tmp_path: Path) -> None:
    assert fishexp("-m", *QUICK[:3], "method=random,full", "wandb=offline").status == 0
    for record in records(tmp_path):
        folder = next(tmp_path.glob(f"outputs/digits/resnet8/*/seed0-{record['run_id']}"))
        artifacts = only(inspect(folder), "artifact")
        if record["method"] == "full":
            assert artifacts == []
            continue
        (artifact,) = artifacts
        assert (artifact["name"], artifact["type"]) == (f"delta-{record['run_id']}", "delta")
        (file,) = artifact["manifest"]["contents"]
        written = (folder / "delta.safetensors").read_bytes()
        assert (file["path"], int(file["size"])) == ("delta.safetensors", len(written))
        assert file["digest"] == base64.b64encode(hashlib.md5(written).digest()).decode()


ONE_RUN = {"WANDB_RUN_ID": "mine1234", "WANDB_NAME": "my name"}


def started(*arguments: str) -> tuple[str, str]:
    """Run a command in a process of its own, as W&B reads the environment once in a process; what it printed."""
    with Program("fishexp", *arguments, *QUICK, "wandb=offline", environment={**os.environ, **ONE_RUN}) as process:
        out, err = process.communicate(timeout=200)
        assert process.wait() == 0, err
    return out, err


def names(tmp_path: Path) -> list[tuple[str, str]]:
    found = [only(inspect(folder), "run")[0] for folder in sorted(tmp_path.glob("outputs/digits/resnet8/*/*"))]
    return [(run["run_id"], run["display_name"]) for run in found]


@pytest.mark.slow
def test_an_id_and_a_name_in_the_environment_are_not_those_of_every_run_of_a_sweep(tmp_path: Path) -> None:
    out, err = started("-m", "seed=0,1")
    assert err == ""
    assert out.count("WANDB_RUN_ID, WANDB_NAME ignored: all runs of the sweep would have the same\n") == 1
    (first, its_name), (second, other_name) = names(tmp_path)
    assert first != second
    assert ONE_RUN["WANDB_RUN_ID"] not in (first, second)
    assert (its_name[:20], other_name[:20]) == ("digits/resnet8/rando", "digits/resnet8/rando")


def test_an_id_and_a_name_in_the_environment_are_those_of_a_single_run(tmp_path: Path) -> None:
    out, _ = started()
    assert "WANDB" not in out
    assert names(tmp_path) == [("mine1234", "my name")]


def test_a_failed_run_is_ended_as_failed(tmp_path: Path) -> None:
    assert fishexp(*QUICK, "method=full", "regime.lr=1e12", "wandb=offline").status == 1
    log = inspect(next(tmp_path.glob("outputs/digits/resnet8/full/*")))
    (end,) = only(log, "exit")
    assert end["exit_code"] == 1


def test_online_without_an_account_says_what_to_do(tmp_path: Path) -> None:
    assert "wandb=offline needs no account" in fishexp(*QUICK, "wandb=online").mistake()
