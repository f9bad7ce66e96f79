"""The command line, run inside the test's process as `python -m fishexp` runs it in its own."""

import contextlib
import io
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from fishexp import __main__ as program
from fishexp.run.record import read

# arguments of a run that takes a second, on the digits
QUICK = ("regime.epochs=1", "data.train_limit=128", "data.valid_limit=64", "method=random")


@dataclass
class Result:
    """Hold the exit status of a command, and what it printed."""

    status: int
    out: str
    err: str

    def mistake(self) -> str:
        """Return the line that a user's mistake gets."""
        assert self.status == 2, self
        assert self.err.startswith("fishexp: "), self
        assert self.err.count("\n") == 1, self
        return self.err.removeprefix("fishexp: ").rstrip("\n")


def fishexp(*arguments: str) -> Result:
    """Run a command."""
    out, err = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
        status = program.main(arguments)
    return Result(status, out.getvalue(), err.getvalue())


def records(folder: Path) -> list[dict[str, Any]]:
    """Read the records of the runs that were started in ``folder``."""
    return list(read(folder / "outputs" / "records.jsonl"))
