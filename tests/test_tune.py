"""`python -m fishexp.tune`: which rates are tried, which is taken, what then runs, and what cannot be asked for."""

import os
from pathlib import Path
from typing import Any

import pytest

from fishexp import tune
from fishexp.run import tuning
from tests.support.cli import QUICK, records


@pytest.fixture(autouse=True)
def _in_a_folder_of_its_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)


def asked(run: dict[str, Any]) -> tuple[Any, ...]:
    config = run["config"]
    return run["method"], config["keep"], config["data"]["holdout"], config["seed"], config["regime"]["lr"]


def test_rates_are_chosen_on_held_out_examples_and_the_best_runs_over_seeds(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tuning, "MOST_GROWN", 0)
    command = [*QUICK[:3], "method=random,bitfit", "keep=0.05", "lr=0.1,0.4", "holdout=64", "seed=3,5"]
    assert tune.main(command) == 0
    done, out = records(tmp_path), capsys.readouterr().out
    tried = [(*one, 64, 3, lr) for one in (("random", 0.05), ("bitfit", None)) for lr in (0.1, 0.4)]
    assert list(map(asked, done[:4])) == tried
    scores = [run["metrics"]["accuracy_holdout"] for run in done[:4]]
    best = [0.4 if large > small else 0.1 for small, large in (scores[:2], scores[2:])]
    assert list(map(asked, done[4:])) == [
        (*one, 0, seed, lr)
        for one, lr in zip((("random", 0.05), ("bitfit", None)), best, strict=True)
        for seed in (3, 5)
    ]
    assert f"method=random: lr={best[0]:g} is best (0.1: {scores[0]:.4g}, 0.4: {scores[1]:.4g})" in out
    table = [line for line in out[out.rindex("All rows") :].splitlines() if line.startswith("|")]
    assert [line.split("|")[1].strip() for line in table] == ["method", "------", "random", "bitfit"]
    assert tune.main(command) == 0
    assert records(tmp_path) == done  # nothing runs twice


@pytest.fixture
def commands(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The last settings of each command that would run: what tells it from the others."""
    found: list[list[str]] = []

    def run(arguments: list[str]) -> int:
        found.append([text for text in arguments if text.startswith(("data.holdout", "seed", "regime.lr"))])
        return 0

    monkeypatch.setattr(tune, "run", run)
    return found


def test_a_grid_grows_while_its_best_rate_is_at_the_edge(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """By hand: 0.4 of 0.1 to 0.4 is best, then 1.6; 6.4 is worse."""
    scores = {0.1: 0.5, 0.2: 0.6, 0.4: 0.7, 1.6: 0.8, 6.4: 0.75}
    monkeypatch.setattr(tune, "_score", lambda config: scores[config["regime"]["lr"]])
    assert tune.main([*QUICK, "lr=0.1,0.2,0.4", "data.holdout=64", "seed=4-5"]) == 0
    tried = [["data.holdout=64", "seed=4", f"regime.lr={rates}"] for rates in ("0.1,0.2,0.4", "1.6", "6.4")]
    assert commands == [*tried, ["regime.lr=1.6", "seed=4-5"]]


def test_without_rates_the_default_of_each_method_and_its_neighbours_are_tried(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    """On the digits 0.2 for random masks, 0.8 for Bit-Fit."""
    best = {"random": 0.2, "bitfit": 0.8}
    monkeypatch.setattr(tune, "_score", lambda run: -abs(run["regime"]["lr"] - best[run["method"]["name"]]))
    assert tune.main([*QUICK[:3], "method=random,bitfit", "keep=0.05"]) == 0
    tried = [["data.holdout=500", "seed=0", f"regime.lr={rates}"] for rates in ("0.05,0.2,0.8", "0.2,0.8,3.2")]
    assert commands == [*tried, ["regime.lr=0.2", "seed=0,1,2"], ["regime.lr=0.8", "seed=0,1,2"]]


def test_where_no_rate_has_a_score_nothing_more_runs(
    commands: list[list[str]], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(tune, "_score", lambda config: None)
    assert tune.main([*QUICK, "lr=0.1,0.2", "data.holdout=64"]) == 1
    assert "no score at any rate (0.1: none, 0.2: none)" in capsys.readouterr().out
    assert len(commands) == 1


def test_all_runs_have_the_gpu_that_is_named(commands: list[list[str]], monkeypatch: pytest.MonkeyPatch) -> None:
    """Of those that are visible: the second of 3, 5 and 7; said once, as runs see no other from then on."""
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,7")
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    monkeypatch.setattr(tune, "_score", lambda config: config["regime"]["lr"] == 0.2)
    assert tune.main([*QUICK, "gpu=1", "lr=0.1,0.2,0.4", "data.holdout=64"]) == 0
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "5"
    assert len(commands) == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["lr=0.1"], "regime.lr=0.1 leaves nothing to choose; give several rates, or none"),
        (["lr=0.1,x"], "regime.lr=x "),
        (["method=fsh"], "method=fsh: no such method; did you mean fish?"),
        (["holdout=0"], "data.holdout=0 holds no training examples out; give how many are to choose the rate"),
        (["seed=a"], "seed=a "),
        (["plan=true"], "plan=true foretells runs, whose rates are known; take python -m fishexp -m"),
    ],
)
def test_mistakes_are_a_line_and_nothing_runs(
    arguments: list[str], message: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert tune.main([*QUICK, *arguments]) == 2
    err = capsys.readouterr().err
    assert err.startswith(f"fishexp: {message}")
    assert err.count("\n") == 1
    assert not (tmp_path / "outputs").exists()


def test_a_regime_without_a_learning_rate_is_a_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "mine" / "regime").mkdir(parents=True)
    (tmp_path / "mine" / "regime" / "free.yaml").write_text("name: free\n")
    assert tune.main(["--config-dir", "mine", "regime=free", "keep=0.05"]) == 2
    assert capsys.readouterr().err == "fishexp: regime=free has no lr to choose\n"
