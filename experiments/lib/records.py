"""The runs on record, found by their settings."""

from collections.abc import Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from experiments.lib.settings import Settings, agrees, as_overrides
from fishexp.errors import FishexpError
from fishexp.report.differences import Predicted, load_predictions
from fishexp.report.group import Group, settings_of
from fishexp.report.pool import differing, load, pool


@dataclass(frozen=True)
class RecordedRuns:
    """Hold the runs that a file has records of.

    Attributes:
        groups: The finished runs, pooled over seeds.
        failed: Seed and settings of each run that failed and has not finished since.
        predicted: What the runs predicted, as far as that is on record.
    """

    groups: list[Group]
    failed: list[tuple[int, dict[str, Any]]]
    predicted: Predicted

    def of_latest_streams(self, common: Settings) -> "RecordedRuns":
        """Return the runs with these settings and the latest version of the random streams among them.

        Runs of a study count until there are some with later streams: a table has one version, and the tables of other
        studies theirs.
        """
        groups = [group for group in self.groups if agrees(common, group.settings)]
        failed = [(seed, settings) for seed, settings in self.failed if agrees(common, settings)]
        agreeing = [*(group.settings for group in groups), *(settings for _, settings in failed)]
        latest = max((settings["streams"] for settings in agreeing), default=None)
        return RecordedRuns(
            [group for group in groups if group.settings["streams"] == latest],
            [(seed, settings) for seed, settings in failed if settings["streams"] == latest],
            self.predicted,
        )

    def find(self, settings: Settings, seeds: Collection[int]) -> tuple[Group | None, int]:
        """Return the finished runs with these settings and one of these seeds, and how many such runs failed.

        Another experiment that shares the records may have further seeds.

        Raises:
            FishexpError: If finished runs have these settings but differ from each other in further ones.
        """
        groups = [group for group in self.groups if agrees(settings, group.settings)]
        if len(groups) > 1:
            text = " ".join(as_overrides(settings))
            raise FishexpError(f"records of {text} differ in {', '.join(differing(groups))}; keep one kind")
        runs = [run for group in groups for run in group.runs if run["config"]["seed"] in seeds]
        failed = sum(seed in seeds and agrees(settings, others) for seed, others in self.failed)
        return replace(groups[0], runs=runs) if runs else None, failed


def recorded_runs(records: Path) -> RecordedRuns:
    """Read the runs in a file of records; none if there is no file.

    Raises:
        FishexpError: If a file holds lines but no record, or predictions are damaged.
    """
    lines = list(load([records])) if records.exists() else []
    done = {line["run_id"] for line in lines if line["status"] == "finished"}
    failed = {line["run_id"]: line for line in lines if line["status"] == "failed" and line["run_id"] not in done}
    pooled = pool(lines, uncommitted=True) if done else None
    groups = pooled.held_out + pooled.reported if pooled else []
    settings = [(line["config"]["seed"], settings_of(line)) for line in failed.values()]
    return RecordedRuns(groups, settings, load_predictions([records]))
