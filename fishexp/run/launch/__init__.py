"""Ways to start the worker processes of a run."""
