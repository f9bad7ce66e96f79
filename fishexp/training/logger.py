"""The log of a run while it goes: lines, progress bars, metrics.jsonl, and the same for W&B and TensorBoard."""

import json
import logging
import shutil
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from fishexp.errors import FishexpError
from fishexp.system import signals
from fishexp.system.atomic import replacing, writing
from fishexp.training.tensorboard_run import TENSORBOARD, TensorBoardRun
from fishexp.training.wandb_run import WandbMode, WandbRun

METRICS = "metrics.jsonl"  # of the epochs, a line each, in a run folder
REFRESH = 0.5  # seconds between updates of a bar: each update waits for the device
PLAIN = 30.0  # seconds between lines where there is no terminal


def log_file(folder: Path, rank: int) -> Path:
    """Return the path of a worker's log in a run folder; the first worker's is the log of the run."""
    return folder / f"workers/{rank}.txt" if rank else folder / "log.txt"


class Tracker(Protocol):
    """Show the numbers of a run elsewhere; never the only copy."""

    def log(self, epoch: int, metrics: Mapping[str, float | None]) -> None:
        """Show metrics at an epoch, which is never less than one before."""
        ...

    def finish(self, record: Mapping[str, Any], delta: Path) -> None:
        """End the run, with its record and the file of its delta, which may not be there."""
        ...


class Logger:
    """Report a run to the console, to its folder, and to W&B and TensorBoard.

    Args:
        folder: Folder of the run; log.txt and metrics.jsonl are written there, and others' files below it.
        name: Name of the run, for people.
        config: Configuration of the run, for W&B.
        tensorboard: Write files for TensorBoard.
        resumed: Append to the log.txt that is there.
        rank: The worker's rank. All but the first report to workers/RANK.txt only.

    Attributes:
        seconds: What was clocked -> seconds spent on it.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config: Mapping[str, Any],
        wandb: WandbMode,
        *,
        tensorboard: bool = False,
        resumed: bool = False,
        rank: int = 0,
    ) -> None:
        self.folder, self.name, self.config = folder, name, config
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.console = Console(soft_wrap=True, highlight=False, quiet=rank > 0)
        self._file = log_file(folder, rank)
        self._resumed, self._is_first = resumed, rank == 0
        self._mode: WandbMode = wandb if rank == 0 else "disabled"
        self._tensorboard = tensorboard and rank == 0
        self._trackers: list[Tracker] = []
        self._wandb_id: str | None = None
        self._clocked: tuple[str, float] | None = None  # what is being clocked, and since when
        self._metrics: list[str] = []  # lines of metrics.jsonl
        self._headline = ""
        self._bar: ProgressBar | None = None

    def __enter__(self) -> Self:
        self._logger = logging.getLogger("fishexp")
        self._level = self._logger.level
        self._logger.setLevel(logging.DEBUG)
        self._file.parent.mkdir(exist_ok=True)
        if not self._resumed:
            self._file.write_text("")
        file = _FileHandler(self._file, encoding="utf-8")  # appends, as others in this process may
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._handlers = [file, _ConsoleHandler(self.console)]  # tracebacks (debug) go to the file only
        for handler in self._handlers:
            self._logger.addHandler(handler)
        return self

    def __exit__(self, *_: object) -> None:
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()
        self._logger.setLevel(self._level)

    def begin(self, state: Mapping[str, Any]) -> None:
        """Start the metrics, and what shows them if it is wanted, or resume those of the run that was interrupted.

        The metrics of its epochs come from the snapshot, whatever has become of metrics.jsonl.

        Args:
            state: What :meth:`state` returned when the snapshot was taken; empty for a new run.

        Raises:
            FishexpError: If the snapshot is of another version of fishexp, or there is no TensorBoard or W&B.
            RunFailed: If the metrics cannot be written.
        """
        self.seconds.update(state.get("seconds", {}))
        if not self._is_first:
            return
        if state and "metrics" not in state:
            raise FishexpError("the snapshots are of another version of fishexp; resume=false begins anew")
        if not state:
            shutil.rmtree(self.folder / TENSORBOARD, ignore_errors=True)
        self._metrics = list(state.get("metrics", ()))
        self._write_metrics()
        self._wandb_id = state.get("wandb")
        if self._tensorboard:
            self._trackers.append(TensorBoardRun(self.folder, len(self._metrics) + 1))
        if self._mode != "disabled":
            wandb = WandbRun(self.folder, self.name, self.config, self._mode, self._wandb_id)
            self._wandb_id = wandb.id
            self._trackers.append(wandb)

    def state(self) -> dict[str, Any]:
        """Return what :meth:`begin` needs to resume this log from a snapshot."""
        seconds = dict(self.seconds)
        if self._clocked is not None:
            what, start = self._clocked
            seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - start
        return {"seconds": seconds, "wandb": self._wandb_id, "metrics": list(self._metrics)}

    def say(self, text: str) -> None:
        """Write a line to the console and to log.txt."""
        self._logger.info(text)

    def epoch(self, epoch: int, metrics: Mapping[str, float | None]) -> None:
        """Report the metrics after an epoch, counted from 1.

        Raises:
            RunFailed: If they cannot be written.
        """
        if self._is_first:
            self._metrics.append(json.dumps({"epoch": epoch, **metrics}) + "\n")
            self._write_metrics()
        self._track(epoch, metrics)
        self._headline = next((f"{name} {_short(metrics[name])}" for name in metrics if "loss" not in name), "")
        if self._bar is not None:
            self._bar.headline = self._headline
        self.say(f"epoch {epoch}: {_listed(metrics)}")

    def result(self, epoch: int, metrics: Mapping[str, float | None], *, trained: int) -> None:
        """Report the metrics of the epoch that was chosen, measured when training had ended.

        They are added to that epoch's line of metrics.jsonl. Elsewhere they are shown at the last epoch that was
        trained, as W&B's steps never go back.

        Raises:
            RunFailed: If they cannot be written.
        """
        if self._is_first:
            self._metrics[epoch - 1] = json.dumps(json.loads(self._metrics[epoch - 1]) | metrics) + "\n"
            self._write_metrics()
        self._track(trained, metrics)
        self.say(f"epoch {epoch}, on the reported examples: {_listed(metrics)}")

    def _track(self, epoch: int, metrics: Mapping[str, float | None]) -> None:
        for tracker in self._trackers:
            tracker.log(epoch, metrics)

    def _write_metrics(self) -> None:
        """Write all of metrics.jsonl anew, so that it is right whatever has become of it."""
        file = self.folder / METRICS
        with writing(file), replacing(file) as new:
            new.write_text("".join(self._metrics))

    def finish(self, record: Mapping[str, Any], delta: Path) -> None:
        """Hand the record and the delta, if there is one, to what shows the run; to be called however the run ended."""
        while self._trackers:
            self._trackers.pop().finish(record, delta)

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Add the seconds spent inside to ``seconds[what]``."""
        signals.check()
        start = time.perf_counter()
        self._clocked = what, start
        try:
            yield
        finally:
            self._clocked = None
            self.seconds[what] += time.perf_counter() - start

    @contextmanager
    def bar(self, total: int) -> Iterator["ProgressBar"]:
        """Show progress over ``total`` examples; below the present bar, if there is one."""
        outer = self._bar
        with ProgressBar(self.console, total, self.say, self._headline, outer) as self._bar:
            try:
                yield self._bar
            finally:
                self._bar = outer

    @contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        """Show a bar for work without a loss; yields a function that takes the number of examples just done."""
        with self.bar(total) as bar:
            bar.describe(what)
            yield lambda examples: bar.advance(None, examples)


class ProgressBar:
    """Show progress: a bar on a terminal, a line now and then elsewhere.

    Args:
        total: Examples in all.
        say: Writes a line.
        headline: The headline metric of the epoch before, shown beside the bar.
        outer: A bar that is there already; this bar goes below it.
    """

    def __init__(
        self, console: Console, total: int, say: Callable[[str], None], headline: str, outer: "ProgressBar | None"
    ) -> None:
        self._console, self._say, self._outer = console, say, outer
        self.headline = headline
        self._progress = _rich_progress(console) if outer is None else outer._progress
        self._task = self._progress.add_task("", total=total, numbers="")
        self._waiting = 0
        self._last_update = self._last_line = time.monotonic()

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
        """Count examples that were done in an earlier session, which say nothing about the speed."""
        self._progress.reset(self._task, completed=examples)

    def describe(self, text: str) -> None:
        """Show what is going on."""
        self._progress.update(self._task, description=text)

    def advance(self, loss: Tensor | None, examples: int) -> None:
        """Count ``examples`` more as done; ``loss`` is looked at only when the bar is drawn."""
        signals.check()
        self._waiting += examples
        now = time.monotonic()
        if now - self._last_update < REFRESH:
            return
        self._last_update = now
        self._progress.update(self._task, advance=self._waiting)
        self._waiting = 0
        task = next(task for task in self._progress.tasks if task.id == self._task)
        parts = [
            f"loss {loss.item():.3f}" if loss is not None else "",
            self.headline,
            f"{task.speed:,.0f} examples/s" if task.speed else "",
        ]
        self._progress.update(self._task, numbers="  ".join(part for part in parts if part))
        if not self._console.is_terminal and now - self._last_line >= PLAIN:
            self._last_line = now
            left = f", {task.time_remaining / 60:.1f} min left" if task.time_remaining else ""
            self._say(f"{task.description} {task.percentage:.0f} %  {task.fields['numbers']}{left}")


def _rich_progress(console: Console) -> Progress:
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


class _FileHandler(logging.FileHandler):
    """Write lines to a file, and go on in silence where the disk is full; what needs the disk will say so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


class _ConsoleHandler(logging.Handler):
    """Print lines above the bar, if there is a bar."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), markup=False)


def _listed(metrics: Mapping[str, float | None]) -> str:
    """Write metrics for a line."""
    shown = [f"{name} {_short(value)}" for name, value in metrics.items() if not name.startswith("largest_")]
    single = any(name.startswith("largest_predicted") and value == 1 for name, value in metrics.items())
    return ", ".join(shown) + "; it predicts the same class for all examples" * single


def _short(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"
