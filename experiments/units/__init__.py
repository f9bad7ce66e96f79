"""Rows, columns and channels beside single entries: ``PROFILE=cpu python -m experiments units``."""

from experiments.lib.experiment import Experiment
from experiments.units.profiles import PROFILES
from experiments.units.report import write_report

EXPERIMENT = Experiment(PROFILES, write_report)
