"""The mask rules side by side: ``make rules``."""

from experiments.lib import costs
from experiments.lib.experiment import Experiment
from experiments.rules.profiles import PROFILES
from experiments.rules.report import write_report

EXPERIMENT = Experiment(PROFILES, costs.cost_table, write_report)
