"""Table 3 of the paper, workers that merge rarely, on CIFAR-10: ``PROFILE=cpu python -m experiments table3``."""

from experiments.lib.experiment import Experiment
from experiments.table3.profiles import PROFILES
from experiments.table3.report import write_report

EXPERIMENT = Experiment(PROFILES, write_report)
