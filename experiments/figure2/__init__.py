"""Figure 2, how large a mask and how many examples: ``make figure2``. Its runs stand with those of the rules."""

from experiments.figure2.profiles import PROFILES
from experiments.figure2.report import write_report
from experiments.lib.experiment import Experiment
from experiments.lib.sentences import cost_table

EXPERIMENT = Experiment(PROFILES, cost_table, write_report, shares="rules")
