"""Table 1, GLUE: ``make table1``. Its runs stand with those of the rules, as half of them are the same."""

from experiments.lib.experiment import Experiment
from experiments.table1.profiles import PROFILES
from experiments.table1.report import write_report

EXPERIMENT = Experiment(PROFILES, write_report, shares="rules")
