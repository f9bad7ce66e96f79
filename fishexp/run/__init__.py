"""One run: from the command line to its record and what it leaves behind."""
