"""The mask rules side by side: ``make rules``."""

from experiments.lib.experiment import Experiment
from experiments.lib.sentences import cost_table
from experiments.rules.profiles import PROFILES
from experiments.rules.report import write_report

EXPERIMENT = Experiment(PROFILES, cost_table, write_report)
