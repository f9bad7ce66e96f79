"""How the processes of a run are started, and what each is to its run."""
