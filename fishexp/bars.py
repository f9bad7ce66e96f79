"""Progress: a bar on a terminal, a line now and then elsewhere."""

import time
from collections.abc import Callable
from typing import Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from fishexp import interrupts

REFRESH = 0.5  # seconds between updates of a bar: each one waits for the device
PLAIN = 30.0  # seconds between lines where there is no terminal


class Bar:
    """A bar on a terminal; elsewhere a line now and then.

    Args:
        total: Examples.
        say: Takes a line.
        headline: Of the epoch before, shown beside the bar.
        outer: A bar that is there already; this one goes below it.
    """

    def __init__(
        self, console: Console, total: int, say: Callable[[str], None], headline: str, outer: "Bar | None" = None
    ) -> None:
        self._console, self._say, self._outer = console, say, outer
        self.headline = headline
        self._progress = _progress(console) if outer is None else outer._progress
        self._task = self._progress.add_task("", total=total, numbers="")
        self._waiting = 0
        self._last = self._line = time.monotonic()

    def __enter__(self) -> Self:
        if self._outer is None:
            self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._outer is None:
            self._progress.stop()
        else:
            self._progress.remove_task(self._task)

    def skip(self, examples: int) -> None:
        """So many were done before; they say nothing about the speed."""
        self._progress.reset(self._task, completed=examples)

    def describe(self, text: str) -> None:
        """What is going on."""
        self._progress.update(self._task, description=text)

    def advance(self, loss: Tensor | None, examples: int) -> None:
        """``examples`` more are done; ``loss`` is looked at only when the bar is drawn."""
        interrupts.check()
        self._waiting += examples
        now = time.monotonic()
        if now - self._last < REFRESH:
            return
        self._last = now
        self._progress.update(self._task, advance=self._waiting)
        self._waiting = 0
        task = next(task for task in self._progress.tasks if task.id == self._task)
        parts = [
            f"loss {loss.item():.3f}" if loss is not None else "",
            self.headline,
            f"{task.speed:,.0f} examples/s" if task.speed else "",
        ]
        self._progress.update(self._task, numbers="  ".join(part for part in parts if part))
        if not self._console.is_terminal and now - self._line >= PLAIN:
            self._line = now
            left = f", {task.time_remaining / 60:.1f} min left" if task.time_remaining else ""
            self._say(f"{task.description} {task.percentage:.0f} %  {task.fields['numbers']}{left}")


def _progress(console: Console) -> Progress:
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TaskProgressColumn(),
        TextColumn("{task.fields[numbers]}"),
        TimeRemainingColumn(compact=True),
        TextColumn("left"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
        speed_estimate_period=120,
    )
