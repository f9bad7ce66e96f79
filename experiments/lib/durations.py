"""How long runs take: as runs like them took that are on record, corrected by a few steps timed on this machine."""

import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from statistics import median
from typing import Any, TypeAlias

from experiments.lib.plan import Command
from experiments.lib.settings import composed_runs
from fishexp.run.forecast import Outlines, forecast
from fishexp.run.record import finished
from fishexp.run.settings import Config

# what runs have in common that take about as long, the method apart
Kind: TypeAlias = tuple[Any, ...]
_DATA = ("name", "task", "train_limit", "valid_limit")
_REGIME = ("name", "epochs", "batch_size", "workers", "shard", "sync_every", "refresh_every", "mask")
_MACHINE = ("precision", "device", "threads")
# batches of each worker that are timed, and the settings that make a run as short as that
_BATCHES = 16
_SHORTENED = (
    "method",
    "keep",
    "seed",
    "data.train_limit",
    "regime.epochs",
    "regime.lr",
    "regime.warmup",
    "regime.warmup_epochs",
)
REPOSITORY = Path(__file__).parents[2]


class Durations:
    """Look up how long runs take: the median of those on record that are alike.

    Args:
        done: run_id -> record of the runs that are done.
    """

    def __init__(self, done: Mapping[str, Mapping[str, Any]]) -> None:
        self._took: dict[tuple[Kind, str | None], list[Mapping[str, float]]] = defaultdict(list)
        for record in done.values():
            for method in (record["config"]["method"]["name"], None):
                self._took[_kind(record["config"]), method].append(record["seconds"])
        self._pace: dict[Kind, float] = {}
        self._timed: dict[Kind, float] = {}

    def seconds(self, run: Config) -> float | None:
        """Return how long a run takes, by method where runs of it are on record; None if nothing like it is known."""
        kind = _kind(run)
        if found := self._alike(kind, run["method"]["name"]):
            return median(sum(seconds.values()) for seconds in found) * self._pace.get(kind, 1.0)
        return self._timed.get(kind)

    def time(self, commands: Sequence[Command], python: str) -> Iterator[str]:
        """Time a few steps of dense training on this machine for each kind of run; yield a line about each.

        What is on record is corrected by how much longer a step takes here. A run of a kind that is not on record is
        taken to last as long as so many steps of dense training and its evaluations do.

        Args:
            python: Interpreter of the runs.
        """
        kinds, outlines = {_kind(composed_runs(command.overrides)[0]): command for command in commands}, Outlines()
        for kind, command in kinds.items():
            run, short = composed_runs(command.overrides)[0], _shortened(command)
            name = (
                f"{run['model']['name']} on {run['data'].get('task') or run['data']['name']}, {run['regime']['name']}"
            )
            steps, timed = (forecast(each, outlines).steps for each in (run, *composed_runs(short)))
            seconds = _carried_out(short, python)
            if seconds is None or not steps or not timed:
                yield f"{name}: its steps could not be timed"
                continue
            step = seconds["train"] / timed
            if found := self._alike(kind, "full"):
                self._pace[kind] = step * steps / median(seconds["train"] for seconds in found)
                yield f"{name}: {step:.2g} s a step, {self._pace[kind]:.2f} times what runs on record took"
            else:
                self._timed[kind] = step * steps + run["regime"]["epochs"] * seconds["evaluate"]
                yield f"{name}: {step:.2g} s a step, no run on record; counted as dense training"

    def _alike(self, kind: Kind, method: str) -> list[Mapping[str, float]]:
        return self._took.get((kind, method)) or self._took.get((kind, None)) or []


def _kind(run: Mapping[str, Any]) -> Kind:
    data, regime = run["data"], run["regime"]
    shared = (*(data.get(key) for key in _DATA), *(regime.get(key) for key in _REGIME))
    return (run["model"]["name"], *shared, *(run[key] for key in _MACHINE))


def _shortened(command: Command) -> tuple[str, ...]:
    """Return the overrides of dense training of a few batches that is otherwise like the first run of ``command``."""
    run = composed_runs(command.overrides)[0]
    regime, limit = run["regime"], run["data"]["train_limit"]
    examples = _BATCHES * regime["batch_size"] * regime.get("workers", 1)
    kept = [text for text in command.overrides if not text.startswith(("method.", *(f"{key}=" for key in _SHORTENED)))]
    short = [f"data.train_limit={min(examples, limit or examples)}", "regime.epochs=1", "regime.lr=1e-6"]
    warm = [f"regime.{key}=0" for key in ("warmup", "warmup_epochs") if key in regime]
    return (*kept, "method=full", *short, *warm)


def _carried_out(overrides: Sequence[str], python: str) -> Mapping[str, float] | None:
    """Run these settings where nothing is left of it, and return the seconds of its parts; None if it fails."""
    with tempfile.TemporaryDirectory() as folder:
        records = Path(folder, "records.jsonl")
        command = [python, "-m", "fishexp", f"outputs={folder}", f"records={records}", *overrides]
        if subprocess.run(command, cwd=REPOSITORY, capture_output=True).returncode:
            return None
        (record,) = finished(records).values()
        return record["seconds"]
