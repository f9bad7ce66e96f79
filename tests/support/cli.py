"""Runs the command line inside the test's process, as `python -m fishexp` does in its own."""

import contextlib
import io
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from fishexp import __main__ as program
from fishexp.run.record import read

# a run of a second on the digits
QUICK = ("regime.epochs=1", "data.train_limit=128", "data.valid_limit=64", "method=random")


@dataclass
class Result:
    status: int
    out: str
    err: str

    def mistake(self) -> str:
        """The one line that a user's mistake gets."""
        assert self.status == 2, self
        assert self.err.startswith("fishexp: "), self
        assert self.err.count("\n") == 1, self
        return self.err.removeprefix("fishexp: ").rstrip("\n")


def fishexp(*arguments: str) -> Result:
    out, err = io.StringIO(), io.StringIO()
    program._finished.clear()
    with (
        mock.patch.object(sys, "argv", ["fishexp", *arguments]),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(err),
    ):
        status = program.main()
    return Result(status, out.getvalue(), err.getvalue())


def records(folder: Path) -> list[dict[str, Any]]:
    return list(read(folder / "outputs" / "records.jsonl"))
