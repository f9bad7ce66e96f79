"""The runs on record, found by their settings."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from experiments.lib.settings import Settings, agrees, as_overrides
from fishexp.errors import FishexpError
from fishexp.report.differences import Predicted, load_predictions
from fishexp.report.group import Group, settings_of
from fishexp.report.pool import differing, load, pool


@dataclass(frozen=True)
class RecordedRuns:
    """Hold the runs that a file has records of: those of the latest version of the random streams in it.

    Attributes:
        groups: The finished runs, pooled over seeds.
        failed: The settings of each run that failed and has not finished since.
        predicted: What the runs predicted, as far as that is on record.
    """

    groups: list[Group]
    failed: list[dict[str, Any]]
    predicted: Predicted

    def find(self, settings: Settings) -> tuple[Group | None, int]:
        """Return the finished runs with these settings, and how many failed.

        Raises:
            FishexpError: If finished runs have these settings but differ from each other in further ones.
        """
        groups = [group for group in self.groups if agrees(settings, group.settings)]
        if len(groups) > 1:
            text = " ".join(as_overrides(settings))
            raise FishexpError(f"records of {text} differ in {', '.join(differing(groups))}; keep one kind")
        return groups[0] if groups else None, sum(agrees(settings, failed) for failed in self.failed)


def recorded_runs(records: Path) -> RecordedRuns:
    """Read the runs in a file of records, those of the latest random streams; none if there is no file.

    Raises:
        FishexpError: If a file holds lines but no record, or predictions are damaged.
    """
    lines = list(load([records])) if records.exists() else []
    latest = max((settings_of(line)["streams"] for line in lines), default=None)
    lines = [line for line in lines if settings_of(line)["streams"] == latest]
    done = {line["run_id"] for line in lines if line["status"] == "finished"}
    failed = {line["run_id"]: line for line in lines if line["status"] == "failed" and line["run_id"] not in done}
    pooled = pool(lines, uncommitted=True) if done else None
    groups = pooled.held_out + pooled.reported if pooled else []
    return RecordedRuns(groups, [settings_of(line) for line in failed.values()], load_predictions([records]))
