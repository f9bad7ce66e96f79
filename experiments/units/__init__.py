"""Rows, columns and channels beside single entries: ``PROFILE=cpu python -m experiments units``."""

from collections.abc import Collection, Iterable

from experiments.lib import costs
from experiments.lib.experiment import Experiment
from experiments.lib.plan import Command
from experiments.units.profiles import PROFILES
from experiments.units.report import write_report


def cost_table(commands: Iterable[Command], done: Collection[str]) -> str:
    """Make the table of runs; how long they take was not measured on an idle machine."""
    return costs.cost_table(commands, done, lambda run: None)


EXPERIMENT = Experiment(PROFILES, cost_table, write_report)
