"""The command line: ``python -m fishexp method=fish data=cifar10 keep=0.005``."""

import hashlib
import os
import signal
import sys
import traceback
from pathlib import Path

import hydra
from hydra._internal.utils import get_args_parser
from hydra.core.hydra_config import HydraConfig
from omegaconf import DictConfig

from fishexp import config
from fishexp.errors import FishexpError, RunFailed
from fishexp.record import finished
from fishexp.settings import Config, run_id, run_name

USER_ERROR, RUN_FAILED, INTERRUPTED = 2, 1, 130


class SweepFailed(Exception):
    """A run failed and has said so; the other runs of the sweep go on, and the exit status is ``code``."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


def main() -> int:
    """Run what the command line asks for; the exit status."""
    os.environ["HYDRA_FULL_ERROR"] = "1"  # its errors come to us, who put them in one line
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # as Ctrl-C: the record says interrupted
    config.register_resolvers()
    try:
        args = get_args_parser().parse_args()
        if not (args.help or args.hydra_help or args.shell_completion or args.info):
            runs = config.check_command_line(args)
            _check_folders(runs)
            if args.multirun:
                os.environ.setdefault("WANDB_RUN_GROUP", _group(runs))
        hydra.main(version_base="1.3", config_path=config.CONF, config_name="config")(_job)()
    except FishexpError as error:
        print(f"fishexp: {error}", file=sys.stderr)
        return USER_ERROR
    except SweepFailed as error:
        return error.code
    except KeyboardInterrupt:
        print("fishexp: interrupted", file=sys.stderr)
        return INTERRUPTED
    return 0


def _job(cfg: DictConfig) -> float | None:
    """One run; its headline metric, for sweepers that look for the best."""
    resolved = config.resolved(cfg)
    if resolved["resume"] and finished(Path(resolved["records"]), run_id(resolved)):
        print(f"{run_name(resolved)} is finished already")
        return None
    if resolved["wandb"] != "disabled" or not sys.stdout.isatty():
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    from fishexp.runner import run  # torch is imported here, after all that can be refused without it

    try:
        record = run(resolved, Path(HydraConfig.get().runtime.output_dir))
    except KeyboardInterrupt:
        raise
    except Exception as error:
        raise SweepFailed(_explain(error, resolved)) from None
    return next(iter(record.metrics.values()), None)


def _explain(error: Exception, resolved: Config) -> int:
    """Say what went wrong, in one line unless debug=true; the exit status."""
    if resolved["debug"]:
        traceback.print_exc()
    mistake = isinstance(error, FishexpError)
    if isinstance(error, FishexpError | RunFailed):
        line = str(error)
    else:
        line = f"{type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else ''}"
        line += "; debug=true shows where"
    print(f"fishexp: {line}", file=sys.stderr)
    return USER_ERROR if mistake else RUN_FAILED


def _check_folders(runs: list[Config]) -> None:
    """Refuse an output folder that cannot be written before anything is computed."""
    for folder in {Path(run["outputs"]) for run in runs} | {Path(run["records"]).parent for run in runs}:
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise FishexpError(f"outputs={folder} cannot be made: {error.strerror}") from None
        if not os.access(folder, os.W_OK | os.X_OK):
            raise FishexpError(f"outputs={folder} cannot be written; choose another with outputs=DIR")


def _group(runs: list[Config]) -> str:
    """One W&B group per sweep: the same one when an interrupted sweep is continued."""
    ids = ",".join(sorted(run_id(run) for run in runs))
    return f"sweep-{hashlib.sha256(ids.encode()).hexdigest()[:8]}"


if __name__ == "__main__":
    sys.exit(main())
