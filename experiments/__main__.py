"""Carry out an experiment: ``PROFILE=cpu python -m experiments table3``.

Learning rates are chosen on held-out training examples with seed 0; every cell runs at its rate, seed by seed.
Finished runs are skipped and cut ones resumed, so the same command goes on where it stopped, also in two terminals at
once.
"""

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from importlib import import_module
from pathlib import Path
from typing import Any

from experiments.lib.experiment import Experiment, run_experiment
from fishexp.errors import FishexpError
from fishexp.system.program import carry_out

HOME = Path(__file__).parent
_ENVIRONMENT = """environment:
  PROFILE  how large the experiment is made: cpu (the default), gpu, paper; not all have each
  DRY      1: say how many runs and hours there are to do, and run nothing
  HOURS    time a few steps, say what fits into so many hours, and stop after them, with a snapshot of the run that
           goes on; all cells have one seed before any has two, so that tables are whole for some number of seeds,
           which is said; the same command goes on
  PYTHON   the interpreter of the runs; by default the one that runs this
"""


def main(arguments: Sequence[str], environment: Mapping[str, str]) -> int:
    """Carry out the experiment that the command line names; return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments",
        description=__doc__,
        epilog=_ENVIRONMENT,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("name", nargs="?", default="", help=", ".join(names()))
    name = parser.parse_args(arguments).name

    def work() -> int:
        experiment = load(name)
        home = experiment.shares or name
        return run_experiment(experiment, environment, HOME / home / "records.jsonl", f"outputs/{home}", HOME / name)

    return carry_out("fishexp", work, lambda: "interrupted; the same command goes on")


def names() -> list[str]:
    """List the experiments: the packages in this folder."""
    return sorted(file.parent.name for file in HOME.glob("*/__init__.py") if file.parent.name != "lib")


def load(name: str) -> Experiment[Any]:
    """Import the experiment in the folder ``name``.

    Raises:
        FishexpError: If there is none.
    """
    if name not in names():
        wrong = f"{name}: no such experiment" if name else "name an experiment"
        raise FishexpError(f"{wrong}; there are {', '.join(names())}")
    return import_module(f"experiments.{name}").EXPERIMENT


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], os.environ))
