"""One run: configuration -> data, model -> Problem -> scores -> mask -> training -> weights and a record."""

import logging
import os
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from fishexp import hardware
from fishexp.base import BASE, drop_base, store_base
from fishexp.bookkeeping import alone, opened, take_up
from fishexp.choice import Choice
from fishexp.crew import Crew
from fishexp.delta.fingerprint import digest, fingerprint
from fishexp.errors import FishexpError
from fishexp.examples import Data
from fishexp.member import ALONE, Member
from fishexp.models import WEIGHTS, Model
from fishexp.problem import Problem
from fishexp.record import Record, versions
from fishexp.regimes import Outcome
from fishexp.saved import save_run
from fishexp.settings import GROUPS, Config, Settings, check_settings, component, run_name
from fishexp.snapshots import Snapshots
from fishexp.tracking import Log

log = logging.getLogger(__name__)

_THREADS = torch.get_num_threads()  # what torch decides, for the next run of a sweep over threads


def run(config: Config, folder: Path, member: Member = ALONE) -> Record:
    """Carry out one run in ``folder`` and append its record; or, as one worker of several, this worker's part of it.

    Args:
        config: Fully resolved, as :func:`fishexp.config.resolved` gives it.

    Returns:
        The record of the finished run.

    Raises:
        FishexpError: If something in ``config`` does not fit, on this machine or with each other.
        RunFailed: If training broke down.
        WorkerLost: If another worker is gone, and nobody said why.
    """
    settings, regime = check_settings(config | {"resume": config["resume"] or bool(member.lost)}), config["regime"]
    torch.set_num_threads(member.threads(settings.threads, _THREADS))
    with member.meeting(settings.device), ExitStack() as stack:
        crew = member.crew(regime.get("workers", 1))
        snapshots = Snapshots(folder / "snapshots", settings.snapshot_minutes, settings.snapshot_keep, crew)
        with member.agreeing():
            folder.mkdir(parents=True, exist_ok=True)
            if member.leads:
                stack.enter_context(alone(folder))
        with member.agreeing() as facts:
            record, tracker, device = opened(stack, config, settings, snapshots, folder, member)
            facts |= {"commit": record.commit, "torch": torch.__version__, "fishexp": versions().get("fishexp")}
            facts |= {"resume": settings.resume, **record.config}
            load, build, method, train = (component(group, config[group]) for group in GROUPS)
        if settings.resume:
            snapshots.load()
        with member.agreeing() as facts:
            take_up(record, tracker, snapshots, device, member)
            tracker.say(_headline(config, settings, device, member))
            with tracker.clock("data"), member.first_here():
                data: Data = load()
            torch.manual_seed(settings.seed)
            model: Model = build(data.classes, data.channels)
            with tracker.clock("data"):
                data = _fitted(data, model, device)
            facts["initial weights"] = _digest(model) if member.size > 1 else ""
            if member.leads and model.source is None and not (folder / BASE).exists():
                store_base(model.network, folder, Path(settings.outputs))
            problem = _problem(model, data, device, settings, tracker, crew)
        record.total = sum(p.numel() for p in model.network.parameters())

        def told(kept: int, each: int) -> None:
            record.kept, record.kept_per_worker = kept, None if kept == each else each

        choose = Choice(problem, method, settings.keep, tracker, told)
        outcome: Outcome = train(problem, choose, tracker, snapshots, settings.decay)
        record.metrics = outcome.metrics
        if member.leads:
            record.bytes = _leave(folder, Path(settings.outputs), model, data, outcome)
        record.status = "finished"
        tracker.say(f"weights, metrics and record are in {os.path.relpath(folder)}")
    return record


def _headline(config: Config, settings: Settings, device: torch.device, member: Member) -> str:
    workers, each = (f", {member.size} workers", " each") if member.size > 1 else ("", "")
    threads = f"{torch.get_num_threads()} threads{each}"
    return f"{run_name(config)}{workers} on {hardware.name(device)}, {threads}, {settings.precision}"


def _digest(model: Model) -> str:
    """Of all weights and buffers."""
    return digest({name: fingerprint(tensor) for name, tensor in model.network.state_dict().items()})[:12]


def _leave(folder: Path, outputs: Path, model: Model, data: Data, outcome: Outcome) -> dict[str, int]:
    """The weights, in ``folder``; the bytes of everything."""
    sizes = save_run(folder, model, data, outcome.delta) | outcome.bytes
    if (folder / WEIGHTS).exists():
        drop_base(folder, outputs)
    return sizes


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
