"""A metric of several runs that differ in nothing but the seed, in the unit in which it is shown."""

import math
from collections.abc import Container, Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Any

# how a metric's name begins -> the unit in which it is shown, a hundredth of its own
_UNITS = {"accuracy": "%", "matthews": "x100", "pearson": "x100", "spearman": "x100", "f1": "x100"}
# how the names begin of numbers that no table shows as a success
_NO_SUCCESS = ("loss", "largest_")
# end of the names of metrics of held-out examples
_HELD_OUT = "_holdout"


@dataclass(frozen=True)
class Scores:
    """Hold a metric of several runs.

    Attributes:
        metric: Name of the metric.
        values: Its value for each run in the unit of ``header``; None where it is undefined.
        one_class: Number of the runs that predicted a single class for all examples; none where they do not tell.
        majority: Share of the largest class of the examples, in percent; None if it is unknown.
    """

    metric: str
    values: list[float | None]
    one_class: int
    majority: float | None

    @property
    def header(self) -> str:
        """Name the metric and its unit: ``accuracy, %``, or ``held-out accuracy, %``."""
        name = f"held-out {self.metric.removesuffix(_HELD_OUT)}" if self.metric.endswith(_HELD_OUT) else self.metric
        return f"{name}, {unit}" if (unit := _unit(self.metric)) else name

    @property
    def mean(self) -> float | None:
        """Return the mean over the seeds; None if a run's metric is undefined, as the others are no fair sample."""
        values = [value for value in self.values if value is not None]
        return mean(values) if len(values) == len(self.values) else None

    @property
    def std(self) -> float | None:
        """Return the sample standard deviation over the seeds; None for a single run or an undefined metric."""
        values = [value for value in self.values if value is not None]
        return stdev(values) if len(values) == len(self.values) > 1 else None

    @property
    def text(self) -> str:
        """Write mean and standard deviation: ``80.6 ± 0.4``, ``80.6`` for a single run, or ``undefined (1 of 3)``."""
        if self.mean is None:
            return f"undefined ({self.values.count(None)} of {len(self.values)})"
        digits, spread = (".1f", ".1f") if _unit(self.metric) else (".4g", ".2g")
        return f"{self.mean:{digits}}" + (f" ± {self.std:{spread}}" if self.std is not None else "")


def scores_of(metric: str, runs: Sequence[Mapping[str, Any]]) -> Scores:
    """Look up a metric in the records of ``runs``."""
    factor = 100 if _unit(metric) else 1
    found = [run["metrics"].get(metric) for run in runs]
    values = [None if value is None or not math.isfinite(value) else factor * float(value) for value in found]
    one_class = sum(_largest("predicted", metric, run) == 1 for run in runs)
    majorities = {_largest("class", metric, run) for run in runs}
    majority = majorities.pop() if len(majorities) == 1 else None
    return Scores(metric, values, one_class, None if majority is None else 100 * majority)


def told_apart(header: str, others: Container[str]) -> str:
    """Name a metric so that it is not taken for something else of this name beside it: ``seconds (metric)``."""
    return f"{header} (metric)" if header in others else header


def success_metrics(runs: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the names of the metrics of ``runs`` that measure success, the headline first."""
    names = dict.fromkeys(name for run in runs for name in run["metrics"])
    headline, *others = names
    return [headline, *(name for name in others if not name.startswith(_NO_SUCCESS))]


def _largest(what: str, metric: str, run: Mapping[str, Any]) -> float | None:
    """Return the share of the largest class or prediction among the examples on which ``metric`` was measured."""
    stem = f"largest_{what}"
    ends = [name.removeprefix(stem) for name in run["metrics"] if name.startswith(stem)]
    fitting = [end for end in ends if metric.endswith(end)]  # of accuracy_ood_test also that of accuracy_test
    return run["metrics"][stem + max(fitting, key=len)] if fitting else None


def _unit(metric: str) -> str | None:
    return next((unit for name, unit in _UNITS.items() if metric.startswith(name)), None)
