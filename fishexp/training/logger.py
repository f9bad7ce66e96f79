"""What a run says while it goes: lines, bars, metrics.jsonl, W&B."""

import json
import logging
import os
import time
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Literal, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
from torch import Tensor

from fishexp.errors import FishexpError
from fishexp.system import signals
from fishexp.system.atomic import replacing

WandbMode = Literal["disabled", "offline", "online"]


class ProgressBar:
    """A bar on a terminal; elsewhere a line now and then.

    Args:
        total: Examples.
        say: Takes a line.
        headline: Of the epoch before, shown beside the bar.
        outer: A bar that is there already; this one goes below it.
    """

    def __init__(
        self,
        console: Console,
        total: int,
        say: Callable[[str], None],
        headline: str,
        outer: "ProgressBar | None" = None,
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
        signals.check()
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


class Logger:
    """Everything a run reports, opened and closed with it.

    Args:
        folder: The run's; log.txt and metrics.jsonl are written there, and W&B's files below it.
        name: Of the run, for people.
        config: Goes to W&B.
        resumed: Add to the log.txt that is there.
        rank: Of a worker. All but the first say what they have to say in workers/RANK.txt only.
    """

    def __init__(
        self,
        folder: Path,
        name: str,
        config: Mapping[str, Any],
        wandb: WandbMode,
        *,
        resumed: bool = False,
        rank: int = 0,
    ) -> None:
        self.folder, self.name, self.config = folder, name, config
        self._file = log_file(folder, rank)
        self._resumed, self._leads = resumed, rank == 0
        self._mode: WandbMode = wandb if self._leads else "disabled"
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.console = Console(soft_wrap=True, highlight=False, quiet=not self._leads)
        self._headline = ""
        self._wandb: Any = None
        self.wandb_id: str | None = None
        self._running: tuple[str, float] | None = None
        self._bar: ProgressBar | None = None

    def __enter__(self) -> Self:
        self._logger = logging.getLogger("fishexp")
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

    def begin(self, about: Mapping[str, Any]) -> None:
        """Start the W&B run, if one is wanted, and the metrics; or go on with those of the run that was cut short.

        Args:
            about: What :meth:`about` said then; empty for a new run.
        """
        self.seconds.update(about.get("seconds", {}))
        if not self._leads:
            return
        file = self.folder / "metrics.jsonl"
        lines = file.read_text().splitlines(keepends=True) if about and file.exists() else []
        done = [line for line in lines if line.endswith("\n") and json.loads(line)["epoch"] < about["epoch"]]
        with replacing(file) as new:
            new.write_text("".join(done))
        self.wandb_id = about.get("wandb")
        if self._mode != "disabled":
            self._wandb = _start_wandb(self.folder, self.name, self.config, self._mode, self.wandb_id)
            self.wandb_id = self._wandb.id

    def about(self) -> dict[str, Any]:
        """What :meth:`begin` wants to know of a run that was cut short."""
        seconds = dict(self.seconds)
        if self._running is not None:
            what, start = self._running
            seconds[what] = seconds.get(what, 0.0) + time.perf_counter() - start
        return {"seconds": seconds, "wandb": self.wandb_id}

    def say(self, text: str) -> None:
        """One line, on the console and in log.txt."""
        self._logger.info(text)

    def epoch(self, epoch: int, metrics: Mapping[str, float | None]) -> None:
        """Metrics after an epoch, counted from 1."""
        if self._leads:
            with (self.folder / "metrics.jsonl").open("a") as file:
                file.write(json.dumps({"epoch": epoch, **metrics}) + "\n")
        if self._wandb is not None:
            self._wandb.log({"epoch": epoch, **metrics}, step=epoch)
        self._headline = next((f"{name} {_short(metrics[name])}" for name in metrics if "loss" not in name), "")
        if self._bar is not None:
            self._bar.headline = self._headline
        self.say(f"epoch {epoch}: " + ", ".join(f"{name} {_short(value)}" for name, value in metrics.items()))

    def finish(self, record: Mapping[str, Any]) -> None:
        """Hand the record to W&B and end its run; to be called however the run ended."""
        if self._wandb is None:
            return
        run, self._wandb = self._wandb, None
        run.summary.update({key: value for key, value in record.items() if key != "config"})
        run.finish(exit_code={"finished": 0, "interrupted": 130}.get(record["status"], 1))

    @contextmanager
    def clock(self, what: str) -> Iterator[None]:
        """Add the seconds spent inside to ``seconds[what]``."""
        signals.check()
        start = time.perf_counter()
        self._running = what, start
        try:
            yield
        finally:
            self._running = None
            self.seconds[what] += time.perf_counter() - start

    @contextmanager
    def bar(self, total: int) -> Iterator[ProgressBar]:
        """Progress over ``total`` examples; below the present bar, if there is one."""
        outer = self._bar
        with ProgressBar(self.console, total, self.say, self._headline, outer) as self._bar:
            try:
                yield self._bar
            finally:
                self._bar = outer

    @contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        """A bar for work that has no loss; gives what is told the examples done."""
        with self.bar(total) as bar:
            bar.describe(what)
            yield lambda examples: bar.advance(None, examples)


class _FileHandler(logging.FileHandler):
    """Goes on in silence where the disk is full; what needs the disk will say so."""

    def handleError(self, record: logging.LogRecord) -> None:  # noqa: N802
        pass


class _ConsoleHandler(logging.Handler):
    """Lines above the bar, if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), markup=False)


def _short(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _start_wandb(folder: Path, name: str, config: Mapping[str, Any], mode: WandbMode, run_id: str | None) -> Any:
    import wandb
    from wandb.errors import Error

    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fishexp"),
            name=name,
            group=os.environ.get("WANDB_RUN_GROUP"),  # W&B itself looks only once in a process
            dir=folder,
            config=dict(config),
            mode=mode,
            reinit="create_new",
            id=run_id,
            resume="allow" if run_id else None,
            settings=wandb.Settings(silent=True, console="off"),
        )
    except Error as error:
        reason = str(error).strip().splitlines()[0]
        raise FishexpError(f"wandb={mode}: {reason} wandb=offline needs no account") from None


REFRESH = 0.5  # seconds between updates of a bar: each one waits for the device
PLAIN = 30.0  # seconds between lines where there is no terminal


def log_file(folder: Path, rank: int) -> Path:
    """The log of a worker, which for the first one is that of the run."""
    return folder / f"workers/{rank}.txt" if rank else folder / "log.txt"
