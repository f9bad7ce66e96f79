"""What a user types: short keys, percentages, ranges, sweeps; each is the run that the full words name."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from fishexp.run.identity import run_id
from fishexp.run.yamls import CONF
from tests.support.cli import QUICK, fishexp, records

METHODS = sorted(file.stem for file in Path(CONF, "method").glob("*.yaml"))


@pytest.fixture(autouse=True)
def _in_a_new_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def configs(*arguments: str) -> list[dict[str, Any]]:
    """Return the configuration of each run that a command asks for."""
    result = fishexp(*arguments, "--cfg", "job")
    assert result.status == 0, result
    return list(yaml.safe_load_all(result.out))


SHORT = {
    ("lr=0.1",): ("regime.lr=0.1",),
    ("task=rte", "data=glue"): ("data.task=rte", "data=glue"),
    ("epochs=3", "batch_size=7", "train_limit=9"): ("regime.epochs=3", "regime.batch_size=7", "data.train_limit=9"),
    ("samples=5", "labels=sampled", "layers=9"): ("method.samples=5", "method.labels=sampled", "model.layers=9"),
    ("workers=3", "regime=distributed"): ("regime.workers=3", "regime=distributed"),
    ("lr=${recipe:lr}", "++epochs=2"): ("regime.lr=${recipe:lr}", "regime.epochs=2"),
    ("lr=0.1", "regime.lr=0.2"): ("regime.lr=0.2",),
    ("keep=0.5%",): ("keep=0.005",),
    ("keep=7%",): ("keep=0.07",),
    ("keep='12.5 %'",): ("keep=0.125",),
    ("-m", "keep=0.1%,2%,0.5"): ("-m", "keep=0.001,0.02,0.5"),
    ("-m", "seed=1-5"): ("-m", "seed=1,2,3,4,5"),
    ("-m", "seed=1-2,7,9-9"): ("-m", "seed=1,2,7,9"),
    ("seed=3-3",): ("seed=3",),
    ("-m", "lr=0.1,0.2", "seed=0,1"): ("-m", "regime.lr=0.1,0.2", "seed=0,1"),
    ("-m", "lr=0.1,0.2", "regime.lr=0.3"): ("regime.lr=0.3",),
    ("-m", "method=glob(*)"): ("-m", f"method={','.join(METHODS)}"),
    ("-m", "model=glob(resnet*,exclude=*8)"): ("-m", "model=resnet34,resnet9"),
    ("-m", "seed=range(2)"): ("-m", "seed=0,1"),
}


@pytest.mark.parametrize("short", SHORT, ids=" ".join)
def test_short_words_are_the_same_runs_as_the_full_ones(short: tuple[str, ...]) -> None:
    said, meant = configs(*short), configs(*SHORT[short])
    assert said == meant
    assert list(map(run_id, said)) == list(map(run_id, meant))


def test_a_percentage_is_read_as_a_decimal() -> None:
    """0.07 and not 0.07000000000000001, for which the run would be another."""
    assert [config["keep"] for config in configs("-m", "keep=7%,0.5%,29%")] == [0.07, 0.005, 0.29]


def test_the_record_of_a_run_in_short_words_is_that_of_the_full_ones(tmp_path: Path) -> None:
    assert fishexp("epochs=1", "train_limit=128", "valid_limit=64", "method=random", "keep=2%").status == 0
    assert " is done already" in fishexp(*QUICK, "keep=0.02", "resume=true").out
    assert fishexp(*QUICK, "keep=0.02").status == 0
    short, full = records(tmp_path)
    assert (short["run_id"], short["config"], short["metrics"]) == (full["run_id"], full["config"], full["metrics"])


def test_a_key_that_only_some_components_of_a_sweep_have_applies_to_those() -> None:
    for key in ("samples", "method.samples"):
        fish, random, big = configs("-m", "method=fish,random,magnitude", f"{key}=64", "seed=0")
        assert fish["method"]["samples"] == 64
        assert "samples" not in random["method"]
        assert big["method"] == {"name": "magnitude", "order": "largest", "unit": "entry", "per": "network"}
    runs = configs("-m", "method=fish,random", "samples=64,128", "order=smallest", "method=fish,random,magnitude")
    assert [(run["method"]["name"], run["method"].get("samples"), run["method"].get("order")) for run in runs] == [
        ("fish", 64, None), ("fish", 128, None), ("random", None, None), ("magnitude", None, "smallest"),
    ]  # fmt: skip
    transfer, distributed = configs("-m", "regime=transfer,distributed", "workers=4", "lr=0.3")
    assert (transfer["regime"]["lr"], distributed["regime"]["lr"], distributed["regime"]["workers"]) == (0.3, 0.3, 4)


def test_a_sweep_says_to_which_components_a_key_applies() -> None:
    result = fishexp("-m", *QUICK[:3], "method=random,bitfit,magnitude", "order=smallest")
    assert result.status == 0
    assert result.out.startswith("order applies to method=magnitude only\n")


def test_a_key_that_several_components_have_is_not_guessed(tmp_path: Path) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "conf" / "method" / "mine.yaml").write_text("name: mine\nlr: 1\nholdout: 2\n")
    conf = ("--config-dir", "conf", "method=mine")
    assert fishexp(*conf, "lr=2").mistake() == "lr is a key of method and of regime; write method.lr= or regime.lr="
    (config,) = configs(*conf, "method.lr=2")
    assert (config["method"]["lr"], config["regime"]["lr"]) == (2, 0.2)


@pytest.mark.parametrize(
    ("visible", "typed", "seen"), [(None, "gpu=0", "0"), (None, "gpu=1,3", "1,3"), ("5,7", "gpu=1", "7")]
)
def test_gpus_by_their_number(visible: str | None, typed: str, seen: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run is that of device=cuda, and torch sees no other GPU."""
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible or "")
    monkeypatch.setattr("torch.cuda.is_available", lambda: False)
    assert configs(typed) == configs("device=cuda")
    message = fishexp(*QUICK, typed).mistake()
    assert message.startswith("device=cuda: torch ")
    assert f"CUDA_VISIBLE_DEVICES={seen}" in message
