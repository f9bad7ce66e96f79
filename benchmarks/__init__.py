"""Benchmarks of a training step, Fisher scores, deltas and merges beside other implementations: ``make bench``."""
