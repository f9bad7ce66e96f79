"""The command line of deltas, run inside the test's process."""

import pytest

from fishexp.delta.__main__ import main


def run(*arguments: object) -> int:
    """Run a command and return its exit status."""
    return main([str(argument) for argument in arguments])


def mistake(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    """Return the one line of a command that is refused."""
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert err.startswith("fishexp.delta: ")
    assert err.count("\n") == 1
    return err.removeprefix("fishexp.delta: ").rstrip("\n")
