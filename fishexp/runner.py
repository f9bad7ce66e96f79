"""One run: configuration -> data, model -> Problem -> scores -> mask -> training -> weights and a record."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from fishexp import hardware
from fishexp.atomic import replacing
from fishexp.base import BASE, drop_base, store_base
from fishexp.choice import Choice
from fishexp.crew import Crew, Together
from fishexp.errors import BusyError, FishexpError, RunFailed
from fishexp.examples import Data
from fishexp.models import WEIGHTS, Model
from fishexp.problem import Problem
from fishexp.record import Record
from fishexp.regimes import Outcome
from fishexp.saved import forget, save_run
from fishexp.settings import Config, Settings, check_settings, component, run_id, run_name, shareable
from fishexp.snapshots import Snapshots
from fishexp.tracking import Log

log = logging.getLogger(__name__)

_THREADS = torch.get_num_threads()  # what torch decides, for the next run of a sweep over threads


def run(config: Config, folder: Path) -> Record:
    """Carry out one run in ``folder`` and append its record.

    Args:
        config: Fully resolved, as :func:`fishexp.config.resolved` gives it.

    Returns:
        The record of the finished run.

    Raises:
        FishexpError: If something in ``config`` does not fit, on this machine or with each other.
        RunFailed: If training broke down.
    """
    settings = check_settings(config)
    load, build, method, train = (component(group, config[group]) for group in ("data", "model", "method", "regime"))
    torch.set_num_threads(settings.threads or _THREADS)
    folder.mkdir(parents=True, exist_ok=True)
    shared = shareable(config)
    record = Record(run_id(config), shared, method=config["method"]["name"], keep=settings.keep, seed=settings.seed)
    crew = Together(config["regime"].get("workers", 1))
    snapshots = Snapshots(folder / "snapshots", settings.snapshot_minutes, settings.snapshot_keep, crew)
    with (
        _alone(folder),
        Log(folder, run_name(config), shared, settings.wandb, resumed=settings.resume) as tracker,
        _recorded(record, tracker, snapshots, settings) as device,
    ):
        with replacing(folder / "config.yaml") as new:
            new.write_text(OmegaConf.to_yaml(OmegaConf.create(shared)))
        tracker.say(
            f"{run_name(config)} on {hardware.name(device)}, {torch.get_num_threads()} threads, {settings.precision}"
        )
        with tracker.clock("data"):
            data: Data = load()
        torch.manual_seed(settings.seed)
        model: Model = build(data.classes, data.channels)
        with tracker.clock("data"):
            data = _fitted(data, model, device)
        if model.source is None and not (folder / BASE).exists():
            store_base(model.network, folder, Path(settings.outputs))
        problem = _problem(model, data, device, settings, tracker, crew)
        record.total = sum(p.numel() for p in model.network.parameters())

        def told(kept: int, each: int) -> None:
            record.kept, record.kept_per_worker = kept, None if kept == each else each

        choose = Choice(problem, method, settings.keep, tracker, told)
        outcome: Outcome = train(problem, choose, tracker, snapshots, settings.decay)
        record.metrics = outcome.metrics
        record.bytes = save_run(folder, model, data, outcome.delta) | outcome.bytes
        if (folder / WEIGHTS).exists():
            drop_base(folder, Path(settings.outputs))
        record.status = "finished"
        tracker.say(f"weights, metrics and record are in {os.path.relpath(folder)}")
    return record


def _fitted(data: Data, model: Model, device: torch.device) -> Data:
    """Images on the device; sentences as the tokens of the model's own tokenizer."""

    def fit(examples: Any) -> Any:
        return examples.to(device) if model.tokenizer is None else examples.tokenised(model.tokenizer)

    if model.tokenizer is not None:
        longest = model.tokenizer.model_max_length
        if data.train.max_length > longest:
            raise FishexpError(f"data.max_length={data.train.max_length}: this model reads at most {longest} tokens")
    return replace(data, train=fit(data.train), valid={name: fit(part) for name, part in data.valid.items()})


def _problem(model: Model, data: Data, device: torch.device, settings: Settings, tracker: Log, crew: Crew) -> Problem:
    return Problem(
        model.network.to(device),
        model.head,
        data,
        device,
        generator=torch.Generator().manual_seed(2 * settings.seed),
        order=torch.Generator().manual_seed(2 * settings.seed + 1),
        crew=crew,
        precision=settings.precision,
        as_original=settings.compat == "fish",
        progress=tracker.progress,
    )


@contextmanager
def _alone(folder: Path) -> Iterator[None]:
    """Refuse to run where the same run is going on already."""
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{folder}: another process is at this very run; wait for it, or change the seed") from None
        yield


def _continue(record: Record, tracker: Log, snapshots: Snapshots, device: torch.device, *, resume: bool) -> None:
    """Take up what the run had come to when it was cut short, or begin anew."""
    conditions = [torch.get_num_threads(), torch.__version__, hardware.name(device)]
    snapshots.about = lambda: {
        "kept": [record.kept, record.kept_per_worker],
        "conditions": conditions,
        **tracker.about(),
    }
    for left in tracker.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
        left.unlink()
    if resume:
        snapshots.load()
    if snapshots.latest is None:
        snapshots.clear()
        forget(tracker.folder)
    about = snapshots.latest.about if snapshots.latest else {}
    tracker.begin(about)
    if about:
        record.kept, record.kept_per_worker = about["kept"]
        tracker.say(f"continued from a snapshot after {about['steps']:,} steps, in epoch {about['epoch']}")
        if about["conditions"] != conditions:
            tracker.say("other threads, device or torch than before: the result may differ in its last bits")


@contextmanager
def _recorded(record: Record, tracker: Log, snapshots: Snapshots, settings: Settings) -> Iterator[torch.device]:
    """The device for the run, which may go on from a snapshot.

    Its record is written however the run ends, and its W&B run ended.
    """
    device = torch.device("cpu")
    try:
        with hardware.device(settings.device) as device:
            hardware.keep_freed_memory()
            hardware.start_peak_memory(device)
            _continue(record, tracker, snapshots, device, resume=settings.resume)
            yield device
    except BaseException as error:
        record.status = "interrupted" if isinstance(error, KeyboardInterrupt) else "failed"
        record.error = str(error) if isinstance(error, FishexpError | RunFailed) else f"{type(error).__name__}: {error}"
        log.debug("the run ended here", exc_info=True)
        raise
    finally:
        record.seconds = {what: round(tracker.seconds[what], 3) for what in ("data", "scores", "train", "evaluate")}
        record.peak_memory_bytes = hardware.peak_memory(device)
        record.device, record.threads = hardware.name(device), torch.get_num_threads()
        try:
            record.write(Path(settings.records), tracker.folder)
            if record.status == "finished":  # and on record, so that nobody will want to continue it
                snapshots.clear()
        except OSError as error:
            if record.error is None:
                raise
            log.warning("the record could not be written either: %s", error)  # the first error says what to do
        finally:
            tracker.finish(asdict(record))
