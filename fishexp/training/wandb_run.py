"""A run on Weights & Biases, which gets what the run's own files have and is never the only copy."""

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from fishexp.system.wandb_start import start

WandbMode = Literal["disabled", "offline", "online"]
_EXIT_CODES = {"finished": 0, "interrupted": 130}  # by the record's status; any other is 1
# a delta is small beside dense weights of so many times its bytes
_SMALL = 2


class WandbRun:
    """Report a run to W&B, from its start to its end.

    Args:
        folder: Folder of the run, below which W&B writes its files.
        name: The run's name, for people.
        config: The run's configuration.
        mode: ``offline`` writes files only, ``online`` sends them too.
        run_id: W&B's id of the run that was interrupted and resumes; None for a new run.

    Attributes:
        id: W&B's id of the run.

    Raises:
        FishexpError: If W&B refuses, without an account for example.
    """

    def __init__(self, folder: Path, name: str, config: Mapping[str, Any], mode: WandbMode, run_id: str | None) -> None:
        self._run = start(
            "wandb=",
            mode,
            folder,
            name=os.environ.get("WANDB_NAME", name),
            group=os.environ.get("WANDB_RUN_GROUP"),  # W&B itself looks only once in a process
            config=dict(config),
            id=run_id,
            resume="allow" if run_id else None,
        )
        self.id: str = self._run.id

    def log(self, epoch: int, metrics: Mapping[str, float | None]) -> None:
        """Send the metrics of an epoch, which is W&B's step."""
        self._run.log({"epoch": epoch, **metrics}, step=epoch)

    def finish(self, record: Mapping[str, Any], delta: Path) -> None:
        """Send the record as the run's summary, and the delta of a finished run as an artifact; end the run.

        Args:
            delta: The file of the delta, if the run has left one. It is sent if it is small beside the dense weights.
        """
        if (
            record["status"] == "finished"
            and delta.is_file()
            and _SMALL * delta.stat().st_size <= record["bytes"]["dense"]
        ):
            self._run.log_artifact(delta, name=f"delta-{record['run_id']}", type="delta")
        self._run.summary.update({key: value for key, value in record.items() if key != "config"})
        self._run.finish(exit_code=_EXIT_CODES.get(record["status"], 1))
