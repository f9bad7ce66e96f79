"""What lies beside records: predictions, learning curves and deltas, as far as they are at hand."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from fishexp.report.differences import Predicted, load_predictions
from fishexp.report.page.curves import Histories, read_histories
from fishexp.report.page.overlaps import Deltas
from fishexp.report.run_folders import files_named


@dataclass(frozen=True)
class Beside:
    """Hold what a page shows beyond records.

    Attributes:
        predicted: What runs predicted, for intervals over examples.
        histories: Learning curves.
        deltas: Deltas, for the overlap of masks.
    """

    predicted: Predicted = field(default_factory=dict)
    histories: Histories = field(default_factory=dict)
    deltas: Deltas = field(default_factory=dict)


def read_beside(records: Sequence[Path], folders: Sequence[Path]) -> Beside:
    """Read the predictions beside files of records, and find what is left of the runs in ``folders``.

    Raises:
        FishexpError: If a file of predictions is damaged or cannot be read.
    """
    return Beside(load_predictions(records), read_histories(folders), files_named("delta.safetensors", folders))
