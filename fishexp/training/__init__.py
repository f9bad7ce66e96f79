"""The engine: one model, trained by one process."""
