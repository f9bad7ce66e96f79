"""`python -m experiments`: a folder is an experiment; settings become a command line."""

import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from experiments import __main__ as program
from experiments.lib.experiment import Experiment
from experiments.lib.settings import agrees, as_overrides, composed_run
from fishexp.report.group import settings_of
from fishexp.system.text_table import aligned_text

THERE = "figure2, rules, table1, table2, table3, table4, units"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [(["nosuch"], "nosuch: no such experiment"), (["lib"], "lib: no such experiment"), ([], "name an experiment")],
)
def test_a_wrong_name_is_one_line_that_says_what_there_is(arguments: list[str], message: str, capsys) -> None:
    assert program.main(arguments, {}) == 2
    assert capsys.readouterr().err == f"fishexp: {message}; there are {THERE}\n"


def test_a_folder_that_is_a_package_is_an_experiment(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name in ("figure2", "lib"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "__init__.py").touch()
    (tmp_path / "digits").mkdir()
    monkeypatch.setattr(program, "HOME", tmp_path)
    assert program.names() == ["figure2"]


@pytest.mark.parametrize("name", program.names())
def test_every_experiment_can_be_loaded(name: str) -> None:
    experiment = program.load(name)
    assert isinstance(experiment, Experiment)
    ours = {"units": ["cpu"], "rules": ["cpu", "gpu"], "figure2": ["cpu", "gpu"]}  # not the paper's, or a picture there
    sizes = ours.get(name, ["cpu", "gpu", "paper"])
    assert list(experiment.profiles) == sizes


@pytest.mark.parametrize("name", program.names())
def test_machines_may_share_a_table_for_a_cpu(name: str) -> None:
    """In float32, with one thread a run, as bf16 and the number of threads change the numbers."""
    for study in program.load(name).profiles["cpu"]:
        assert [study.common[key] for key in ("device", "precision", "threads")] == ["cpu", "fp32", 1]


def test_the_environment_says_what_to_do_with_an_experiment(monkeypatch: pytest.MonkeyPatch, capsys) -> None:
    """Of experiments cut to a few cells, as composing the commands of all takes long."""
    whole = program.load

    def cut(name: str) -> Experiment[Any]:
        experiment = whole(name)
        few = {
            profile: [replace(study, sources=dict(list(study.sources.items())[:3])) for study in studies[:1]]
            for profile, studies in experiment.profiles.items()
        }
        return replace(experiment, profiles=few)

    monkeypatch.setattr(program, "load", cut)
    assert program.main(["table4"], {"PROFILE": "cpu", "DRY": "1"}) == 0
    header, rates, *_ = capsys.readouterr().out.splitlines()
    assert header.split("  ")[0] == "step"
    assert rates.split()[:4] == ["rates", "7", "7", "0"]  # by the committed records
    assert program.main(["table2"], {"PROFILE": "gpu", "DRY": "1"}) == 0
    note, header, table, *_ = capsys.readouterr().out.splitlines()
    none = r"None of \d+ runs on record counts: other settings, examples or random streams"
    assert re.fullmatch(rf"{none}; FISHEXP_DATA is not set", note)
    assert header.split("  ")[0] == "step"
    assert table.split()[:5] == ["sum", "table", "3", "0", "3"]


def test_settings_become_overrides_that_give_these_settings() -> None:
    settings = {"data": "cifar10", "regime": "distributed", "regime.shard": False, "data.valid_limit": None}
    settings |= {"regime.lr": 5e-05, "keep": 0.005, "regime.epochs": 2}
    assert as_overrides(settings) == (
        *("data=cifar10", "regime=distributed", "regime.shard=false", "data.valid_limit=null"),
        *("regime.lr=5e-05", "keep=0.005", "regime.epochs=2"),
    )
    flat = settings_of({"config": composed_run(settings)})
    assert agrees(settings, flat)
    assert not any(agrees({key: "another"}, flat) for key in settings)
    assert as_overrides({"regime.lr": (0.1, 3e-05)}) == ("regime.lr=0.1,3e-05",)


def test_plain_text_is_lined_up() -> None:
    rows = [["step", "runs"], ["all of it", "7"]]
    assert aligned_text(rows, left_columns=1) == ["step       runs", "all of it     7"]
