"""How the runs of one command get on: which of how many, the time left, how each ended, a summary."""

import io
import json
import os
import sys
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass, field
from operator import attrgetter
from pathlib import Path
from typing import Literal, NamedTuple, TextIO, TypeAlias

from fishexp.system.text_table import aligned_text

Status: TypeAlias = Literal["finished", "failed", "interrupted", "done already", "busy"]
# seconds from which a duration is shown in minutes, and in hours
_MINUTES, _HOURS = 120, 7200


class Outcome(NamedTuple):
    """Hold how a run ended.

    Attributes:
        metrics: Metrics of the run, the headline first; empty if there are none.
        exit_status: What the command is to exit with, if no other run is worse.
    """

    status: Status
    metrics: Mapping[str, float | None]
    exit_status: int = 0


class Ended(NamedTuple):
    """Hold which run of a command ended, counted from 1, after how many seconds, and how."""

    number: int
    name: str
    seconds: float
    outcome: Outcome


@dataclass(frozen=True)
class Sweep:
    """Follow the runs of a command, each in whatever process.

    Attributes:
        file: Each run that ended adds a line here.
        settings: What tells each run from the others; empty for a single run.
        results: What each run would leave, and where: runs that would leave the same are one run.
        shown: Tell the user about it.
        start: Seconds since the epoch at the start.
    """

    file: Path
    settings: Sequence[str]
    results: Sequence[tuple[str, ...]]
    shown: bool
    start: float = field(default_factory=time.time)

    @property
    def total(self) -> int:
        """Number of runs."""
        return len(self.settings)

    def begin(self, number: int) -> None:
        """Say which run begins, and how long the sweep goes on."""
        if self.shown:
            ended = self.ended()
            left = self.total - len(ended)
            timed = sum(end.outcome.status in ("finished", "failed") for end in ended)
            about = f"about {duration((time.time() - self.start) / timed * left)} left" if timed else ""
            words = (f"run {number}/{self.total}", self.settings[number - 1], about)
            print(", ".join(word for word in words if word), flush=True)

    def end(self, ended: Ended) -> None:
        """Note how a run ended."""
        with self.file.open("a") as file:
            file.write(json.dumps(ended) + "\n")

    def ended(self) -> list[Ended]:
        """Return how each run ended, of those that did; the last time, if its job was requeued."""
        lines = map(json.loads, self.file.read_text().splitlines())
        ended = {number: Ended(number, name, seconds, Outcome(*outcome)) for number, name, seconds, outcome in lines}
        return sorted(ended.values(), key=attrgetter("number"))

    def has_finished(self, number: int) -> bool:
        """Tell whether this command has finished a run already, as one of its others."""
        finished = [end.number for end in self.ended() if end.outcome.status == "finished"]
        return any(self.results[other - 1] == self.results[number - 1] for other in finished)

    def summary(self) -> str:
        """Write how all runs ended: a line, and a table."""
        ended = self.ended()
        counts = ", ".join(
            f"{count} {status}" for status, count in Counter(end.outcome.status for end in ended).items()
        )
        left = self.total - len(ended)
        more = f"; {left} did not begin, resume=true goes on" if left else ""
        rows = [("run", "name", "result", "status", "seconds")]
        rows += [
            (self.settings[number - 1], name, _headline(outcome.metrics), outcome.status, f"{seconds:.1f}")
            for number, name, seconds, outcome in ended
        ]
        times = f"{self.total} run{'s' * (self.total > 1)} in {duration(time.time() - self.start)}"
        return "\n".join(["", f"{times}: {counts}{more}", *aligned_text(rows, left_columns=4)])


def differing(runs: Sequence[Sequence[str]]) -> list[str]:
    """Return for each run, of which the overrides are given, those that not all runs have."""
    shared = set.intersection(*map(set, runs))
    return [" ".join(override for override in run if override not in shared) for run in runs]


def _headline(metrics: Mapping[str, float | None]) -> str:
    for name, value in metrics.items():
        return f"{name} {'undefined' if value is None else f'{value:.4g}'}"
    return ""


def duration(seconds: float) -> str:
    """Write a duration in words: 40 s, 12 min, 3.5 h."""
    if seconds < _MINUTES:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < _HOURS else f"{seconds / 3600:.1f} h"


@contextmanager
def labelled(label: str) -> Iterator[None]:
    """Put a label before each line that is printed in the context, as others print at the same time; none if empty."""
    if not label:
        yield
        return
    with redirect_stdout(_Labelled(sys.stdout, label)):
        yield


class _Labelled(io.TextIOBase):
    """Write whole lines to a stream, each after a label, and each at once."""

    def __init__(self, stream: TextIO, label: str) -> None:
        self._stream, self._label, self._rest = stream, label, ""

    def write(self, text: str) -> int:
        *lines, self._rest = (self._rest + text).split("\n")
        if lines:
            self._stream.write("".join(f"[{self._label}] {line}{os.linesep}" for line in lines))
            self._stream.flush()
        return len(text)

    @property
    def encoding(self) -> str:  # pyright: ignore[reportIncompatibleVariableOverride]
        return self._stream.encoding
