"""A group of runs that differ in nothing but the seed: their settings, their metric, its mean and spread."""

import json
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from statistics import mean, median
from typing import Any

from fishexp.report.check import check_finished
from fishexp.report.scores import Scores, scores_of, success_metrics

# methods in the order of a table; others follow
_METHODS = (
    "fish", "random", "magnitude", "gradient", "snip", "relative", "activation", "lift", "largest_change",
    "diff_pruning", "bitfit", "lora", "full",
)  # fmt: skip
# setting that says what moves together
UNIT = "method.unit"
# setting that says within what scores compete
PER = "method.per"
# name of the digest of the examples among the settings
EXAMPLES = "data.examples"


@dataclass(frozen=True)
class Group:
    """Hold finished runs that agree in every setting but the seed.

    Attributes:
        settings: Dotted key -> value, without the seed.
        metric: Name of the headline metric, of which more is better.
        runs: The records, sorted by seed, a single record for each.
    """

    settings: dict[str, Any]
    metric: str
    runs: list[dict[str, Any]]

    @property
    def data(self) -> str:
        """Name the data set, and its task if it has several: ``glue/rte``."""
        task = self.settings.get("data.task")
        return self.settings["data.name"] + (f"/{task}" if task else "")

    @property
    def model(self) -> str:
        """Name the model."""
        return self.settings["model.name"]

    @property
    def method(self) -> str:
        """Name the method."""
        return self.settings["method.name"]

    @property
    def label(self) -> str:
        """Name the method, and how its scores became a mask if not as usual: ``fish rows``, ``fish per matrix``."""
        unit, per = self.settings.get(UNIT), self.settings.get(PER)
        shares = f" per {per}" if per not in (None, "network") else ""
        return self.method + (f" {unit}s" if unit not in (None, "entry") else "") + shares

    @property
    def keep(self) -> float | None:
        """Return the fraction of all weights that might move; None where the method decides."""
        return self.settings.get("keep")

    @property
    def lr(self) -> float | None:
        """Return the peak learning rate."""
        return self.settings.get("regime.lr")

    @property
    def held_out(self) -> int:
        """Count the held-out training examples that the metric was measured on; 0 if it was measured on others."""
        holdout, limit = self.settings.get("data.holdout") or 0, self.settings.get("data.valid_limit")
        return min(holdout, limit or holdout)

    @property
    def kept(self) -> list[int]:
        """Return the different numbers of weights that moved: a single number, unless it depends on the seed."""
        return sorted({run["kept"] for run in self.runs if run.get("kept") is not None})

    @property
    def share(self) -> float | None:
        """Return the fraction of the weights that moved, the mean over the seeds; None if it is unknown."""
        counts = [run["kept"] for run in self.runs if run.get("kept") is not None]
        return mean(counts) / self.runs[0]["total"] if counts else None

    @property
    def seconds(self) -> float:
        """Return the duration of a run in seconds, the median over the seeds."""
        return median(sum(run["seconds"].values()) for run in self.runs)

    @property
    def uncommitted(self) -> list[str]:
        """Return the run_ids of runs of code that was changed and not committed."""
        return [run["run_id"] for run in self.runs if (run.get("commit") or "").endswith("+")]

    def scores(self, metric: str) -> Scores:
        """Return the values of a metric over the runs."""
        return scores_of(metric, self.runs)

    @property
    def headline(self) -> Scores:
        """Return the values of the headline metric over the runs."""
        return self.scores(self.metric)

    @property
    def header(self) -> str:
        """Name the headline metric and its unit."""
        return self.headline.header

    @property
    def values(self) -> list[float | None]:
        """Return the headline metric of each run in the unit of ``header``; None where it is undefined."""
        return self.headline.values

    @property
    def mean(self) -> float | None:
        """Return the mean of the headline metric; None if a run's is undefined."""
        return self.headline.mean

    @property
    def std(self) -> float | None:
        """Return the sample standard deviation of the headline metric; None if there is none."""
        return self.headline.std

    @property
    def score(self) -> str:
        """Write mean and standard deviation of the headline metric."""
        return self.headline.text

    @property
    def metrics(self) -> list[str]:
        """Return the names of the metrics that measure success, the headline first."""
        return [self.metric, *(name for name in success_metrics(self.runs) if name != self.metric)]

    def setting(self, key: str) -> str:
        """Return the value of a dotted key as text; empty where there is no such key."""
        value = self.settings.get(key, "")
        return value if isinstance(value, str) else json.dumps(value)

    @property
    def order(self) -> tuple[Any, ...]:
        """Return a key to sort by: data set, model, method, unit, keep, then all else, the learning rate last."""
        rank = _METHODS.index(self.method) if self.method in _METHODS else len(_METHODS)
        rest = [(key, _sortable(value)) for key, value in sorted(self.settings.items()) if key != "regime.lr"]
        keep, lr = _sortable(self.keep), _sortable(self.lr)
        return self.data, self.model, rank, self.label, keep, rest, lr, self.metric


def single(record: Mapping[str, Any]) -> Group:
    """Make a group of a single run.

    Raises:
        FishexpError: If ``record`` lacks what a finished run has.
    """
    check_finished(record)
    return Group(settings_of(record), next(iter(record["metrics"])), [dict(record)])


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run without its seed: dotted key -> value.

    Masks were of the best single entries of the network before there were others. The version of the random streams
    counts as a setting, and so does the digest of the examples if the record has it. So does the number of processes
    that trained one model together, if there were several: dropout and BatchNorm differ.
    """
    settings = dict(_flat(record["config"])) | {"streams": record.get("streams") or 1}
    settings.pop("seed", None)
    if (processes := record.get("processes") or 1) > 1:
        settings["processes"] = processes
    if not settings.get("method.ignores_keep"):
        settings.setdefault(UNIT, "entry")
        settings.setdefault(PER, "network")
    inputs = record.get("inputs")
    examples = inputs.get("examples") if isinstance(inputs, Mapping) else None
    return settings if examples is None else settings | {EXAMPLES: examples}


def number(value: float | None) -> str:
    """Write a setting that is a number; a dash for none."""
    return "–" if value is None else f"{value:g}"


def percent(share: float | None) -> str:
    """Write a share of the weights: ``0.5 %``."""
    return "?" if share is None else f"{100 * share:.3g} %"


def span(numbers: Collection[int]) -> str:
    """Write numbers as a range: ``1,537``, or ``1,537–1,540`` where they differ; empty for none."""
    return "–".join(f"{number:,}" for number in sorted({min(numbers), max(numbers)})) if numbers else ""


def seeds_text(groups: Collection[Group]) -> str:
    """Write how many seeds each of the groups has: ``1 seed``, ``3 seeds`` or ``3–5 seeds``."""
    counts = [len(group.runs) for group in groups]
    return f"{span(counts)} seed{'s' if max(counts) > 1 else ''}"


def about_streams(groups: Collection[Group]) -> list[str]:
    """Say that runs were made with the random streams of version 1, if some were."""
    before = [group for group in groups if group.settings["streams"] == 1]
    which = "Made" if len(before) == len(groups) else "Those with streams=1 were made"
    return [f"{which} with the random streams of fishexp 0.1: the same seeds draw other numbers now."] if before else []


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    """List nested settings by their dotted keys, such as ``regime.lr``."""
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _sortable(value: Any) -> tuple[int, float, str]:
    """Return a key that sorts numbers before everything else, NaN too."""
    is_number = isinstance(value, int | float) and value == value
    return (0, value, "") if is_number else (1, 0, json.dumps(value))
