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

from fishexp import interrupts
from fishexp.errors import FishexpError

REFRESH = 0.5  # seconds between updates of a bar: each one waits for the device
PLAIN = 30.0  # seconds between lines where there is no terminal
WandbMode = Literal["disabled", "offline", "online"]


class Log:
    """Everything a run reports, opened and closed with it.

    Args:
        folder: The run's; log.txt and metrics.jsonl are written there, and W&B's files below it.
        name: Of the run, for people.
        config: Goes to W&B.
    """

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], wandb: WandbMode) -> None:
        self.folder, self.name, self.config = folder, name, config
        self._mode: WandbMode = wandb
        self.seconds: defaultdict[str, float] = defaultdict(float)
        self.console = Console(soft_wrap=True, highlight=False)
        self._headline = ""
        self._wandb: Any = None

    def __enter__(self) -> Self:
        (self.folder / "metrics.jsonl").write_text("")
        self._logger = logging.getLogger("fishexp")
        self._logger.setLevel(logging.DEBUG)
        file = logging.FileHandler(self.folder / "log.txt", mode="w", encoding="utf-8")
        file.setFormatter(logging.Formatter("%(asctime)s %(message)s"))
        self._handlers = [file, _ConsoleHandler(self.console)]  # tracebacks (debug) go to the file only
        for handler in self._handlers:
            self._logger.addHandler(handler)
        return self

    def __exit__(self, *_: object) -> None:
        for handler in self._handlers:
            self._logger.removeHandler(handler)
            handler.close()

    def connect(self) -> None:
        """Start the W&B run, if one is wanted."""
        if self._mode != "disabled":
            self._wandb = _start_wandb(self.folder, self.name, self.config, self._mode)

    def say(self, text: str) -> None:
        """One line, on the console and in log.txt."""
        self._logger.info(text)

    def epoch(self, epoch: int, metrics: Mapping[str, float | None]) -> None:
        """Metrics after an epoch, counted from 1."""
        with (self.folder / "metrics.jsonl").open("a") as file:
            file.write(json.dumps({"epoch": epoch, **metrics}) + "\n")
        if self._wandb is not None:
            self._wandb.log({"epoch": epoch, **metrics}, step=epoch)
        self._headline = next((f"{name} {_short(metrics[name])}" for name in metrics if "loss" not in name), "")
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
        interrupts.check()
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[what] += time.perf_counter() - start

    @contextmanager
    def bar(self, total: int) -> Iterator["Bar"]:
        """Progress over ``total`` examples."""
        with Bar(self, total) as bar:
            yield bar

    @contextmanager
    def progress(self, total: int, what: str) -> Iterator[Callable[[int], None]]:
        """A bar for work that has no loss; gives what is told the examples done."""
        with self.bar(total) as bar:
            bar.describe(what)
            yield lambda examples: bar.advance(None, examples)


class Bar:
    """A bar on a terminal; elsewhere a line now and then."""

    def __init__(self, log: Log, total: int) -> None:
        self._log = log
        self._progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            TaskProgressColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(compact=True),
            TextColumn("left"),
            console=log.console,
            disable=not log.console.is_terminal,
            transient=True,
            speed_estimate_period=120,
        )
        self._task = self._progress.add_task("", total=total, numbers="")
        self._waiting = 0
        self._last = self._line = time.monotonic()

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()

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
        task = self._progress.tasks[0]
        parts = [
            f"loss {loss.item():.3f}" if loss is not None else "",
            self._log._headline,
            f"{task.speed:,.0f} examples/s" if task.speed else "",
        ]
        self._progress.update(self._task, numbers="  ".join(part for part in parts if part))
        if not self._log.console.is_terminal and now - self._line >= PLAIN:
            self._line = now
            left = f", {task.time_remaining / 60:.1f} min left" if task.time_remaining else ""
            self._log.say(f"{task.description} {task.percentage:.0f} %  {task.fields['numbers']}{left}")


class _ConsoleHandler(logging.Handler):
    """Lines above the bar, if there is one."""

    def __init__(self, console: Console) -> None:
        super().__init__(logging.INFO)
        self._console = console

    def emit(self, record: logging.LogRecord) -> None:
        self._console.print(record.getMessage(), markup=False)


def _short(value: float | None) -> str:
    return "undefined" if value is None else f"{value:.4g}"


def _start_wandb(folder: Path, name: str, config: Mapping[str, Any], mode: WandbMode) -> Any:
    import wandb
    from wandb.errors import Error

    try:
        return wandb.init(
            project=os.environ.get("WANDB_PROJECT", "fishexp"),
            name=name,
            dir=folder,
            config=dict(config),
            mode=mode,
            reinit="create_new",
            settings=wandb.Settings(silent=True, console="off"),
        )
    except Error as error:
        reason = str(error).strip().splitlines()[0]
        raise FishexpError(f"wandb={mode}: {reason} wandb=offline needs no account") from None
