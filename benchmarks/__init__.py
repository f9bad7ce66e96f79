"""A training step and the Fisher information, timed beside other ways to the same: ``make bench``."""
