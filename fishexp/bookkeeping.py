"""What a run keeps of itself: its lock, its log, its device, the state to go on from, its record."""

import fcntl
import logging
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from omegaconf import OmegaConf

from fishexp import hardware
from fishexp.atomic import replacing
from fishexp.errors import BusyError, FishexpError, RunFailed
from fishexp.member import MENDABLE, Member
from fishexp.record import Record
from fishexp.saved import forget
from fishexp.settings import Config, Settings, run_id, run_name, shareable
from fishexp.snapshots import Snapshots
from fishexp.tracking import Log

log = logging.getLogger(__name__)


def new_record(config: Config) -> Record:
    """Of a run that has not begun."""
    method, shared = config["method"]["name"], shareable(config)
    return Record(run_id(config), shared, method=method, keep=config["keep"], seed=config["seed"])


def opened(
    stack: ExitStack, config: Config, settings: Settings, snapshots: Snapshots, folder: Path, member: Member
) -> tuple[Record, Log, torch.device]:
    """What a run has until ``stack`` ends: the record, which is written then, its log and its device.

    Raises:
        FishexpError: If there is no such device.
    """
    record = new_record(config)
    wandb, resumed = settings.wandb, settings.resume
    tracker = stack.enter_context(
        Log(folder, run_name(config), record.config, wandb, resumed=resumed, rank=member.rank)
    )
    return record, tracker, stack.enter_context(_recorded(record, tracker, snapshots, settings, member))


@contextmanager
def alone(folder: Path) -> Iterator[None]:
    """Inside, no other process is at the run in ``folder``.

    Raises:
        BusyError: If one is.
    """
    with (folder / ".lock").open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BusyError(f"{folder}: another process is at this very run; wait for it, or change the seed") from None
        yield


def take_up(record: Record, tracker: Log, snapshots: Snapshots, device: torch.device, member: Member) -> None:
    """Take up what the run had come to when it was cut short, or begin anew."""
    conditions = [torch.get_num_threads(), torch.__version__, hardware.name(device)]
    snapshots.about = lambda: {
        "kept": [record.kept, record.kept_per_worker],
        "conditions": conditions,
        **tracker.about(),
    }
    if member.leads:
        with replacing(tracker.folder / "config.yaml") as new:
            new.write_text(OmegaConf.to_yaml(OmegaConf.create(record.config)))
        for left in tracker.folder.glob(".*.tmp"):  # of a process that was killed while it wrote
            left.unlink()
    if snapshots.latest is None:
        snapshots.clear()
        if member.leads:
            forget(tracker.folder)
    about = snapshots.latest.about if snapshots.latest else {}
    tracker.begin(about)
    lost = f"{member.lost}; " if member.lost else ""
    if about:
        record.kept, record.kept_per_worker = about["kept"]
        tracker.say(f"{lost}continued from a snapshot after {about['steps']:,} steps, in epoch {about['epoch']}")
        if about["conditions"] != conditions:
            tracker.say("other threads, device or torch than before: the result may differ in its last bits")
    elif lost:
        tracker.say(f"{lost}begun anew, as there was no snapshot")


@contextmanager
def _recorded(
    record: Record, tracker: Log, snapshots: Snapshots, settings: Settings, member: Member
) -> Iterator[torch.device]:
    """The device for the run. Its record is written however the run ends, and its W&B run ended."""
    device = torch.device("cpu")
    due = member.leads
    try:
        with hardware.device(settings.device, member.local_rank, member.local_size) as device:
            hardware.keep_freed_memory()
            hardware.start_peak_memory(device)
            yield device
    except BaseException as error:
        reason = member.reason(error)
        due = due and not (member.retried and isinstance(reason, MENDABLE))
        record.status = "interrupted" if isinstance(reason, KeyboardInterrupt) else "failed"
        known = isinstance(reason, FishexpError | RunFailed)
        record.error = str(reason) if known else f"{type(reason).__name__}: {reason}"
        log.debug("the run ended here", exc_info=True)
        if reason is error:
            raise
        raise reason from error
    finally:
        record.seconds = {what: round(tracker.seconds[what], 3) for what in ("data", "scores", "train", "evaluate")}
        record.peak_memory_bytes = hardware.peak_memory(device)
        record.device, record.threads = hardware.name(device), torch.get_num_threads()
        try:
            if due:
                record.write(Path(settings.records), tracker.folder)
                member.tell_recorded(record.status)
            if record.status == "finished" and member.is_recorded():  # so that nobody will want to continue it
                snapshots.clear()
        except OSError as error:
            if record.error is None:
                raise
            log.warning("the record could not be written either: %s", error)  # the first error says what to do
        finally:
            tracker.finish(asdict(record))
