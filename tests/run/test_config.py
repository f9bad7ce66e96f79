"""The configurations of runs: what Hydra composes of each run's overrides, though it composes shared choices once."""

import shlex
from pathlib import Path

import pytest
from hydra._internal.utils import get_args_parser
from hydra.types import RunMode

from fishexp.run.config import read_command, register_resolvers, resolved

COMMANDS = [
    "",
    "keep=0.1",
    "regime.lr=0.3 keep=0.5% seed=7 precision=bf16 +regime.clip=2.5 ++keep=0.2",
    "-m seed=0-1 keep=0.01,0.02 method=fish,random,bitfit lr=0.1",
    "data=cifar10 model=resnet9 train_limit=640 compat=fish decay=all",
    "data=glue task=sst2 model=bert_base method=lift per=row",
    "data=csv text=[first,second] 'train=\"a=b, c.csv\"' label=null",
    "recipes.digits.lr.fish=0.7 recipes.digits.epochs=3",
    "regime.lr='${recipe:lr,full}' outputs='else where' records='${outputs}/all.jsonl'",
    "hydra.run.dir=elsewhere hydra/launcher=basic minutes=3 threads=null",
    "regime=distributed regime.workers=3 regime.masks=disjoint method=random",
]


@pytest.mark.parametrize("options", ["", "--config-dir=mine experiment=wide"])
@pytest.mark.parametrize("command", COMMANDS)
def test_runs_are_what_hydra_composes(
    command: str, options: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    (tmp_path / "mine" / "experiment" / "wide.yaml").write_text("# @package _global_\nkeep: 0.3\nregime: {epochs: 9}\n")
    monkeypatch.chdir(tmp_path)
    register_resolvers()
    found = read_command(get_args_parser().parse_intermixed_args(shlex.split(f"{options} {command}")))
    composed = [
        resolved(found.hydra.compose_config("config", [*found.runs.hydra, *run], RunMode.RUN, from_shell=False))
        for run in found.runs.overrides
    ]
    assert found.configs == composed
