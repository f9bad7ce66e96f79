"""Table 4 of the paper, every epoch kept as a checkpoint: ``PROFILE=cpu python -m experiments table4``."""

from experiments.lib.experiment import Experiment
from experiments.table4.costs import cost_table
from experiments.table4.profiles import PROFILES
from experiments.table4.report import write_report

EXPERIMENT = Experiment(PROFILES, write_report, cost_table)
