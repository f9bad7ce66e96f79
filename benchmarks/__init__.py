"""A training step, the Fisher information and deltas, beside other ways to the same: ``make bench``."""
