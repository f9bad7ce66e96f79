"""``python -m MODULE`` in a process of its own, without the seconds that its imports take."""

import os
import runpy
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Self

from tests.support import forkserver


class Program:
    """Start ``python -m module arguments`` in ``folder``, forked from a process that has its imports done.

    It is used like :class:`subprocess.Popen` with pipes for stdout and stderr, and killed at the end of its block.
    What is forked has its own working directory, environment, streams and signals, and a ``__main__`` that runs as
    ``-m`` runs it. What it does not show is what happens while Python starts and imports.

    Args:
        folder: The working directory; that of the test by default.
        environment: All variables; those of the test by default.
        prepare: Called first in the new process, such as ``resource.setrlimit`` with its arguments; pickled, and not to
            import ``module``, which would then be known before it runs.
    """

    def __init__(
        self,
        module: str,
        *arguments: str,
        folder: Path | None = None,
        environment: Mapping[str, str] | None = None,
        prepare: Callable[[], object] | None = None,
    ) -> None:
        self._streams = tempfile.TemporaryDirectory(prefix="fishexp-streams-")
        self._out, self._err = Path(self._streams.name, "out"), Path(self._streams.name, "err")
        self._arguments = (module, *arguments)
        self._process = forkserver.context().Process(
            target=_run,
            args=(
                self._arguments,
                str(folder or Path.cwd()),
                dict(os.environ if environment is None else environment),
                (str(self._out), str(self._err)),
                prepare,
            ),
        )
        self._process.start()
        self.pid: int = self._process.pid

    def poll(self) -> int | None:
        """Return the exit status, minus the signal that ended the process, or None while it runs."""
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        """Wait for the process to end, and return its exit status."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            assert timeout is not None
            raise subprocess.TimeoutExpired(self._arguments, timeout)
        return self._process.exitcode

    def communicate(self, timeout: float | None = None) -> tuple[str, str]:
        """Wait for the process to end, and return what it printed to stdout and to stderr."""
        self.wait(timeout)
        return self._out.read_text(), self._err.read_text()

    def send_signal(self, kind: signal.Signals) -> None:
        """Send a signal to the process unless it ended."""
        if self.poll() is None:
            os.kill(self.pid, kind)

    def kill(self) -> None:
        """End the process at once."""
        self.send_signal(signal.SIGKILL)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.kill()
        self._process.join()
        self._process.close()
        self._streams.cleanup()


def run(module: str, *arguments: str, folder: Path | None = None) -> subprocess.CompletedProcess[str]:
    """Run ``python -m module arguments`` in ``folder`` to its end."""
    with Program(module, *arguments, folder=folder) as program:
        out, err = program.communicate()
        return subprocess.CompletedProcess((module, *arguments), program.wait(), out, err)


def _run(
    words: tuple[str, ...],
    folder: str,
    environment: Mapping[str, str],
    streams: tuple[str, str],
    prepare: Callable[[], object] | None,
) -> None:
    """Become the program, in a process that was just forked."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, stream, path in ((1, sys.stdout, streams[0]), (2, sys.stderr, streams[1])):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND), number)
        stream.reconfigure(line_buffering=True)  # type: ignore[union-attr]
    sys.argv[1:] = words[1:]
    sys.path.insert(0, folder)
    if prepare is not None:
        prepare()
    runpy.run_module(words[0], run_name="__main__", alter_sys=True)
