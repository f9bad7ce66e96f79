"""A run in TensorBoard's files, which get what the run's own files have and are never the only copy."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fishexp.errors import FishexpError, how_to_install
from fishexp.system.atomic import writing

TENSORBOARD = "tensorboard"  # folder of the files, in a run folder


class TensorBoardRun:
    """Write the metrics of a run for TensorBoard.

    Args:
        folder: Folder of the run, below which the files are written.
        next_epoch: The epoch that is logged next. What an interrupted run has logged of it, or after it, is taken back.

    Raises:
        FishexpError: If TensorBoard is not installed.
        RunFailed: If the files cannot be written.
    """

    def __init__(self, folder: Path, next_epoch: int) -> None:
        try:
            from torch.utils.tensorboard.writer import SummaryWriter
        except ModuleNotFoundError as error:
            raise FishexpError(f"tensorboard=true: {how_to_install(error) or error}") from None
        self._folder = folder / TENSORBOARD
        with writing(self._folder):
            self._writer = SummaryWriter(self._folder, purge_step=next_epoch)

    def log(self, epoch: int, metrics: Mapping[str, float | None]) -> None:
        """Write the metrics of an epoch, which is TensorBoard's step; those that are undefined have no point there.

        Raises:
            RunFailed: If they cannot be written.
        """
        with writing(self._folder):
            for name, value in metrics.items():
                if value is not None:
                    self._writer.add_scalar(name, value, epoch)
            self._writer.flush()  # or a run that is killed would resume after epochs that are not there

    def finish(self, record: Mapping[str, Any], delta: Path) -> None:
        """Close the files."""
        self._writer.close()
