"""The command line: ``python -m fishexp method=fish data=cifar10 keep=0.005``."""

import hashlib
import json
import os
import platform
import re
import shutil
import sys
import tempfile
import time
import traceback
from argparse import ArgumentParser, Namespace
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import NoReturn

from fishexp import __version__
from fishexp.errors import BusyError, FishexpError, WorkerLost, describe, how_to_install

try:
    from hydra._internal.utils import get_args_parser
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from fishexp.run import config
    from fishexp.run.help import help_page
    from fishexp.run.identity import run_id, run_name
    from fishexp.run.record import commit, finished, versions
    from fishexp.run.resume import done_already
    from fishexp.run.settings import GROUPS, Config, component
    from fishexp.run.sweep import Ended, Outcome, Sweep, differing, labelled
    from fishexp.run.yamls import CONF
    from fishexp.system import signals
    from fishexp.system.program import FAILED, USER_ERROR, carry_out
except ModuleNotFoundError as missing:  # the library was installed, without what runs need
    if (hint := how_to_install(missing)) is None:
        raise
    print(f"fishexp: {hint}", file=sys.stderr)
    sys.exit(2)

# variables that W&B reads, of a single run
WANDB_OF_ONE_RUN = ("WANDB_RUN_ID", "WANDB_RESUME", "WANDB_NAME")
# what a run goes through that Hydra's own launcher starts, here and one after another
_ONE_BY_ONE = "hydra._internal.core_plugins.basic_launcher.BasicLauncher"
# variables that torchrun sets for each worker
_TORCHRUN = ("LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run what the command line asks for.

    Args:
        arguments: The command line; None for that of this process.

    Returns:
        Exit status: 0, 1 if a run failed, 2 if what the user gave cannot be right, 130 if interrupted.
    """
    signals.install()
    config.register_resolvers()

    def work() -> int:
        try:
            return _work(_parsed(arguments))
        except FishexpError:
            rank = os.environ.get("LOCAL_RANK", "0")
            if not _of_torchrun() or rank == "0" or not rank.isdecimal():
                raise
            return USER_ERROR  # the first of torchrun's workers here says it

    return carry_out("fishexp", work, _interrupted)


def _interrupted() -> str:
    if signals.time_is_over():
        return "stopped, as the time of minutes= is over; the same command continues"
    return "interrupted; the same command with resume=true continues"


def _work(args: Namespace) -> int:
    if args.help:
        width = shutil.get_terminal_size().columns if sys.stdout.isatty() else None
        print(help_page([Path(folder) for folder in (CONF, args.config_dir) if folder], width))
        return 0
    if args.version:
        print(_version())
        return 0
    return _run(args)


def _parsed(arguments: Sequence[str] | None) -> Namespace:
    parser = ArgumentParser(parents=[get_args_parser()], add_help=False, conflict_handler="resolve")
    parser.add_argument("--version", action="store_true")  # ours instead of Hydra's

    def error(message: str) -> NoReturn:
        dashed = re.search(r" --?([\w.]+=.*)", message)
        hint = f"no dashes stand before a key: {dashed[1]}" if dashed else "--help shows what there is"
        raise FishexpError(f"{message}; {hint}")

    parser.error = error  # type: ignore[method-assign]
    args = parser.parse_args(arguments)
    _check_flags(args)
    if args.config_dir is not None and Path(args.config_dir).resolve() == Path(CONF).resolve():
        args.config_dir = None  # it is read in any case
    return args


def _check_flags(args: Namespace) -> None:
    """Refuse flags of Hydra's that do not go together, or have no place here."""
    if args.config_path is not None:
        raise FishexpError("--config-path would replace conf/; --config-dir DIR adds to it")
    if args.experimental_rerun is not None:
        raise FishexpError("--experimental-rerun is not supported; the run folder's config.yaml says what to type")
    if (args.resolve or args.package) and not args.cfg:
        raise FishexpError("--resolve and --package say how --cfg prints; add --cfg job")
    asked = [flag for flag in ("run", "multirun", "cfg", "info", "shell_completion") if getattr(args, flag)]
    if len(asked) > 1 and not (asked == ["multirun", "cfg"] and args.cfg == "job"):
        raise FishexpError(f"--{asked[0]} and --{asked[1].replace('_', '-')} do not go together; leave one away")


def _version() -> str:
    code, torch = commit(), versions().get("torch", "none")
    return f"fishexp {__version__}{f' ({code})' if code else ''}, torch {torch}, Python {platform.python_version()}"


def _run(args: Namespace) -> int:
    """Check every run that is asked for, then have them carried out; the exit status."""
    _check_launcher(args)
    if args.hydra_help or args.shell_completion:
        config.show_hydra(args)
        return 0
    command = config.read_command(args)
    if args.info:
        config.show_info(command, args.info)
        return 0
    if args.cfg:
        print(config.shown(command, args.cfg, args.package))
        return 0
    if any(run["plan"] for run in command.configs):
        return _plan(command)
    if _launcher(args).startswith("submitit") and not all(run["resume"] for run in command.configs):
        raise FishexpError(
            f"hydra/launcher={_launcher(args)} begins a job again when its time is up; add resume=true, so that its "
            "runs go on instead"
        )
    use_gpus(command.runs.gpus)
    if minutes := min((run["minutes"] for run in command.configs if run["minutes"] is not None), default=None):
        signals.stop_after(60 * minutes)
    _prepare(command.configs, args.multirun)
    # jobs of a launcher may be on other machines, which share the folder of the outputs
    shared = command.configs[0]["outputs"] if _launcher(args) else None
    with tempfile.NamedTemporaryFile(prefix=".fishexp-", dir=shared) as file:
        sweep = Sweep(
            Path(file.name),
            differing(command.runs.overrides),
            [(run_id(run), run["outputs"], run["records"]) for run in command.configs],
            args.multirun and os.environ.get("RANK", "0") == "0",
        )
        if sweep.shown:
            print("\n".join(command.runs.notes), end="\n" * bool(command.runs.notes))
        try:
            config.launch(command, partial(_job, sweep=sweep), args.multirun)
        except OSError as error:  # Hydra makes the folder of a run
            from fishexp.run.runner import record_unstarted

            record_unstarted(command.configs, error)
            raise
        finally:
            if sweep.shown:
                print(sweep.summary())
        statuses = [end.outcome.exit_status for end in sweep.ended() if end.outcome.exit_status]
    if args.multirun and statuses:
        print(f"fishexp: {len(statuses)} of {len(command.configs)} runs failed", file=sys.stderr)
    return max(statuses, default=0)


def _plan(command: config.Command) -> int:
    """Print what the runs are going to take, and carry out none; the exit status."""
    from fishexp.run.plan import plan_text, rows_of

    rows = rows_of(command.configs, command.runs.overrides)
    if os.environ.get("RANK", "0") == "0":
        print("".join(f"{text}\n" for text in (*command.runs.notes, plan_text(rows)) if text), end="")
    statuses = [
        _explain(row.error, row.runs[0]["debug"], row.name if len(rows) > 1 else "")
        for row in rows
        if row.error is not None
    ]
    return max(statuses, default=0)


def _check_launcher(args: Namespace) -> None:
    """Refuse what other launchers set, or do not set, and what starts processes twice."""
    if not _of_torchrun():
        return
    if missing := [name for name in _TORCHRUN if name not in os.environ]:
        raise FishexpError(
            f"RANK and WORLD_SIZE are set, as by torchrun, but {' '.join(missing)} not: start workers with torchrun, "
            "or unset RANK and WORLD_SIZE for a run of its own"
        )
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "MASTER_PORT"):
        if not os.environ[name].isdecimal():
            raise FishexpError(f"{name}={os.environ[name]} in the environment should be a number, as torchrun sets it")
    if _launcher(args):
        raise FishexpError("hydra/launcher= starts processes of its own, and so does torchrun; use one of them")


def _launcher(args: Namespace) -> str:
    """Return the name of Hydra's launcher that the command asks for; empty for none."""
    asked = [override for override in args.overrides if override.startswith("hydra/launcher=")]
    return asked[-1].partition("=")[2] if asked else ""


def use_gpus(gpus: str | None) -> None:
    """Let torch see only the GPUs that ``gpu=`` names, before it is imported."""
    if gpus is None:
        return
    os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # the order of nvidia-smi
    if visible := os.environ.get("CUDA_VISIBLE_DEVICES"):
        there = visible.split(",")
        if max(map(int, gpus.split(","))) >= len(there):
            raise FishexpError(f"gpu={gpus}: CUDA_VISIBLE_DEVICES={visible} leaves {len(there)}, counted from 0")
        gpus = ",".join(there[int(gpu)] for gpu in gpus.split(","))
    os.environ["CUDA_VISIBLE_DEVICES"] = gpus


def _prepare(runs: list[Config], multirun: bool) -> None:
    """Everything that can be refused before the first run starts."""
    for folder in {Path(run["outputs"]) for run in runs}:
        _check_folder("outputs", folder)
    for file in {Path(run["records"]) for run in runs}:
        _check_folder("records", file.parent)
        if file.is_dir() or (file.exists() and not os.access(file, os.W_OK)):
            raise FishexpError(f"records={file} is not a file that can be written")
        finished(file)  # refuses a file that holds anything but records
    for group in GROUPS:
        for options in {json.dumps(run[group]) for run in runs}:
            component(group, json.loads(options))
    if multirun:
        # the same group when an interrupted sweep resumes
        ids = ",".join(sorted({run_id(run) for run in runs}))
        os.environ.setdefault("WANDB_RUN_GROUP", f"sweep-{hashlib.sha256(ids.encode()).hexdigest()[:8]}")
        of_one_run = [name for name in WANDB_OF_ONE_RUN if os.environ.pop(name, None)]
        if of_one_run and any(run["wandb"] != "disabled" for run in runs) and os.environ.get("RANK", "0") == "0":
            print(f"{', '.join(of_one_run)} ignored: all runs of the sweep would have the same")


def _check_folder(key: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FishexpError(f"{key}={folder} cannot be made ({error.strerror}); choose another folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FishexpError(f"{key}={folder} cannot be written; choose another folder")


def _job(cfg: DictConfig, sweep: Sweep) -> None:
    """Carry out one run of a sweep, or the only run, and note how it ended."""
    os.chdir(HydraConfig.get().runtime.cwd)  # which hydra.job.chdir left: paths are from where the user started
    resolved, hydra = config.resolved(cfg), HydraConfig.get()
    name, multirun = run_name(resolved), hydra.mode == RunMode.MULTIRUN
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # they fork no workers of their own under a sweep's
    number = hydra.job.num + 1 if multirun else 1
    together = multirun and hydra.launcher._target_ != _ONE_BY_ONE
    label = f"{number}/{sweep.total} {'/'.join(name.split('/')[-2:])}" if together else ""
    with signals.passed_on(), labelled(label):
        sweep.begin(number)
        start = time.monotonic()
        outcome = Outcome("interrupted", {})
        try:
            repeats = sweep.has_finished(number)  # a sweep over keep names bitfit and full more than once
            outcome = _carry_out(resolved, name, Path(hydra.runtime.output_dir), label, repeats=repeats)
        except Exception as error:  # the other runs of a sweep go on
            outcome = _failed(error, name, resolved["debug"], multirun)
        finally:
            sweep.end(Ended(number, name, time.monotonic() - start, outcome))


def _failed(error: Exception, name: str, debug: bool, multirun: bool) -> Outcome:
    """Say why a run failed, and how it ended."""
    if isinstance(error, BusyError) and multirun:
        print(f"{name} is going on in another process")
        return Outcome("busy", {})
    status = _explain(error, debug, name if multirun else "")
    if _of_torchrun() and isinstance(error, WorkerLost):
        sys.exit(status)  # torchrun may start all workers again
    return Outcome("failed", {}, status)


def _carry_out(resolved: Config, name: str, folder: Path, label: str, *, repeats: bool) -> Outcome:
    """Carry out a run, unless it was done already.

    Torch is imported here, after all that needs none.

    Args:
        repeats: Whether the command has finished this run already.
    """
    done, changes = (True, "") if repeats else done_already(resolved, folder)
    context = None
    if _of_torchrun():
        from fishexp.run.launch import torchrun

        context = torchrun.join(resolved, folder)
        done = context.broadcast_decision(done or context.is_finished())
    if done:
        print(f"{name} is done already" + (f"; since then: {changes}; resume=strict runs it again" if changes else ""))
        return Outcome("done already", _recorded_metrics(resolved))
    if changes:
        print(f"{name} runs again, since then: {changes}")
    regime = resolved["regime"]
    if context is None and regime.get("backend") == "processes" and regime["workers"] > 1:
        from fishexp.run.launch import local

        metrics = local.start(resolved, folder, label)["metrics"]
    else:
        from fishexp.run.runner import ALONE, run

        with signals.between_steps():
            metrics = run(resolved, folder, context or ALONE).metrics
    return Outcome("finished", metrics)


def _recorded_metrics(resolved: Config) -> Mapping[str, float | None]:
    """Return the metrics of a run's last finished record; none if another file has it."""
    record = finished(Path(resolved["records"])).get(run_id(resolved))
    return record["metrics"] if record else {}


def _of_torchrun() -> bool:
    """Tell whether torchrun, or whatever sets its variables, started this process with others."""
    return "RANK" in os.environ and os.environ.get("WORLD_SIZE", "1") not in ("", "0", "1")


def _explain(error: Exception, debug: bool, name: str) -> int:
    """Say what went wrong, in one line unless debugging; the exit status."""
    if debug:
        traceback.print_exception(error)
    print(f"fishexp: {name}{': ' if name else ''}{describe(error)}", file=sys.stderr)
    missing = isinstance(error, ModuleNotFoundError) and how_to_install(error) is not None
    return USER_ERROR if missing or isinstance(error, FishexpError) else FAILED


if __name__ == "__main__":
    sys.exit(main())
