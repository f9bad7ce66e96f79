"""One run, top to bottom: configuration -> data, model -> scores -> mask -> training -> weights and a record."""

import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import IO, Any

import torch
from omegaconf import OmegaConf

from fishexp.data.datasets import Dataset
from fishexp.data.metrics import check_headline
from fishexp.data.text import Tokens
from fishexp.delta.fingerprint import digest, fingerprint
from fishexp.distributed.context import ALONE, RECOVERABLE, Context
from fishexp.distributed.failures import Facts
from fishexp.errors import BusyError, FishexpError, RunFailed
from fishexp.models import WEIGHTS, Model
from fishexp.regimes import Outcome
from fishexp.run.artifacts import (
    DELTA,
    PREPROCESSING,
    build_model,
    check_saved,
    read_options,
    save_predictions,
    save_run,
)
from fishexp.run.choose import make_choose
from fishexp.run.identity import own_code, run_id, run_name, shareable
from fishexp.run.record import Record, versions
from fishexp.run.run_folder import check_same, lock
from fishexp.run.run_snapshots import begin_anew, changes_since, check_inputs, make_snapshots, resumable, snapshot_facts
from fishexp.run.settings import GROUPS, Config, Settings, check_settings, chooses_epoch, component, is_data_parallel
from fishexp.sparse.calibration import calibrated, known
from fishexp.sparse.costs import Costs
from fishexp.sparse.handle import gradient_methods
from fishexp.system import hardware
from fishexp.system.atomic import replacing, writing
from fishexp.training.checkpoints import drop_base, store_base
from fishexp.training.collectives import Collectives
from fishexp.training.logger import Logger
from fishexp.training.problem import Problem
from fishexp.training.snapshots import Snapshot
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
    settings = check_settings(config | {"resume": config["resume"] or bool(context.resume_reason)})
    together = context.world_size > 1 and is_data_parallel(config["regime"])
    torch.set_num_threads(context.threads(settings.threads, _THREADS))
    record = new_record(config)
    record.processes = context.world_size if together else 1
    logger = _logger(folder, run_name(config), record, settings, context)
    with context.process_group(settings.device), ExitStack() as held:
        with (
            recording(record, logger, settings, context, held),
            running_on_device(record, settings, context) as device,
        ):
            load, _, method, train = (component(group, config[group]) for group in GROUPS)
            context.check_same(facts_of(record, settings))
            collectives = context.collectives(config["regime"].get("workers", 1))
            facts = partial(snapshot_facts, record, logger)  # as they will be at each snapshot
            snapshots = make_snapshots(folder / "snapshots", settings, collectives, context, facts, together=together)
            resumed = resumable(snapshots, record, settings, logger) if settings.resume else []
            context.check_same({"steps in the snapshots": resumed[0].about["steps"] if resumed else 0})
            context.together(begin, record, logger, resumed, context)
            logger.say(_headline(config, settings, device, context))
            if (settings.precision, device.type) == ("bf16", "cpu") and (ratio := hardware.bf16_slowdown()) > 1:
                logger.say(f"this CPU emulates bf16: a product takes {ratio:.1f} times as long as with precision=fp32")

            model, data = context.together(build, config, load.function, settings, logger, device, context)
            record.inputs = {"examples": data.digest(), "initial weights": _weights_digest(model)}
            context.check_same(record.inputs)
            context.together(check_inputs, record, resumed)
            context.together(begin_anew, folder, snapshots, resumed, context)
            context.together(keep_base, model, folder, settings, context)
            costs = gradient_costs(resumed, device)
            problem = _problem(model, data, device, settings, logger, collectives, costs, together=together)
            record.total = sum(p.numel() for p in model.network.parameters())

            choose = make_choose(problem, method, config, settings, record, logger)
            outcome: Outcome = train.function(problem, choose, logger, snapshots, resumed, settings.decay)
            record.metrics, record.epochs = outcome.evaluation.metrics, outcome.epochs
            record.gradient_methods = gradient_methods(model.network)
            if context.is_main:
                record.bytes = _save(folder, Path(settings.outputs), model, data, outcome, record.run_id)
            logger.say(f"weights, metrics and record are in {os.path.relpath(folder)}")
        if context.await_record():  # so that nobody will want to resume it
            snapshots.clear()
    return record


def _logger(folder: Path, name: str, record: Record, settings: Settings, context: Context) -> Logger:
    wandb, tensorboard, resumed = settings.wandb, settings.tensorboard, bool(settings.resume)
    return Logger(folder, name, record.config, wandb, tensorboard=tensorboard, resumed=resumed, rank=context.rank)


def new_record(config: Config) -> Record:
    """Build the record of a run before it starts."""
    method, shared = config["method"]["name"], shareable(config)
    record = Record(run_id(config), shared, method=method, keep=config["keep"], seed=config["seed"])
    record.versions = record.versions | own_code(config)
    return record


def record_unstarted(runs: list[Config], error: OSError) -> None:
    """Append the record of a run among ``runs`` that could not start, as its folder cannot be made."""
    refused = Path(error.filename).absolute() if error.filename else None
    for config in runs if refused else []:
        folder = Path(config["outputs"], run_name(config)).absolute()
        if len(runs) == 1 or refused in (folder, *folder.parents):
            record = new_record(config)
            record.error = f"{error.filename}: {error.strerror}"
            with suppress(RunFailed):  # the first error says what to do
                record.write(Path(config["records"]), folder)
            return


def locked_folder(folder: Path, context: Context) -> IO[str] | None:
    """Make the folder of a run, and lock it for all workers as the main process.

    Raises:
        BusyError: If another process holds the lock.
        FishexpError: If the folder cannot be written.
    """
    if context.is_main:
        return lock(folder)
    folder.mkdir(parents=True, exist_ok=True)
    return None


@contextmanager
def recording(record: Record, logger: Logger, settings: Settings, context: Context, held: ExitStack) -> Iterator[None]:
    """Lock the run's folder and log what the block does; write the record when it ends.

    The record says finished if the block ends by itself, else failed or interrupted, and why. The main process writes
    it, to ``settings.records`` and to the run's folder, and tells the other workers. It leaves that to a later start
    where the workers are going to be restarted, and writes none where another process is at this run. What goes to W&B
    and TensorBoard ends here too.

    Args:
        held: Keeps the lock and the log when the block has ended.

    Raises:
        BaseException: What the block raised, or the failure of another worker that was the cause of it.
        RunFailed: If the folder was removed or moved meanwhile, or a finished run's record cannot be written.
    """
    locked = None
    try:
        if locked := context.together(locked_folder, logger.folder, context):
            held.enter_context(locked)
        held.enter_context(logger)
        yield
        check_same(logger.folder, locked)
        record.status = "finished"
    except BaseException as error:
        reason = context.root_cause(_moved(error, logger.folder, locked) or error)
        later = isinstance(reason, BusyError) or (context.may_restart and isinstance(reason, RECOVERABLE))
        record.status = "interrupted" if isinstance(reason, KeyboardInterrupt) else "failed"
        known = isinstance(reason, FishexpError | RunFailed)
        record.error = str(reason) if known else f"{type(reason).__name__}: {reason}"
        log.debug("the run ended here", exc_info=True)
        if context.is_main and not later:
            try:
                _write(record, logger, settings, context)
            except RunFailed as second:  # the first says what to do
                log.warning("the record could not be written either: %s", second)
        if reason is error:
            raise
        raise reason from error
    else:
        if context.is_main:
            _write(record, logger, settings, context)
    finally:
        logger.finish(asdict(record), logger.folder / DELTA)


def _moved(error: BaseException, folder: Path, locked: IO[str] | None) -> RunFailed | None:
    """Tell whether a run broke down because its folder was removed or moved."""
    if isinstance(error, Exception) and not isinstance(error, RECOVERABLE):
        try:
            check_same(folder, locked)
        except RunFailed as moved:
            return moved
    return None


def _write(record: Record, logger: Logger, settings: Settings, context: Context) -> None:
    """Write the record, and tell the other workers whether the run has finished and that is on record.

    Raises:
        RunFailed: If it cannot be written.
    """
    record.seconds = {what: round(logger.seconds[what], 3) for what in ("data", "scores", "train", "evaluate")}
    try:
        record.write(Path(settings.records), logger.folder)
    except RunFailed:
        context.announce_record("failed")
        raise
    context.announce_record(record.status)


@contextmanager
def running_on_device(record: Record, settings: Settings, context: Context) -> Iterator[torch.device]:
    """Choose the device of the run, and put into the record which it is, and how much memory the block takes at most.

    Raises:
        FishexpError: If there is no such device.
    """
    record.threads = torch.get_num_threads()
    with hardware.device(settings.device, context.local_rank, context.local_world_size) as device:
        record.device = hardware.name(device)
        hardware.keep_freed_memory()
        hardware.start_peak_memory(device)
        try:
            yield device
        finally:
            record.peak_memory_bytes = hardware.peak_memory(device)


def facts_of(record: Record, settings: Settings) -> Facts:
    """Return what has to be the same on all workers before they begin."""
    code = {"commit": record.commit, "torch": torch.__version__, "fishexp": versions().get("fishexp")}
    return code | {"resume": settings.resume, **record.config}


def begin(record: Record, logger: Logger, resumed: list[Snapshot], context: Context) -> None:
    """Resume record and log from the snapshots, or begin them."""
    if context.is_main:
        file = logger.folder / "config.yaml"
        with writing(file), replacing(file) as new:
            new.write_text(OmegaConf.to_yaml(OmegaConf.create(record.config)))
        for left in logger.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink()
    about = resumed[0].about if resumed else {}
    logger.begin(about)
    lost = f"{context.resume_reason}; " if context.resume_reason else ""
    if about:
        record.kept, record.kept_per_worker = about["kept"]
        record.kept_by = about.get("kept_by", {})  # unknown where an older snapshot lacks it
        record.scores_read = about["scores_read"]
        logger.say(f"{lost}continued from a snapshot after {about['steps']:,} steps, in epoch {about['epoch']}")
        if changes := changes_since(about["conditions"], record):
            logger.say(f"not as before, so that the result may differ, at least in its last bits: {', '.join(changes)}")
    elif lost:
        logger.say(f"{lost}begun anew, as there was no snapshot")


def check_goes_on(options: Mapping[str, Any]) -> None:
    """Refuse a model that goes on from a run without an option that this run had, such as the size of its images.

    Raises:
        FishexpError: With the option that is missing, or if the run's configuration is damaged.
    """
    folder = None if options.get("path") is None else Path(options["path"])
    if folder is None or not (folder / PREPROCESSING).exists():
        return
    run = read_options(folder)
    theirs = run.get("model") if isinstance(run, dict) else None
    for key, value in theirs.items() if isinstance(theirs, dict) else ():
        if value is not None and key in options and options[key] is None:
            told = str(value).partition("@")[0]  # without the digest of a file
            raise FishexpError(f"model.path={folder} was trained with model.{key}={told}; give it here too")


def build(
    config: Config,
    load: Callable[[], Dataset],
    settings: Settings,
    logger: Logger,
    device: torch.device,
    context: Context,
) -> tuple[Model, Dataset]:
    """Load the data, build the model with its initial weights, and prepare the data for it."""
    check_goes_on(config["model"])
    with logger.clock("data"), context.local_main_first():
        data = load()
        if chooses_epoch(config["regime"]):
            data = data.with_validation(config["regime"]["validation_fraction"])
        for examples in data.valid.values():
            check_headline(data.metric_names(examples.labels))
    seed_torch(settings.seed, "weights")
    model = build_model(config["model"], data.classes, data.channels, data.names)
    seed_torch(settings.seed, "dropout")
    with logger.clock("data"):
        return model, _prepared(data, model, device)


def keep_base(model: Model, folder: Path, settings: Settings, context: Context) -> None:
    """Write the weights that training begins with, unless they can be had from elsewhere; the main process does."""
    if context.is_main and model.source is None:
        store_base(model.network, folder, Path(settings.outputs))


def gradient_costs(resumed: list[Snapshot], device: torch.device) -> Costs:
    """Return what gradient methods are chosen by: in a resumed run the same as before, for the same bits."""
    before = resumed[0].about.get("gradient_costs") if resumed else None
    if before is not None:
        return Costs.from_json(before)
    return calibrated() if device.type == "cpu" else known()


def _headline(config: Config, settings: Settings, device: torch.device, context: Context) -> str:
    what = "processes with a share of every batch" if is_data_parallel(config["regime"]) else "workers"
    workers, each = (f", {context.world_size} {what}", " each") if context.world_size > 1 else ("", "")
    count = torch.get_num_threads()
    threads = f"{count} thread{'s' * (count != 1)}{each}"
    return f"{run_name(config)}{workers} on {hardware.name(device)}, {threads}, {settings.precision}"


def _prepared(data: Dataset, model: Model, device: torch.device) -> Dataset:
    """Move images to the device, normalised for the model; turn sentences into the tokens of its own tokenizer."""

    def prepare(examples: Any) -> Any:
        if model.tokenizer is not None:
            tokens = examples.tokenised(model.tokenizer)
            return tokens.in_multiples_of(8) if device.type == "cuda" and isinstance(tokens, Tokens) else tokens
        return (examples.normalised_by(*model.normalisation) if model.normalisation else examples).to(device)

    if model.tokenizer is not None:
        longest = model.tokenizer.model_max_length
        if data.train.max_length > longest:
            raise FishexpError(f"data.max_length={data.train.max_length}: this model reads at most {longest} tokens")
    valid = {name: prepare(part) for name, part in data.valid.items()}
    validation = None if data.validation is None else prepare(data.validation)
    return replace(data, train=prepare(data.train), valid=valid, validation=validation)


def _weights_digest(model: Model) -> str:
    """Hash all weights and buffers of a model."""
    return digest({name: fingerprint(tensor) for name, tensor in model.network.state_dict().items()})[:12]


def _problem(
    model: Model,
    data: Dataset,
    device: torch.device,
    settings: Settings,
    logger: Logger,
    collectives: Collectives,
    costs: Costs,
    *,
    together: bool,
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
        data_parallel=together,
        precision=settings.precision,
        as_original=settings.compat == "fish",
        costs=costs,
        fresh=model.head if model.classes is None else (),
        cuda_graphs=settings.cuda_graphs and device.type == "cuda" and collectives.world_size == 1,
        progress=logger.progress,
    )


def _save(folder: Path, outputs: Path, model: Model, data: Dataset, outcome: Outcome, run_id: str) -> dict[str, int]:
    """Write weights and predictions to ``folder``, and measure what was stored or sent, in bytes."""
    with writing(folder):
        sizes = save_run(folder, model, data, outcome.delta) | outcome.bytes
        save_predictions(folder, run_id, data, outcome.evaluation.predicted)
    if (folder / WEIGHTS).exists():
        drop_base(folder, outputs)
    check_saved(folder)
    return sizes
