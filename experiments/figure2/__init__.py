"""Figure 2, how large a mask and how many examples: ``make figure2``. Its runs stand with those of the rules."""

from experiments.figure2.profiles import PROFILES
from experiments.figure2.report import write_report
from experiments.lib.experiment import Experiment

EXPERIMENT = Experiment(PROFILES, write_report, shares="rules")
