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

from fishexp import interrupts
from fishexp.atomic import replacing
from fishexp.bars import Bar
from fishexp.errors import FishexpError
from fishexp.streams import log_file

WandbMode = Literal["disabled", "offline", "online"]


class Log:
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
        self._bar: Bar | None = None

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
        interrupts.check()
        start = time.perf_counter()
        self._running = what, start
        try:
            yield
        finally:
            self._running = None
            self.seconds[what] += time.perf_counter() - start

    @contextmanager
    def bar(self, total: int) -> Iterator[Bar]:
        """Progress over ``total`` examples; below the present bar, if there is one."""
        outer = self._bar
        with Bar(self.console, total, self.say, self._headline, outer) as self._bar:
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
