"""Distributed training: workers that train apart, and merge only the weights that train."""
