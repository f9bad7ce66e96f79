"""The command line: ``python -m fishexp method=fish data=cifar10 keep=0.005``."""

import hashlib
import json
import os
import sys
import tempfile
import traceback
from argparse import Namespace
from pathlib import Path
from typing import NoReturn

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig

from fishexp.errors import BusyError, FishexpError, WorkerLost, describe
from fishexp.run import config
from fishexp.run.help import help_page
from fishexp.run.record import finished
from fishexp.run.settings import GROUPS, Config, component, run_id, run_name
from fishexp.system import signals

USER_ERROR, RUN_FAILED, INTERRUPTED = 2, 1, 130
FAILURES = "FISHEXP_FAILURES"  # a file to which each failed run of a sweep, in whatever process, adds its exit status


def main() -> int:
    """Run what the command line asks for.

    Returns:
        Exit status: 0, 1 if a run failed, 2 if what the user gave cannot be right, 130 if interrupted.
    """
    signals.install()
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come to us, who put them in one line
    config.register_resolvers()
    try:
        args = _arguments()
        if args.help:
            print(help_page([Path(folder) for folder in (config.CONF, args.config_dir) if folder]))
            return 0
        return _run(args)
    except FishexpError as error:
        if os.environ.get("LOCAL_RANK", "0") == "0":  # torchrun's other workers here say the same
            print(f"fishexp: {error}", file=sys.stderr)
        return USER_ERROR
    except BrokenPipeError:  # the reader, `| head` say, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return RUN_FAILED
    except OSError as error:  # a run folder that cannot be made, say
        print(f"fishexp: {error.filename}: {error.strerror}", file=sys.stderr)
        return USER_ERROR
    except KeyboardInterrupt:
        print("fishexp: interrupted", file=sys.stderr)
        return INTERRUPTED


def _arguments() -> Namespace:
    parser = get_args_parser()

    def error(message: str) -> NoReturn:
        raise FishexpError(f"{message}; --help shows what there is")

    parser.error = error  # type: ignore[method-assign]
    return parser.parse_args()


def _run(args: Namespace) -> int:
    """Check every run that is asked for, then let Hydra start them; the exit status."""
    if _of_torchrun() and any(override.startswith("hydra/launcher=") for override in args.overrides):
        raise FishexpError("hydra/launcher= starts processes of its own, and so does torchrun; use one of them")
    runs = [] if args.hydra_help or args.shell_completion else config.check_command_line(args)
    if not (args.cfg or args.info):
        _prepare(runs, args.multirun)
    with tempfile.NamedTemporaryFile(prefix="fishexp-") as failures:
        os.environ[FAILURES] = failures.name
        hydra.main(version_base="1.3", config_path=config.CONF, config_name="config")(_job)()
        statuses = [int(line) for line in Path(failures.name).read_text().split()]
    if args.multirun and statuses:
        print(f"fishexp: {len(statuses)} of {len(runs)} runs failed", file=sys.stderr)
    return max(statuses, default=0)


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


def _check_folder(key: str, folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise FishexpError(f"{key}={folder} cannot be made ({error.strerror}); choose another folder") from None
    if not os.access(folder, os.W_OK | os.X_OK):
        raise FishexpError(f"{key}={folder} cannot be written; choose another folder")


_finished: set[str] = set()  # runs of this process: a sweep over keep names bitfit and full more than once


def _job(cfg: DictConfig) -> float | None:
    """One run; its headline metric, for sweepers that look for the best."""
    resolved = config.resolved(cfg)
    name, folder = run_name(resolved), Path(HydraConfig.get().runtime.output_dir)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")  # they fork no workers of their own under a sweep's
    try:
        metrics = _carry_out(resolved, name, folder)
    except Exception as error:  # the other runs of a sweep go on
        multirun = HydraConfig.get().mode == RunMode.MULTIRUN
        if isinstance(error, BusyError) and multirun:
            print(f"{name} is going on in another process")
            return None
        status = _explain(error, resolved["debug"], name if multirun else "")
        if _of_torchrun() and isinstance(error, WorkerLost):
            sys.exit(status)  # torchrun may start all workers again
        with Path(os.environ[FAILURES]).open("a") as failures:
            failures.write(f"{status}\n")
        return None
    return next(iter(metrics.values()), None)


def _carry_out(resolved: Config, name: str, folder: Path) -> dict[str, float | None]:
    """Carry out a run and return its metrics; none if it was done already.

    Torch is imported here, after all that needs none.
    """
    done = name in _finished or (resolved["resume"] and run_id(resolved) in finished(Path(resolved["records"])))
    context = None
    if _of_torchrun():
        from fishexp.run.launch import torchrun

        context = torchrun.join(resolved, folder)
        done = context.broadcast_decision(done or context.is_finished())
    if done:
        print(f"{name} is done already")
        return {}
    regime = resolved["regime"]
    if context is None and regime.get("backend") == "processes" and regime["workers"] > 1:
        from fishexp.run.launch import local

        metrics = local.start(resolved, folder)["metrics"]
    else:
        from fishexp.run.runner import ALONE, run

        with signals.between_steps():
            metrics = run(resolved, folder, context or ALONE).metrics
    _finished.add(name)
    return metrics


def _of_torchrun() -> bool:
    """Tell whether torchrun, or whatever sets its variables, started this process with others."""
    return "RANK" in os.environ and int(os.environ.get("WORLD_SIZE", "1")) > 1


def _explain(error: Exception, debug: bool, name: str) -> int:
    """Say what went wrong, in one line unless debugging; the exit status."""
    if debug:
        traceback.print_exception(error)
    print(f"fishexp: {name}{': ' if name else ''}{describe(error)}", file=sys.stderr)
    return USER_ERROR if isinstance(error, FishexpError) else RUN_FAILED


if __name__ == "__main__":
    sys.exit(main())
