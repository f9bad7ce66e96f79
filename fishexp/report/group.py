"""A group of runs that differ in nothing but the seed: their settings, their metric, its mean and spread."""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

from fishexp.errors import FishexpError

# methods in the order of a table; others follow
_METHODS = ("fish", "random", "magnitude", "bitfit", "full")
# how a metric's name begins -> the unit in which it is shown, a hundredth of its own
_UNITS = {"accuracy": "%", "matthews": "x100", "pearson": "x100", "spearman": "x100", "f1": "x100"}


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
    def keep(self) -> float | None:
        """Return the fraction of all weights that might move; None where the method decides."""
        return self.settings["keep"]

    @property
    def lr(self) -> float | None:
        """Return the peak learning rate."""
        return self.settings.get("regime.lr")

    @property
    def held_out(self) -> int:
        """Count the held-out training examples that the metric was measured on; 0 if it was measured on others."""
        holdout, limit = self.settings.get("data.holdout", 0), self.settings.get("data.valid_limit")
        return min(holdout, limit or holdout)

    @property
    def kept(self) -> list[int]:
        """Return the different numbers of weights that moved: a single number, unless it depends on the seed."""
        return sorted({run["kept"] for run in self.runs if run["kept"] is not None})

    @property
    def share(self) -> float | None:
        """Return the fraction of the weights that moved, on average; None if it is unknown."""
        return mean(self.kept) / self.runs[0]["total"] if self.kept else None

    @property
    def seconds(self) -> float:
        """Return the duration of a run in seconds, the median over the seeds."""
        return median(sum(run["seconds"].values()) for run in self.runs)

    @property
    def uncommitted(self) -> list[str]:
        """Return the run_ids of runs of code that was changed and not committed."""
        return [run["run_id"] for run in self.runs if (run["commit"] or "").endswith("+")]

    @property
    def header(self) -> str:
        """Name the metric and its unit: ``accuracy, %``."""
        return f"{self.metric}, {unit}" if (unit := _unit(self.metric)) else self.metric

    @property
    def values(self) -> list[float | None]:
        """Return the metric of each run in the unit of ``header``; None where it is undefined."""
        values = [run["metrics"][self.metric] for run in self.runs]
        factor = 100 if _unit(self.metric) else 1
        return [None if value is None or not math.isfinite(value) else factor * value for value in values]

    @property
    def mean(self) -> float | None:
        """Return the mean over the seeds; None if a run's metric is undefined, as the others are no fair sample."""
        values = [value for value in self.values if value is not None]
        return mean(values) if len(values) == len(self.runs) else None

    @property
    def std(self) -> float | None:
        """Return the sample standard deviation over the seeds; None for a single run or an undefined metric."""
        values = [value for value in self.values if value is not None]
        return stdev(values) if len(values) == len(self.runs) > 1 else None

    @property
    def score(self) -> str:
        """Write mean and standard deviation: ``80.6 ± 0.4``, ``80.6`` for a single run, or ``undefined (1 of 3)``."""
        if self.mean is None:
            return f"undefined ({self.values.count(None)} of {len(self.runs)})"
        digits, spread = (".1f", ".1f") if _unit(self.metric) else (".4g", ".2g")
        return f"{self.mean:{digits}}" + (f" ± {self.std:{spread}}" if self.std is not None else "")

    def setting(self, key: str) -> str:
        """Return the value of a dotted key as text; empty where there is no such key."""
        value = self.settings.get(key, "")
        return value if isinstance(value, str) else json.dumps(value)

    @property
    def order(self) -> tuple[Any, ...]:
        """Return a key to sort by: data set, model, method, keep, then everything else, the learning rate last."""
        rank = _METHODS.index(self.method) if self.method in _METHODS else len(_METHODS)
        rest = [(key, _sortable(value)) for key, value in sorted(self.settings.items()) if key != "regime.lr"]
        keep, lr = _sortable(self.keep), _sortable(self.lr)
        return self.data, self.model, rank, self.method, keep, rest, lr, self.metric


def single(record: Mapping[str, Any]) -> Group:
    """Make a group of a single run.

    Raises:
        FishexpError: If ``record`` lacks what a finished run has.
    """
    try:
        group = Group(settings_of(record), next(iter(record["metrics"])), [dict(record)])
        _ = group.order, group.values, group.share, group.seconds, group.uncommitted  # for the KeyError
    except StopIteration:
        raise FishexpError(f"the record of run {record['run_id']} says finished but has no metrics") from None
    except (KeyError, TypeError, AttributeError, ArithmeticError, ValueError) as error:
        raise FishexpError(f"the record of run {record['run_id']} is not one of ours: {error!r}") from None
    return group


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """Return the settings of a run without its seed, and the version of its random streams: dotted key -> value."""
    settings = dict(_flat(record["config"])) | {"streams": record.get("streams", 1)}
    del settings["seed"]
    return settings


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
    """Return a key that sorts numbers before everything else."""
    return (0, value, "") if isinstance(value, int | float) else (1, 0, json.dumps(value))


def _unit(metric: str) -> str | None:
    return next((unit for name, unit in _UNITS.items() if metric.startswith(name)), None)
