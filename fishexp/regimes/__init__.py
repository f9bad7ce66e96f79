"""How training proceeds: one file a regime, each with ``train(problem, choose, log, decay, *, ...)``."""
