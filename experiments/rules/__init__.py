"""The mask rules side by side: ``make rules``."""

from experiments.lib.experiment import Experiment
from experiments.rules.profiles import PROFILES
from experiments.rules.report import write_report

EXPERIMENT = Experiment(PROFILES, write_report)
