"""A new method is one file and one yaml, in any folder."""

import subprocess
from pathlib import Path

import pytest

from fishexp.run.record import read
from tests.support import program

METHOD = '''
def scores(problem, *, power: float):
    """Prefer large weights in late layers."""
    return {name: p.detach().abs() * i**power for i, (name, p) in enumerate(problem.model.named_parameters(), 1)}
'''


def run(folder: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    options = ("--config-dir", "conf", "regime.epochs=1", "data.train_limit=64")
    return program.run("fishexp", *options, *arguments, folder=folder)


def test_one_file_and_one_yaml_outside_the_repository_add_a_method(tmp_path: Path) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "late.py").write_text(METHOD)
    (tmp_path / "conf" / "method" / "late.yaml").write_text("name: late\npower: 2.0\n")
    done = run(tmp_path, "method=late", "method.power=1.0")
    assert done.returncode == 0, done.stderr
    (record,) = read(tmp_path / "outputs" / "records.jsonl")
    assert record["method"] == "late"
    assert record["config"]["method"] == {"name": "late", "power": 1.0}
    assert record["kept"] == 1_540

    typo = run(tmp_path, "method=late", "method.pwoer=1.0")
    assert (typo.returncode, typo.stderr) == (
        2,
        "fishexp: unknown key method.pwoer; did you mean method.power? there are: method.power\n",
    )
    (tmp_path / "late.py").write_text(METHOD.replace("power: float", "power: float, depth: int"))
    assert run(tmp_path, "method=late").stderr == (
        "fishexp: method.depth has no value; the function takes it, and its yaml lacks it: add depth: ... to it\n"
    )
    assert "| relative | snip | late\n" in run(tmp_path, "--help").stdout


def test_a_dotted_name_and_a_module_that_is_not_there(tmp_path: Path) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "last.py").write_text(METHOD)
    (tmp_path / "conf" / "method" / "last.yaml").write_text("name: mine.last\npower: 2.0\n")
    (tmp_path / "conf" / "method" / "gone.yaml").write_text("name: mine.gone\n")
    done = run(tmp_path, "method=last")
    assert done.returncode == 0, done.stderr
    assert list((tmp_path / "outputs").glob("digits/resnet8/mine.last-0.005/seed0-*"))
    again = run(tmp_path, "method=last", "regime=checkpointing", "regime.mask=every_epoch", "regime.epochs=2")
    assert again.returncode == 0, again.stderr  # it sees the model's own weights, those of an earlier mask too
    gone = run(tmp_path, "method=gone")
    assert gone.returncode == 2
    assert gone.stderr.startswith("fishexp: method=mine.gone: ")
    assert gone.stderr.count("\n") == 1


@pytest.mark.parametrize(("name", "in_all"), [("random", 6_161 * 2 - 1_290), ("mine.random", 6_161)])
def test_a_method_of_the_users_is_not_ours_of_the_same_last_name(name: str, in_all: int, tmp_path: Path) -> None:
    """The original's random masks are disjoint; those of a module of the user's are what the regime says."""
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine" / "random.py").write_text("from fishexp.methods.random import scores\n")
    (tmp_path / "conf" / "method" / "mine.yaml").write_text("name: mine.random\nunit: entry\n")
    distributed = ("regime=distributed", "regime.backend=simulated", "regime.warmup_epochs=0", "compat=fish")
    done = run(tmp_path, f"method={name.partition('.')[0]}", *distributed, "keep=0.02")
    assert done.returncode == 0, done.stderr
    (record,) = read(tmp_path / "outputs" / "records.jsonl")
    assert (record["method"], record["kept"]) == (name, in_all)


def test_a_mask_is_a_mask_whatever_its_function_calls_itself(tmp_path: Path) -> None:
    (tmp_path / "conf" / "method").mkdir(parents=True)
    (tmp_path / "biases.py").write_text("from fishexp.methods import bitfit\n\ndef chosen(problem):\n    ")
    with (tmp_path / "biases.py").open("a") as file:
        file.write("return bitfit.mask(problem)\n\nmask = chosen\n")
    (tmp_path / "conf" / "method" / "biases.yaml").write_text("name: biases\nignores_keep: true\n")
    done = run(tmp_path, "method=biases")
    assert done.returncode == 0, done.stderr
    assert "biases decides by itself which weights move; keep is ignored" in done.stdout


def test_settings_of_the_launch_are_checked_like_those_of_a_regime(tmp_path: Path) -> None:
    (tmp_path / "conf").mkdir()
    for option, message in {
        "regime.restarts=-1": "regime.restarts=-1 should be greater than or equal to 0",
        "regime.backend=threads": "regime.backend=threads should be 'processes' or 'simulated'",
        "regime.timeuot=1": "unknown key regime.timeuot; did you mean regime.timeout?",
    }.items():
        done = run(tmp_path, "regime=distributed", option)
        assert (done.returncode, done.stderr.splitlines()[0][: len(message) + 9]) == (2, f"fishexp: {message}")
