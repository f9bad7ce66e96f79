"""Table 2 of the paper, workers that merge rarely, on GLUE: ``PROFILE=cpu python -m experiments table2``."""

from experiments.lib.experiment import Experiment
from experiments.table2.profiles import PROFILES
from experiments.table2.report import write_report

EXPERIMENT = Experiment(PROFILES, write_report)
