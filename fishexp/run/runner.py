"""One run, top to bottom: configuration -> data, model -> scores -> mask -> training -> weights and a record."""

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from omegaconf import OmegaConf

from fishexp.data.datasets import Dataset
from fishexp.delta.fingerprint import digest, fingerprint
from fishexp.distributed.context import ALONE, RECOVERABLE, Context
from fishexp.errors import BusyError, FishexpError, RunFailed
from fishexp.models import WEIGHTS, Model
from fishexp.regimes import Outcome
from fishexp.run.artifacts import build_model, forget, save_run
from fishexp.run.record import Record, versions
from fishexp.run.settings import GROUPS, Config, Settings, check_settings, component, run_id, run_name, shareable
from fishexp.system import hardware
from fishexp.system.atomic import replacing
from fishexp.training.checkpoints import BASE, drop_base, store_base
from fishexp.training.collectives import Collectives
from fishexp.training.logger import Logger
from fishexp.training.mask_selector import MaskSelector
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshots
from fishexp.training.streams import seed_torch, stream

log = logging.getLogger(__name__)

_THREADS = torch.get_num_threads()  # CPU threads as torch decides, for the next run of a sweep over threads


def run(config: Config, folder: Path, context: Context = ALONE) -> Record:
    """Carry out one run in ``folder`` and append its record; as one of several workers, this worker's part of the run.

    Args:
        config: Fully resolved, as :func:`fishexp.run.config.resolved` returns it.
        context: Rank and world size of this process.

    Returns:
        The record of the finished run.

    Raises:
        FishexpError: If something in ``config`` does not fit, on this machine or with each other.
        RunFailed: If training broke down.
        WorkerLost: If another worker is gone, and nobody said why.
    """
    settings = check_settings(config | {"resume": config["resume"] or bool(context.restart_reason)})
    regime = config["regime"]
    torch.set_num_threads(context.threads(settings.threads, _THREADS))
    with context.process_group(settings.device), ExitStack() as stack:
        collectives = context.collectives(regime.get("workers", 1))
        snapshots = Snapshots(folder / "snapshots", settings.snapshot_minutes, settings.snapshot_keep, collectives)
        with context.agreement():
            folder.mkdir(parents=True, exist_ok=True)
            if context.is_main:
                stack.enter_context(locked(folder))
        with context.agreement() as facts:
            record, logger, device = open_run(stack, config, settings, snapshots, folder, context)
            facts |= {"commit": record.commit, "torch": torch.__version__, "fishexp": versions().get("fishexp")}
            facts |= {"resume": settings.resume, **record.config}
            load, _, method, train = (component(group, config[group]) for group in GROUPS)
        if settings.resume:
            snapshots.load()
        with context.agreement() as facts:
            resume_or_begin(record, logger, snapshots, device, context)
            logger.say(_headline(config, settings, device, context))
            with logger.clock("data"), context.local_main_first():
                data: Dataset = load.function()
            seed_torch(settings.seed, "weights")
            model = build_model(config["model"], data.classes, data.channels)
            seed_torch(settings.seed, "dropout")
            with logger.clock("data"):
                data = _prepared(data, model, device)
            facts["initial weights"] = _weights_digest(model) if context.world_size > 1 else ""
            if context.is_main and model.source is None and not (folder / BASE).exists():
                store_base(model.network, folder, Path(settings.outputs))
            problem = _problem(model, data, device, settings, logger, collectives)
        record.total = sum(p.numel() for p in model.network.parameters())

        def report_kept(in_all: int, each: int) -> None:
            record.kept, record.kept_per_worker = in_all, None if in_all == each else each

        fixed = method.offers == "mask"
        choose = MaskSelector(problem, method.name, method.function, settings.keep, logger, report_kept, fixed=fixed)
        outcome: Outcome = train.function(problem, choose, logger, snapshots, settings.decay)
        record.metrics = outcome.metrics
        if context.is_main:
            record.bytes = _save(folder, Path(settings.outputs), model, data, outcome)
        record.status = "finished"
        logger.say(f"weights, metrics and record are in {os.path.relpath(folder)}")
    return record


def new_record(config: Config) -> Record:
    """Build the record of a run before it starts."""
    method, shared = config["method"]["name"], shareable(config)
    return Record(run_id(config), shared, method=method, keep=config["keep"], seed=config["seed"])


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a run folder, so that no other process carries out the same run.

    Raises:
        BusyError: If another process holds it.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{folder}: another process is at this very run; wait for it, or change the seed") from None
        yield


def open_run(
    stack: ExitStack, config: Config, settings: Settings, snapshots: Snapshots, folder: Path, context: Context
) -> tuple[Record, Logger, torch.device]:
    """Open what a run has until ``stack`` ends: its record, which is written then, its log and its device.

    Raises:
        FishexpError: If there is no such device.
    """
    record = new_record(config)
    wandb, resumed = settings.wandb, settings.resume
    logger = stack.enter_context(
        Logger(folder, run_name(config), record.config, wandb, resumed=resumed, rank=context.rank)
    )
    return record, logger, stack.enter_context(_recorded(record, logger, snapshots, settings, context))


@contextmanager
def _recorded(
    record: Record, logger: Logger, snapshots: Snapshots, settings: Settings, context: Context
) -> Iterator[torch.device]:
    """Choose the device of the run; write the record and end the W&B run, however the run ends."""
    device = torch.device("cpu")
    due = context.is_main
    try:
        with hardware.device(settings.device, context.local_rank, context.local_world_size) as device:
            hardware.keep_freed_memory()
            hardware.start_peak_memory(device)
            yield device
    except BaseException as error:
        reason = context.root_cause(error)
        due = due and not (context.may_restart and isinstance(reason, RECOVERABLE))
        record.status = "interrupted" if isinstance(reason, KeyboardInterrupt) else "failed"
        known = isinstance(reason, FishexpError | RunFailed)
        record.error = str(reason) if known else f"{type(reason).__name__}: {reason}"
        log.debug("the run ended here", exc_info=True)
        if reason is error:
            raise
        raise reason from error
    finally:
        record.seconds = {what: round(logger.seconds[what], 3) for what in ("data", "scores", "train", "evaluate")}
        record.peak_memory_bytes = hardware.peak_memory(device)
        record.device, record.threads = hardware.name(device), torch.get_num_threads()
        try:
            if due:
                record.write(Path(settings.records), logger.folder)
                context.announce_record(record.status)
            if record.status == "finished" and context.await_record():  # so that nobody will want to continue it
                snapshots.clear()
        except OSError as error:
            if record.error is None:
                raise
            log.warning("the record could not be written either: %s", error)  # the first error says what to do
        finally:
            logger.finish(asdict(record))


def resume_or_begin(
    record: Record, logger: Logger, snapshots: Snapshots, device: torch.device, context: Context
) -> None:
    """Continue from the latest snapshot, if it was loaded, or clear what an earlier attempt left and begin."""
    conditions = [torch.get_num_threads(), torch.__version__, hardware.name(device)]
    snapshots.about = lambda: {
        "kept": [record.kept, record.kept_per_worker],
        "conditions": conditions,
        **logger.state(),
    }
    if context.is_main:
        with replacing(logger.folder / "config.yaml") as new:
            new.write_text(OmegaConf.to_yaml(OmegaConf.create(record.config)))
        for left in logger.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink()
    if snapshots.latest is None:
        snapshots.clear()
        if context.is_main:
            forget(logger.folder)
    about = snapshots.latest.about if snapshots.latest else {}
    logger.begin(about)
    lost = f"{context.restart_reason}; " if context.restart_reason else ""
    if about:
        record.kept, record.kept_per_worker = about["kept"]
        logger.say(f"{lost}continued from a snapshot after {about['steps']:,} steps, in epoch {about['epoch']}")
        if about["conditions"] != conditions:
            logger.say("other threads, device or torch than before: the result may differ in its last bits")
    elif lost:
        logger.say(f"{lost}begun anew, as there was no snapshot")


def _headline(config: Config, settings: Settings, device: torch.device, context: Context) -> str:
    workers, each = (f", {context.world_size} workers", " each") if context.world_size > 1 else ("", "")
    threads = f"{torch.get_num_threads()} threads{each}"
    return f"{run_name(config)}{workers} on {hardware.name(device)}, {threads}, {settings.precision}"


def _prepared(data: Dataset, model: Model, device: torch.device) -> Dataset:
    """Move images to the device; turn sentences into the tokens of the model's own tokenizer."""

    def prepare(examples: Any) -> Any:
        return examples.to(device) if model.tokenizer is None else examples.tokenised(model.tokenizer)

    if model.tokenizer is not None:
        longest = model.tokenizer.model_max_length
        if data.train.max_length > longest:
            raise FishexpError(f"data.max_length={data.train.max_length}: this model reads at most {longest} tokens")
    return replace(data, train=prepare(data.train), valid={name: prepare(part) for name, part in data.valid.items()})


def _weights_digest(model: Model) -> str:
    """Hash all weights and buffers of a model."""
    return digest({name: fingerprint(tensor) for name, tensor in model.network.state_dict().items()})[:12]


def _problem(
    model: Model, data: Dataset, device: torch.device, settings: Settings, logger: Logger, collectives: Collectives
) -> Problem:
    return Problem(
        model.network.to(device),
        model.head,
        data,
        device,
        seed=settings.seed,
        generator=stream(settings.seed, "mask"),
        order=stream(settings.seed, "order"),
        collectives=collectives,
        precision=settings.precision,
        as_original=settings.compat == "fish",
        progress=logger.progress,
    )


def _save(folder: Path, outputs: Path, model: Model, data: Dataset, outcome: Outcome) -> dict[str, int]:
    """Write the weights to ``folder``, and measure what was stored or sent, in bytes."""
    sizes = save_run(folder, model, data, outcome.delta) | outcome.bytes
    if (folder / WEIGHTS).exists():
        drop_base(folder, outputs)
    return sizes
