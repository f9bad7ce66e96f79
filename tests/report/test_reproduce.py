"""The command that runs a group again: composed by fishexp itself, it asks for the very same runs."""

import json
import shlex
from pathlib import Path
from typing import Any

import pytest
from hydra._internal.utils import get_args_parser

from fishexp.report.group import Group, single
from fishexp.report.pool import pool
from fishexp.report.reproduce import command_of
from fishexp.run.config import read_command, register_resolvers
from fishexp.run.identity import run_id, shareable
from tests.support.records import record

REPOSITORY = Path(__file__).parents[2]


def configs_of(text: str) -> list[dict[str, Any]]:
    """Compose the configurations that a command in a shell asks for."""
    register_resolvers()
    words = shlex.split(text)
    assert words[:3] == ["python", "-m", "fishexp"]
    return read_command(get_args_parser().parse_args(words[3:])).configs


def group_of(configs: list[dict[str, Any]]) -> Group:
    """Make a group of finished runs with these configurations."""
    records = [
        record(run_id=run_id(config)) | {"config": shareable(config), "seed": config["seed"]} for config in configs
    ]
    (group,) = pool(records).reported
    return group


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "-m seed=0,7,12 method=random keep=0.013",
        "method=full regime.lr=3e-5 regime.clip=1 precision=bf16 threads=3",
        "method=relative method.exponent=0.25 method.unit=row decay=all",
        "method=largest_change method.full_lr=0.02 method.per=matrix",
        "method=diff_pruning keep=0.02 compat=fish data.train_limit=100 data.valid_limit=50",
        "regime=checkpointing regime.mask=every_epoch regime.epochs=3",
        "-m regime=distributed regime.workers=3 regime.refresh_every=null regime.masks=disjoint seed=0,1",
        "model=resnet9 data.train_limit=64 keep=0.02",
    ],
)
def test_the_command_of_a_group_asks_for_its_runs(overrides: str) -> None:
    asked = configs_of(f"python -m fishexp {overrides}")
    again = configs_of(command_of(group_of(asked)).text)
    assert [run_id(config) for config in again] == [run_id(config) for config in asked]


def test_commands_of_committed_records_compose_to_their_settings() -> None:
    seen = set()
    for file in sorted(REPOSITORY.glob("experiments/*/records.jsonl")):
        for line in file.read_text().splitlines():
            run = json.loads(line)
            config = run["config"]
            kind = tuple(config[group]["name"] for group in ("method", "regime"))
            if run["status"] != "finished" or kind in seen:
                continue
            seen.add(kind)
            (again,) = configs_of(command_of(single(run)).text)
            for key, value in config.items():
                for name, option in value.items() if isinstance(value, dict) else [(None, value)]:
                    told = again[key] if name is None else again[key][name]
                    assert told == option or str(option).startswith("@"), (file, key, name)
    assert len(seen) > 6


def test_what_a_command_cannot_say_is_said_beside_it() -> None:
    run = record(model__path="bert@0123456789ab", data__root="@ba9876543210", versions=None)
    command = command_of(single(run | {"versions": {"torch": "2.15.0", "resnet": "cafe"}}))
    assert command.commits == ["0123456789ab"]
    assert "data.root" not in command.text
    assert "model.path" not in command.text
    assert command.remarks == [
        "resnet is a module of its own (digest cafe); add --config-dir",
        "data.root named files that had the digest ba9876543210; say where they are on this machine",
        "model.path named bert, whose contents had the digest 0123456789ab; say where they are on this machine",
    ]


TEXTS = ["a b", "$(touch x)", "it's", 'say "no"', "1,2", "null", "a;rm -rf b", "[1]", "a\\'b", "a\\\\'b", "\\", "a\\\\"]


@pytest.mark.parametrize("text", TEXTS)
def test_no_text_of_a_record_is_a_command_of_the_shell_or_of_hydra(text: str) -> None:
    command = command_of(single(record(model__path=text)))
    (word,) = [word for word in shlex.split(command.text) if word.startswith("model.path=")]
    (config,) = configs_of(f"python -m fishexp model=resnet8 {shlex.quote(word)}")
    assert config["model"]["path"] == text
