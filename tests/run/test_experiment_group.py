"""`experiment=NAME`: settings of the user's under one name, components among them."""

from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.support.cli import fishexp

WIDE = """# @package _global_
defaults:
  - override /method: magnitude
keep: 0.02
regime: {epochs: 2}
"""


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "mine" / "experiment"
    folder.mkdir(parents=True)
    (folder / "wide.yaml").write_text(WIDE)
    (folder / "narrow.yaml").write_text("# @package _global_\nkeep: 0.004\n")
    (folder / "loose.yaml").write_text("keep: 0.02\n")
    (folder / "late-line.yaml").write_text(f"# a comment\n{WIDE}")  # Hydra reads no @package behind it
    monkeypatch.chdir(tmp_path)


def composed(*arguments: str) -> list[dict[str, Any]]:
    result = fishexp("--config-dir", "mine", *arguments, "--cfg", "job")
    assert result.status == 0, result
    return list(yaml.safe_load_all(result.out))


def test_its_settings_count_and_those_of_the_command_more() -> None:
    (plain,), (wide,) = composed(), composed("experiment=wide")
    assert (wide["method"]["name"], wide["keep"], wide["regime"]["epochs"]) == ("magnitude", 0.02, 2)
    assert {**wide, "method": 0, "keep": 0, "regime": 0} == {**plain, "method": 0, "keep": 0, "regime": 0}
    (own,) = composed("experiment=wide", "method=fish", "samples=32", "epochs=3")
    assert (own["method"]["name"], own["method"]["samples"], own["regime"]["epochs"]) == ("fish", 32, 3)
    (order,) = composed("experiment=wide", "order=smallest")  # a key of the method that the experiment chooses
    assert order["method"]["order"] == "smallest"


def test_a_sweep_over_experiments() -> None:
    found = composed("-m", "experiment=wide,narrow", "seed=1")
    assert [(run["method"]["name"], run["keep"], run["seed"]) for run in found] == [
        ("magnitude", 0.02, 1), ("fish", 0.004, 1)
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("experiment=wide",), "experiment=NAME takes DIR/experiment/NAME.yaml: name the folder by --config-dir DIR"),
        (
            ("--config-dir", "mine", "experiment=no"),
            "experiment=no: no such experiment; did you mean narrow? there are: late-line, loose, narrow, wide",
        ),
        (
            ("--config-dir", "mine", "experiment=loose"),
            "experiment/loose.yaml: settings of a run begin with the line # @package _global_",
        ),
        (
            ("--config-dir", "mine", "experiment=late-line"),
            "experiment/late-line.yaml: settings of a run begin with the line # @package _global_",
        ),
        (("--config-dir", "mine", "+experiment=wide"), "experiment has a value already; leave the + away"),
    ],
)
def test_wrong_turns(arguments: tuple[str, ...], said: str) -> None:
    assert fishexp(*arguments).mistake() == said
