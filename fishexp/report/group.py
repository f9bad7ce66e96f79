"""Runs that differ in nothing but the seed, and what they have in common."""

import json
import math
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from statistics import mean, median, stdev
from typing import Any

from fishexp.errors import FishexpError

_METHODS = ("fish", "random", "magnitude", "bitfit", "full")
_UNITS = {"accuracy": "%", "matthews": "x100", "pearson": "x100", "spearman": "x100", "f1": "x100"}


@dataclass(frozen=True)
class Group:
    """Finished runs that agree in every setting but the seed.

    Attributes:
        settings: Dotted key -> value; the seed is not among them.
        metric: Name of the headline metric, of which more is better.
        runs: Their records, one per seed, by seed.
    """

    settings: dict[str, Any]
    metric: str
    runs: list[dict[str, Any]]

    @property
    def data(self) -> str:
        task = self.settings.get("data.task")
        return self.settings["data.name"] + (f"/{task}" if task else "")

    @property
    def model(self) -> str:
        return self.settings["model.name"]

    @property
    def method(self) -> str:
        return self.settings["method.name"]

    @property
    def keep(self) -> float | None:
        return self.settings["keep"]

    @property
    def lr(self) -> float | None:
        return self.settings.get("regime.lr")

    @property
    def held_out(self) -> int:
        """Number of training examples that the metric was measured on; 0 for the reported examples."""
        taken, limit = self.settings.get("data.holdout", 0), self.settings.get("data.valid_limit")
        return min(taken, limit or taken)

    @property
    def kept(self) -> list[int]:
        """The different numbers of weights that moved; one, unless it depends on the seed."""
        return sorted({run["kept"] for run in self.runs if run["kept"] is not None})

    @property
    def share(self) -> float | None:
        """Mean fraction of the weights that moved."""
        return mean(self.kept) / self.runs[0]["total"] if self.kept else None

    @property
    def seconds(self) -> float:
        """Median over the seeds."""
        return median(sum(run["seconds"].values()) for run in self.runs)

    @property
    def uncommitted(self) -> list[str]:
        """The run_ids of those that ran with changes that were not committed."""
        return [run["run_id"] for run in self.runs if (run["commit"] or "").endswith("+")]

    @property
    def header(self) -> str:
        """The metric and its unit: ``accuracy, %``."""
        return f"{self.metric}, {unit}" if (unit := _unit(self.metric)) else self.metric

    @property
    def values(self) -> list[float | None]:
        """The metric of each run in the unit of ``header``; None where undefined."""
        found = [run["metrics"][self.metric] for run in self.runs]
        factor = 100 if _unit(self.metric) else 1
        return [None if value is None or not math.isfinite(value) else factor * value for value in found]

    @property
    def mean(self) -> float | None:
        """None if the metric of any run is undefined: the others are not a fair sample."""
        values = [value for value in self.values if value is not None]
        return mean(values) if len(values) == len(self.runs) else None

    @property
    def std(self) -> float | None:
        """Sample standard deviation; None for a single run or an undefined metric."""
        values = [value for value in self.values if value is not None]
        return stdev(values) if len(values) == len(self.runs) > 1 else None

    @property
    def score(self) -> str:
        """``80.6 ± 0.4``, ``80.6`` for a single run, or ``undefined (1 of 3)``."""
        if self.mean is None:
            return f"undefined ({self.values.count(None)} of {len(self.runs)})"
        digits, spread = (".1f", ".1f") if _unit(self.metric) else (".4g", ".2g")
        return f"{self.mean:{digits}}" + (f" ± {self.std:{spread}}" if self.std is not None else "")

    def setting(self, key: str) -> str:
        """The value of a dotted key as text; empty where there is no such key."""
        value = self.settings.get(key, "")
        return value if isinstance(value, str) else json.dumps(value)

    @property
    def order(self) -> tuple[Any, ...]:
        """Sorts by data set, model, method, keep, then everything else, the learning rate last."""
        rank = _METHODS.index(self.method) if self.method in _METHODS else len(_METHODS)
        rest = [(key, _sortable(value)) for key, value in sorted(self.settings.items()) if key != "regime.lr"]
        keep, lr = _sortable(self.keep), _sortable(self.lr)
        return self.data, self.model, rank, self.method, keep, rest, lr, self.metric


def single(record: Mapping[str, Any]) -> Group:
    """A group of one run.

    Raises:
        FishexpError: If ``record`` lacks what a finished run has.
    """
    try:
        group = Group(settings_of(record), next(iter(record["metrics"])), [dict(record)])
        _ = group.order, group.values, group.share, group.seconds, group.uncommitted  # a KeyError is the check
    except StopIteration:
        raise FishexpError(f"the record of run {record['run_id']} says finished but has no metrics") from None
    except (KeyError, TypeError, AttributeError) as error:
        raise FishexpError(f"the record of run {record['run_id']} is not one of ours: {error!r}") from None
    return group


def settings_of(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a run was told, the seed left out: dotted key -> value."""
    settings = dict(_flat(record["config"]))
    del settings["seed"]
    return settings


def span(numbers: Collection[int]) -> str:
    """``1,537``, or ``1,537–1,540`` where they differ; empty for none."""
    return "–".join(f"{number:,}" for number in sorted({min(numbers), max(numbers)})) if numbers else ""


def seeds_text(groups: Collection[Group]) -> str:
    """``1 seed``, ``3 seeds`` or ``3–5 seeds``: of each group."""
    counts = [len(group.runs) for group in groups]
    return f"{span(counts)} seed{'s' if max(counts) > 1 else ''}"


def _flat(config: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, Any]]:
    for key, value in config.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value


def _sortable(value: Any) -> tuple[int, float, str]:
    return (0, value, "") if isinstance(value, int | float) else (1, 0, json.dumps(value))


def _unit(metric: str) -> str | None:
    return next((unit for name, unit in _UNITS.items() if metric.startswith(name)), None)
