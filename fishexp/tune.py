"""Learning rates chosen on held-out examples, then runs at the best: ``python -m fishexp.tune method=fish,random``."""

import argparse
import sys
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from fishexp.__main__ import main as run
from fishexp.__main__ import use_gpus
from fishexp.errors import FishexpError
from fishexp.report.pool import load, pool
from fishexp.report.table import markdown
from fishexp.run.config import Command, read_command, register_resolvers
from fishexp.run.identity import run_id
from fishexp.run.record import finished
from fishexp.run.settings import Config, component
from fishexp.run.sweep import differing
from fishexp.run.tuning import best_rate, rates_beyond
from fishexp.system.program import FAILED, carry_out

# factor from a learning rate to the next, also beyond a grid whose best rate is at its edge
_GROW = 4
# what stands where nothing is given: seeds of the runs at the best rate, and training examples that choose it
_SEEDS, _HOLDOUT = "seed=0,1,2", "data.holdout=500"
_EPILOG = """
Any settings of `python -m fishexp`; of several values, every combination has a learning rate of its own. lr=A,B,C are
the rates to try first: without it, a quarter of the default, the default, and four times it. While the best is the
largest or the smallest, the next one beyond is tried, three times at most. The first seed chooses, on data.holdout
training examples that are not trained on (500 if you do not say); all seeds (0,1,2) run at the rate chosen, on all of
the training examples. Runs on record are not repeated, and the same command goes on where it stopped.

  python -m fishexp.tune data=glue task=rte model=minilm method=fish,random,bitfit,full
  python -m fishexp.tune method=fish keep=0.5%,2% lr=0.05,0.2,0.8 seed=0-4 holdout=287
"""


@dataclass(frozen=True)
class Cell:
    """Hold settings that have a learning rate of their own.

    Attributes:
        name: What tells them from others of the command; empty for the only ones.
        overrides: As Hydra takes them, without learning rate, seed and held-out examples.
        lr: The learning rate that they have by default.
    """

    name: str
    overrides: tuple[str, ...]
    lr: float


class Tuner:
    """Carry out the runs that a command line asks for.

    Args:
        typed: Arguments of the form ``key=value``.
        config_dir: Folder with components of the user's, if any.

    Raises:
        FishexpError: If an argument cannot be read, or there is a single learning rate.
    """

    def __init__(self, typed: Sequence[str], config_dir: str | None) -> None:
        given = {"seed": _SEEDS, "data.holdout": _HOLDOUT, "regime.lr": ""}
        others = []
        for text in typed:
            key = {"lr": "regime.lr", "holdout": "data.holdout"}.get(name := text.partition("=")[0], name)
            if key in given:
                given[key] = f"{key}={text.partition('=')[2]}"
            else:
                others.append(text)
        self._config_dir = config_dir
        command = self._read(others)
        use_gpus(command.runs.gpus)  # once: the overrides below say no more than device=cuda
        self._shared = [*command.runs.hydra, "resume=true"]
        if any(config["plan"] for config in command.configs):
            raise FishexpError("plan=true foretells runs, whose rates are known; take python -m fishexp -m")
        if without := [config["regime"]["name"] for config in command.configs if "lr" not in config["regime"]]:
            raise FishexpError(f"regime={without[0]} has no lr to choose")
        names = differing(command.runs.overrides)
        self.cells = [
            Cell(name, tuple(overrides), config["regime"]["lr"])
            for name, overrides, config in zip(names, command.runs.overrides, command.configs, strict=True)
        ]
        self._holdout, self._seeds = given["data.holdout"], given["seed"]
        first = self.cells[0].overrides
        if not all(config["data"]["holdout"] for config in self._read([*first, self._holdout]).configs):
            raise FishexpError(f"{self._holdout} holds no training examples out; give how many are to choose the rate")
        self._seed = f"seed={self._read([*first, self._seeds]).configs[0]['seed']}"
        at_rates = self._read([*first, given["regime.lr"]]).configs if given["regime.lr"] else []
        for config in at_rates:
            component("regime", config["regime"])  # refuses what is no learning rate
        self._rates = [config["regime"]["lr"] for config in at_rates]
        if len(self._rates) == 1:
            raise FishexpError(f"{given['regime.lr']} leaves nothing to choose; give several rates, or none")

    def choose(self, cell: Cell) -> tuple[int, float | None]:
        """Run a cell at the learning rates to try, as many as it takes until the best is inside.

        Returns:
            Exit status, and the best rate; None if no run has a score.
        """
        rates = self._rates or [float(f"{cell.lr * factor:.12g}") for factor in (1 / _GROW, 1, _GROW)]
        tried, due, status = dict[float, float | None](), rates, 0
        while due:
            values = ",".join(f"{lr:.12g}" for lr in due)
            ended, runs = self._run([*cell.overrides, self._holdout, self._seed, f"regime.lr={values}"])
            status = max(status, ended)
            if ended not in (0, FAILED):
                return status, None
            tried |= {config["regime"]["lr"]: _score(config) for config in runs}
            due = rates_beyond(rates, tried, _GROW)
        best = best_rate(tried)
        told = ", ".join(
            f"{lr:g}: {'none' if score is None else f'{score:.4g}'}" for lr, score in sorted(tried.items())
        )
        chosen = f"lr={best:g} is best" if best is not None else "no score at any rate"
        print(f"\n{cell.name or 'held-out examples'}: {chosen} ({told})", flush=True)
        return status, best

    def report(self, cell: Cell, lr: float) -> tuple[int, list[Config]]:
        """Run a cell at the rate chosen, with all seeds; returns the exit status and the runs."""
        return self._run([*cell.overrides, f"regime.lr={lr:.12g}", self._seeds])

    def _run(self, overrides: Sequence[str]) -> tuple[int, list[Config]]:
        command = self._read(overrides)
        flags = ["--config-dir", self._config_dir] if self._config_dir is not None else []
        return run(["-m", *flags, *self._shared, *overrides]), command.configs

    def _read(self, overrides: Sequence[str]) -> Command:
        return read_command(
            Namespace(overrides=list(overrides), multirun=True, config_dir=self._config_dir, config_name=None)
        )


def _score(config: Config) -> float | None:
    """Return the headline metric of a run on record; None if it has not finished, or the metric is undefined."""
    record = finished(Path(config["records"])).get(run_id(config))
    return next(iter(record["metrics"].values())) if record else None


def _tune(options: Namespace) -> int:
    tuner = Tuner(options.overrides, options.config_dir)
    status, runs = 0, list[Config]()
    chosen = dict[Cell, float | None]()
    for cell in tuner.cells:
        ended, chosen[cell] = tuner.choose(cell)
        if ended not in (0, FAILED):
            return ended
        status = max(status, ended)
    for cell, lr in chosen.items():
        if lr is None:
            status = max(status, FAILED)
            continue
        ended, configs = tuner.report(cell, lr)
        status, runs = max(status, ended), [*runs, *configs]
        if ended not in (0, FAILED):
            return ended
    ids = {run_id(config) for config in runs}
    records = list(dict.fromkeys(Path(config["records"]) for config in runs))
    found = [record for record in load(file for file in records if file.exists()) if record["run_id"] in ids]
    if any(record["status"] == "finished" for record in found):
        print(f"\n{markdown(pool(found, uncommitted=True))}")
    return status


def main(arguments: Sequence[str] | None = None) -> int:
    """Choose learning rates and run at the best; return 0, 1 if a run failed, 2 for a user's mistake."""
    parser = argparse.ArgumentParser(
        prog="python -m fishexp.tune",
        description="Choose a learning rate on held-out training examples, for each method, budget and whatever else "
        "is swept, then run at it over seeds, and print the table.",
        epilog=_EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("--config-dir", metavar="DIR", help="add components of your own, as for python -m fishexp")
    parser.add_argument("overrides", nargs="*", metavar="key=value")
    options = parser.parse_args(arguments)
    register_resolvers()
    return carry_out("fishexp", lambda: _tune(options))


if __name__ == "__main__":
    sys.exit(main())
